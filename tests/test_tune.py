"""`drumline tune`: what wins is found and written, and nothing else is touched."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bench.synth import write_archive
from drumline import tuning
from drumline.config import CONFIG_TEMPLATE, load_config
from drumline.config_edit import with_values
from drumline.errors import ArchiveError, ConfigError, OutputError
from drumline.settings import InferSettings
from drumline.stub import create_stub
from drumline.tuning import AUTOMATIC, sampled, synthesised, tune
from tests.making import CommandLine

Seconds = Callable[[InferSettings], float]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Seconds], list[InferSettings]]:
    """Return a function that makes runs take so long, and returns the list of all runs."""

    def set_up(seconds: Seconds) -> list[InferSettings]:
        runs: list[InferSettings] = []

        def infer(settings: InferSettings) -> dict[str, Any]:
            runs.append(settings)
            return {"counts": {"indexed": 100}, "elapsed_sec": seconds(settings), "device": "cpu"}

        monkeypatch.setattr(tuning, "infer", infer)
        monkeypatch.setattr(tuning, "usable_cpus", lambda: 4)
        return runs

    return set_up


def settings(**changes: Any) -> InferSettings:
    return InferSettings(archive=Path("archive"), **changes)


def test_what_is_clearly_faster_is_found(machine: Callable[[Seconds], list[InferSettings]]) -> None:
    machine(lambda run: (1.0 if run.cpu_batch_size == 32 else 2.0) * (0.5 if run.batch_size == 128 else 1.0))
    tuned = tune(settings(), repeats=1)
    assert tuned.settings == {"cpu_batch_size": 32, "batch_size": 128}
    assert (tuned.auto_files_per_sec, tuned.best_files_per_sec) == (50.0, 200.0)
    assert tuned.auto_share == 0.25


def test_what_is_hardly_faster_stays_automatic(machine: Callable[[Seconds], list[InferSettings]]) -> None:
    machine(lambda run: 0.98 if run.workers else 1.0)
    tuned = tune(settings(workers=7, batch_size=9), repeats=1)
    assert (tuned.settings, tuned.auto_share) == ({}, 1.0)


def test_a_win_that_does_not_come_again_is_not_taken(
    machine: Callable[[Seconds], list[InferSettings]],
) -> None:
    runs: list[InferSettings]

    def lucky(run: InferSettings) -> float:
        again = sum(earlier.model_threads == 4 for earlier in runs) > 1
        return 0.5 if run.model_threads == 4 and not again else 1.0 + (run.model_threads == 4)

    runs = machine(lucky)
    assert tune(settings(), repeats=1).settings == {}


def test_a_gain_within_the_scatter_of_the_automatic_settings_is_noise(
    command: CommandLine, tmp_path: Path, machine: Callable[[Seconds], list[InferSettings]]
) -> None:
    slow_by_turns = cycle([1.0, 1.4])

    def noisy(run: InferSettings) -> float:
        automatic = all(getattr(run, name) == value for name, value in AUTOMATIC.items())
        return next(slow_by_turns) if automatic else 0.8 if run.model_threads == 4 else 1.0

    machine(noisy)
    tuned = tune(settings(), repeats=2)
    assert (tuned.settings, tuned.too_noisy) == ({}, True)
    assert tuned.scatter == pytest.approx(1.4, abs=0.01)
    config = tmp_path / "config.yml"
    outcome = command("tune", "--config", config, "--files", 2)
    assert outcome.code == 0
    assert "Too noisy: nothing written" in outcome.out
    assert not config.exists()


def test_values_take_turns_and_every_run_begins_with_nothing(
    machine: Callable[[Seconds], list[InferSettings]],
) -> None:
    runs = machine(lambda _run: 1.0)
    tune(settings(), repeats=2)
    tried = [run.cpu_batch_size for run in runs[1:11]]
    assert tried == [None, 4, 8, 32, 64] * 2
    assert len({run.runs_root for run in runs}) == len(runs)
    assert not any(run.dedup_hash for run in runs)


def test_a_gpu_is_not_asked_for_settings_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    summary = {"counts": {"indexed": 1}, "elapsed_sec": 1.0, "device": "cuda"}
    monkeypatch.setattr(tuning, "infer", lambda _settings: summary)
    assert {trial.setting for trial in tune(settings(), repeats=1).trials} == {"workers", "batch_size"}


def test_a_sample_is_links_to_files_from_all_over_the_archive(tmp_path: Path) -> None:
    for number in range(60):
        directory = tmp_path / "archive" / f"{number // 10}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{number}.WAV").write_bytes(b"%d" % number)
    (tmp_path / "archive" / "notes.txt").touch()
    with sampled(InferSettings(archive=tmp_path / "archive"), 30) as sample:
        found = sorted(sample.archive.iterdir())
        targets = {Path(os.readlink(link)) for link in found}
        assert (len(found), len(targets), {link.suffix for link in found}) == (30, 30, {".WAV"})
        assert len({target.parent for target in targets}) == 6
    assert not sample.archive.exists()
    assert all(target.exists() for target in targets)


def test_an_archive_without_sounds_cannot_be_sampled(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no audio file"), sampled(InferSettings(archive=tmp_path), 3):
        pass


def test_the_whole_engine_runs_on_synthesised_sounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_stub(tmp_path / "stub")
    monkeypatch.setattr(tuning, "_candidates", lambda _settings: {"workers": [None, 1]})
    with synthesised(settings(model_path=tmp_path / "stub"), 4) as sample:
        tuned = tune(sample, repeats=1)
    assert [(trial.setting, trial.value) for trial in tuned.trials] == [("workers", None), ("workers", 1)]
    assert all(trial.files_per_sec > 0 for trial in tuned.trials)
    assert not sample.archive.exists()


@given(st.dictionaries(st.sampled_from(sorted(AUTOMATIC)), st.none() | st.integers(1, 1024)))
def test_only_the_named_lines_of_a_configuration_change(values: dict[str, int | None]) -> None:
    values = {name: 1 if name == "batch_size" and value is None else value for name, value in values.items()}
    text = with_values(Path("config.yml"), CONFIG_TEMPLATE, values)
    assert yaml.safe_load(text) == {**yaml.safe_load(CONFIG_TEMPLATE), **values}
    pairs = zip(text.splitlines(), CONFIG_TEMPLATE.splitlines(), strict=True)
    changed = {new.split(":")[0] for new, old in pairs if new != old}
    assert changed <= set(values)


def test_a_comment_behind_a_value_stays_and_new_keys_come_last() -> None:
    text = with_values(
        Path("c.yml"), "workers: 4  # mine\nmisc:\n  label: x\n", {"workers": None, "batch_size": 8}
    )
    assert text == "workers: null  # mine\nmisc:\n  label: x\nbatch_size: 8\n"


@pytest.mark.parametrize("text", ["{workers: 4}\n", "workers:\n  4\n", "workers: &all 4\n", "nonsense: 1\n"])
def test_a_configuration_that_cannot_be_changed_line_by_line_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="line by line"):
        with_values(Path("c.yml"), text, {"workers": 2})


def test_the_command_writes_what_won_and_names_what_was_there(
    command: CommandLine, tmp_path: Path, machine: Callable[[Seconds], list[InferSettings]]
) -> None:
    machine(lambda run: 0.5 if run.batch_size == 256 else 1.0)
    config = tmp_path / "config.yml"
    config.write_text("top_k: 2\nbatch_size: 16\n")
    outcome = command("tune", "--config", config, "--files", 2, "--repeats", 1)
    assert outcome.code == 0
    assert "batch_size: 256  # was 16" in outcome.out
    assert outcome.out.endswith(f"Use it: drumline infer ARCHIVE --config {config}\n")
    values = load_config(config).values
    assert (values["top_k"], values["batch_size"], values["workers"]) == (2, 256, None)


def test_the_command_that_it_names_runs(
    command: CommandLine, tmp_path: Path, machine: Callable[[Seconds], list[InferSettings]]
) -> None:
    machine(lambda run: 0.5 if run.batch_size == 256 else 1.0)
    archive, config = tmp_path / "two words", tmp_path / "config.yml"
    write_archive(archive, 3)
    tuned = command("tune", archive, "--config", config, "--files", 2, "--repeats", 1, "--device", "cpu")
    (named,) = [line for line in tuned.out.splitlines() if line.startswith("Use it: ")]
    asked = shlex.split(named.removeprefix("Use it: drumline"))
    assert asked == ["infer", str(archive), "--config", str(config), "--device", "cpu"]
    assert command(*asked, "--runs-root", tmp_path / "runs", "--dry-run").code == 0


def test_a_dry_run_writes_nothing(
    command: CommandLine, tmp_path: Path, machine: Callable[[Seconds], list[InferSettings]]
) -> None:
    machine(lambda _run: 1.0)
    config = tmp_path / "config.yml"
    outcome = command("tune", "--config", config, "--files", 2, "--repeats", 1, "--dry-run", "--json")
    said = json.loads(outcome.out)
    assert (said["settings"], said["written"], said["auto_share"]) == (AUTOMATIC, False, 1.0)
    assert not config.exists()


def test_mode_line_ends_and_link_of_a_configuration_stay(
    command: CommandLine, tmp_path: Path, machine: Callable[[Seconds], list[InferSettings]]
) -> None:
    machine(lambda run: 0.5 if run.batch_size == 256 else 1.0)
    target = tmp_path / "dotfiles" / "drumline.yml"
    target.parent.mkdir()
    target.write_bytes(b"\xef\xbb\xbftop_k: 2\r\nbatch_size: 16  # mine\r\n")
    target.chmod(0o600)
    config = tmp_path / "config.yml"
    config.symlink_to(target)
    assert command("tune", "--config", config, "--files", 2, "--repeats", 2).code == 0
    data = target.read_bytes()
    assert config.is_symlink()
    assert target.stat().st_mode & 0o777 == 0o600
    assert data.startswith(b"\xef\xbb\xbftop_k: 2\r\nbatch_size: 256  # mine\r\n")
    assert data.count(b"\n") == data.count(b"\r\n")


def refused(command: CommandLine, config: Path, runs: list[InferSettings], *options: str | Path) -> str:
    """Return what is said of a configuration that is refused before anything is measured."""
    outcome = command("tune", "--config", config, "--files", 2, *options)
    assert outcome.code in (ConfigError.exit_code, OutputError.exit_code)
    assert not runs
    return outcome.err


def test_a_configuration_that_cannot_be_written_is_refused_before_anything_is_measured(
    command: CommandLine, tmp_path: Path, machine: Callable[[Seconds], list[InferSettings]]
) -> None:
    runs = machine(lambda _run: 1.0)
    assert "missing" in refused(command, tmp_path / "missing" / "config.yml", runs)
    (tmp_path / "flow.yml").write_text("{batch_size: 4}\n")
    assert "line by line" in refused(command, tmp_path / "flow.yml", runs)


def test_a_configuration_is_never_written_into_the_archive(
    command: CommandLine, tmp_path: Path, machine: Callable[[Seconds], list[InferSettings]]
) -> None:
    runs = machine(lambda _run: 1.0)
    (tmp_path / "archive").mkdir()
    said = refused(command, tmp_path / "archive" / "config.yml", runs, tmp_path / "archive")
    assert "never written to" in said
    assert not any((tmp_path / "archive").iterdir())
