"""config.yml: everything wrong in it is named with file, line and key."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from drumline.config import CONFIG_KEYS, CONFIG_TEMPLATE, Config, infer_settings, load_config
from drumline.errors import ConfigError, OutputError, UsageError
from drumline.settings import InferSettings, MiscSettings, allowed_values
from tests.making import CommandLine

DOCUMENT = Path(__file__).parents[1] / "docs/config.md"


def load(directory: Path, text: str | bytes) -> Config:
    path = directory / "config.yml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(path)


def refusal(directory: Path, text: str | bytes) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        load(directory, text)
    assert "config.yml" in error.value.what
    return error.value


def test_the_template_holds_every_key_at_its_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yml").write_text(CONFIG_TEMPLATE)
    config = load_config(Path("config.yml"))
    assert infer_settings(config, {"archive": Path("a")}) == InferSettings(archive=Path("a"))
    written = yaml.safe_load(CONFIG_TEMPLATE)
    flat = {key for key in written if key not in ("misc", "paths")}
    flat |= {f"{section}.{key}" for section in ("misc", "paths") for key in written[section]}
    assert flat == set(CONFIG_KEYS)


def test_an_empty_file_and_empty_sections_change_nothing(tmp_path: Path) -> None:
    for text in ("", "# nothing\n", "misc:\npaths:\n  # runs_root: x\n"):
        assert load(tmp_path, text).values == {}


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, "batch_size: 8\ntop_k: 5\nmisc: {threshold: 0.7}\npaths: {archive_root: sounds}")
    overrides = {"batch_size": 16, "misc.label": "rest", "device": None, "fresh": True}
    settings = infer_settings(config, overrides)
    assert (settings.batch_size, settings.top_k, settings.device) == (16, 5, "auto")
    assert settings.misc == MiscSettings(threshold=0.7, label="rest")
    assert (settings.archive, settings.fresh) == (tmp_path / "sounds", True)


def test_without_an_archive_the_way_out_names_both_places() -> None:
    with pytest.raises(UsageError) as error:
        infer_settings(None, {})
    assert "archive_root" in error.value.way_out


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    text = "label_map: labels.json\npaths: {runs_root: ../runs, archive_root: /abs, regenerated_root: out}"
    config = load(tmp_path, text)
    assert config.values["label_map"] == tmp_path / "labels.json"
    assert config.values["runs_root"] == tmp_path / "../runs"
    assert config.values["archive"] == Path("/abs")
    assert config.regenerated_root == tmp_path / "out"


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nowhere/me")
    assert load(tmp_path, "label_map: ~/l.json").values["label_map"] == Path("/nowhere/me/l.json")
    assert "home" in refusal(tmp_path, "label_map: ~nobody-of-this-name/l.json").what


def test_a_model_is_a_directory_beside_the_file_or_else_a_bundles_name(tmp_path: Path) -> None:
    assert load(tmp_path, "model_path: mine").values["model_path"] == Path("mine")
    assert load(tmp_path, "model_path: models/mine").values["model_path"] == tmp_path / "models/mine"
    (tmp_path / "mine").mkdir()
    assert load(tmp_path, "model_path: mine").values["model_path"] == tmp_path / "mine"


@pytest.mark.parametrize(
    ("text", "line", "key", "hint"),
    [
        ("batch_siz: 3", 1, "'batch_siz'", "'batch_size'"),
        ("top_k: 3\n\nthreshold: 3", 3, "'threshold'", "'threshold' under 'misc:'"),
        ("runs_root: x", 1, "'runs_root'", "'runs_root' under 'paths:'"),
        ("misc:\n  label: x\n  treshold: 1", 3, "'misc.treshold'", "'threshold' under 'misc:'"),
        ("misc.threshold: 1", 1, "'misc.threshold'", "'threshold' under 'misc:'"),
        ("zzz: 1", 1, "'zzz'", "Keys are: model_path"),
        ("? [a]\n: 1", 1, "(no name)", "Keys are"),
        ("archive: x", 1, "'archive'", "Keys are"),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_a_guess(
    tmp_path: Path, text: str, line: int, key: str, hint: str
) -> None:
    error = refusal(tmp_path, text)
    assert f"line {line}: unknown key {key}" in error.what or key == "(no name)"
    assert hint in error.way_out


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("batch_size: 0", 1, "batch_size"),
        ("batch_size: '64'", 1, "batch_size"),
        ("top_k: 1\nbatch_size:", 2, "batch_size"),
        ("batch_size: yes", 1, "batch_size"),
        ("workers: auto", 1, "workers"),
        ("device: gpu", 1, "device"),
        ("target_labels: Kick", 1, "target_labels"),
        ("target_labels:\n  - Kick\n  - 3", 1, "target_labels"),
        ("misc:\n  threshold: 5", 2, "misc.threshold"),
        ("misc:\n  threshold: .nan", 2, "misc.threshold"),
        ("misc: {label: a/b}", 1, "misc.label"),
        ("dedup_hash: 1", 1, "dedup_hash"),
        ("supported_formats: [wav, .flac]", 1, "supported_formats"),
        ("top_k: {a: [1]}", 1, "top_k"),
        ("model_path: 5", 1, "model_path"),
        ("paths:\n  runs_root: ''", 2, "paths.runs_root"),
        ("paths:\n  runs_root:", 2, "paths.runs_root"),
        ("paths:\n\n  archive_root: [a]", 3, "paths.archive_root"),
    ],
)
def test_a_wrong_value_is_named_with_its_line_and_what_is_allowed(
    tmp_path: Path, text: str, line: int, key: str
) -> None:
    error = refusal(tmp_path, text)
    assert f"line {line}: {key} cannot be " in error.what
    assert error.way_out.startswith("Allowed: ")


@pytest.mark.parametrize(
    ("text", "line", "cause"),
    [
        ("top_k: 1\ntop_k: 2", 2, "top_k stands twice"),
        ("misc: 0.5", 1, "misc must hold"),
        ("- a", 1, "the file must hold"),
        ("a: b: c", 1, "no YAML"),
        ("top_k: [", 1, "no YAML"),
        ("top_k: 1\n---\ntop_k: 2", 2, "another document"),
        ("top_k: 1\ndevice: !!python/object/apply:os.getcwd []", 2, "cannot be understood"),
        ("device: 2001-99-99", 1, "cannot be understood"),
        (f"batch_size: {'9' * 5000}", 1, "cannot be understood"),
        (b"top_k: 1\n# \xff", 2, "UTF-8"),
    ],
)
def test_what_is_no_configuration_is_refused_with_its_line(
    tmp_path: Path, text: str | bytes, line: int, cause: str
) -> None:
    what = refusal(tmp_path, text).what
    assert f"line {line}: " in what
    assert cause in what


def test_an_alias_bomb_is_refused_before_it_expands(tmp_path: Path) -> None:
    bomb = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    bomb += [f"{name}: &{name} [{', '.join(['*' + before] * 9)}]" for before, name in pairwise("abcdefghi")]
    assert "aliases" in refusal(tmp_path, "\n".join(bomb)).what


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 50_000, "#" * ((1 << 20) + 1), "a: \0", "\t- x: ["])
def test_huge_deep_and_binary_files_are_refused(tmp_path: Path, text: str) -> None:
    refusal(tmp_path, text)


def test_a_missing_file_is_named_and_init_is_the_way_out(tmp_path: Path) -> None:
    for path in (tmp_path / "config.yml", tmp_path):
        with pytest.raises(ConfigError, match=re.escape(str(path))) as error:
            load_config(path)
        assert "drumline init" in error.value.way_out


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_no_file_whatsoever_gives_another_error(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes
) -> None:
    directory = tmp_path_factory.getbasetemp()
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    with contextlib.suppress(ConfigError):
        load(directory, content)


def test_init_writes_the_template_once(command: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "studio.yml"
    assert command("init", "--output", path).code == 0
    assert path.read_text() == CONFIG_TEMPLATE
    path.write_text("mine")
    refused = command("init", "--output", path)
    assert refused.code == OutputError.exit_code
    assert "--force" in refused.err
    assert path.read_text() == "mine"
    assert command("init", "--output", path, "--force").code == 0
    assert path.read_text() == CONFIG_TEMPLATE


def test_init_does_not_follow_a_dangling_link(command: CommandLine, tmp_path: Path) -> None:
    os.symlink(tmp_path / "elsewhere", tmp_path / "config.yml")
    assert command("init", "--output", tmp_path / "config.yml").code == OutputError.exit_code
    assert not (tmp_path / "elsewhere").exists()


def test_the_document_names_every_key_with_its_default_and_what_is_allowed() -> None:
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (.*) \|$", DOCUMENT.read_text(), re.MULTILINE))
    assert list(rows) == list(CONFIG_KEYS)
    defaults = {field.name: field.default for field in fields(InferSettings)}
    defaults |= {f"misc.{field.name}": field.default for field in fields(MiscSettings)}
    for key, row in rows.items():
        name = key.removeprefix("paths.")
        if key in ("supported_formats", "paths.archive_root", "paths.regenerated_root"):
            continue
        value = "null" if defaults[name] is None else defaults[name]
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        assert f"`{shown}`" in row.split("|")[0], key
        if not key.startswith("paths.") and key not in ("label_map", "canonical_map"):
            assert allowed_values(name) in row, key
