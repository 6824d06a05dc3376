"""What others may have made: crafted indexes, settings, labels and bundles are refused in words, or hold."""

from __future__ import annotations

import gzip
import json
import os
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zstandard

from drumline.bundle import load_bundle
from drumline.errors import BundleError, ConfigError, DrumlineError, IndexFormatError
from drumline.index import MAX_LINE_BYTES, Codec, read_frame, read_frames, read_index
from drumline.inputs import open_regular, read_regular
from drumline.labels import read_labels
from drumline.onnxfile import _bytes_field, foreign_domains
from drumline.records import misfit
from drumline.runs import open_run
from drumline.stub import create_stub
from tests.making import CommandLine, make_record, make_run, write_index, write_tone
from tests.rebuild.archives import Archive

ROOT = Path(__file__).parents[1]
NO_REGULAR = "not a regular file"


@pytest.fixture(params=["pipe", "device"])
def irregular(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A named pipe that nobody writes to, or a device without an end."""
    if request.param == "device":
        return Path("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize(
    "arguments",
    [
        ("infer", "ARCHIVE", "--config", "FILE"),
        ("infer", "ARCHIVE", "--label-map", "FILE"),
        ("infer", "ARCHIVE", "--canonical-map", "FILE"),
        ("infer", "ARCHIVE", "--model", "FILE"),
        ("rebuild", "RUN", "--out", "OUT", "--overrides", "FILE"),
        ("rebuild", "--index", "FILE", "--out", "OUT"),
        ("rebuild", "RUN", "--out", "OUT", "--config", "FILE"),
        ("stats", "FILE"),
        ("diff", "RUN", "FILE"),
        ("verify", "FILE"),
        ("validate-mapping", "--model", "mfcc-cnn", "--mapping", "FILE"),
    ],
    ids=" ".join,
)
def test_a_pipe_or_a_device_in_place_of_a_file_is_refused_and_not_waited_for(
    command: CommandLine, tmp_path: Path, irregular: Path, arguments: tuple[str, ...]
) -> None:
    (tmp_path / "archive").mkdir()
    write_tone(tmp_path / "archive/kick.wav")
    run = make_run(tmp_path / "runs", [make_record()])
    places = {
        "ARCHIVE": tmp_path / "archive",
        "RUN": run.directory,
        "OUT": tmp_path / "out",
        "FILE": irregular,
    }
    outcome = command(*(places.get(part, part) for part in arguments))
    assert outcome.code in (3, 4, 7)
    assert not (tmp_path / "out").exists()


def test_what_is_read_must_be_regular_and_no_larger_than_sense(tmp_path: Path, irregular: Path) -> None:
    with pytest.raises(OSError, match=NO_REGULAR):
        open_regular(irregular)
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    (tmp_path / "large").write_bytes(b"x" * 11)
    with pytest.raises(OSError, match="holds more than"):
        read_regular(tmp_path / "large", 10)
    assert read_regular(tmp_path / "large", 11) == b"x" * 11


@pytest.mark.parametrize("member", ["run.json", "index.jsonl.zst"])
def test_a_run_whose_files_are_pipes_is_refused(tmp_path: Path, member: str) -> None:
    run = make_run(tmp_path, [make_record()])
    (run.directory / member).unlink()
    os.mkfifo(run.directory / member)
    with pytest.raises(IndexFormatError):
        list(read_index(open_run(run.directory).index_path))


@pytest.mark.parametrize(
    "member",
    ["bundle.json", "label_mapping.json", "canonical_mapping.json", "calibration.json", "model.onnx"],
)
def test_a_bundle_whose_files_are_pipes_is_refused(tmp_path: Path, member: str) -> None:
    create_stub(tmp_path / "stub")
    (tmp_path / "stub" / member).unlink()
    os.mkfifo(tmp_path / "stub" / member)
    with pytest.raises(BundleError):
        load_bundle(tmp_path / "stub")


def test_a_card_that_is_a_pipe_or_speaks_to_the_terminal_is_shown_harmless(
    command: CommandLine, tmp_path: Path
) -> None:
    create_stub(tmp_path / "stub")
    card = tmp_path / "stub/MODEL_CARD.md"
    card.write_text("a card\x1b]0;owned\x07")
    assert "\x1b" not in command("models", tmp_path / "stub").out
    card.unlink()
    os.mkfifo(card)
    assert command("models", tmp_path / "stub").code == 0


def test_a_label_file_of_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.touch()
    os.truncate(path, 5_000_000_000)
    with pytest.raises(BundleError, match="more than 32 MiB"):
        read_labels(path)


def bomb(compression: str, size: int) -> bytes:
    zeros = b"\0" * (1 << 20)
    if compression == "gzip":
        return gzip.compress(zeros * (size >> 20), 9)
    compressor = zstandard.ZstdCompressor(level=19).compressobj()
    return b"".join(compressor.compress(zeros) for _ in range(size >> 20)) + compressor.flush()


@pytest.mark.parametrize("compression", ["zstd", "gzip"])
def test_a_frame_that_expands_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, compression: str
) -> None:
    path = tmp_path / f"index{Codec(compression).suffix}"  # type: ignore[arg-type]
    path.write_bytes(bomb(compression, 1 << 30))
    assert path.stat().st_size < 2 << 20
    tracemalloc.start()
    try:
        with pytest.raises(IndexFormatError, match="no index of ours"):
            list(read_frames(path))
        with open(path, "rb") as stream, pytest.raises(IndexFormatError, match="no index of ours"):
            read_frame(stream.fileno(), 0, path.stat().st_size, Codec(compression))  # type: ignore[arg-type]
        assert tracemalloc.get_traced_memory()[1] < 450 << 20
    finally:
        tracemalloc.stop()


def test_a_zstd_frame_that_asks_for_a_huge_window_is_refused(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=30)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "index.jsonl.zst"
    path.write_bytes(compressor.compress(b"{}\n") + compressor.flush())
    with pytest.raises(IndexFormatError, match="damaged"):
        list(read_frames(path))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst"])
def test_a_line_without_end_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"index{suffix}"
    compression: Any = "none" if suffix == ".jsonl" else "zstd"
    path.write_bytes(Codec(compression).compress(b'{"a": "' + b"x" * MAX_LINE_BYTES + b'"}\n'))
    with pytest.raises(IndexFormatError, match="more than 1 MiB"):
        list(read_index(path))


def test_json_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "index.jsonl"
    path.write_bytes(b'{"schema_version": ' + b"[" * 100_000 + b"\n")
    with pytest.raises(IndexFormatError, match="no record"):
        list(read_index(path))
    path.write_bytes(b"[" * 1_000_000)
    with pytest.raises(BundleError):
        read_labels(path)


ODD_VALUES: list[Any] = [None, 1, -1, 2**64 - 1, 1.5, "", "../../x", "\x1b[31m[/red]", "a" * 5000, True]
ODD_VALUES += [[], ["x"], {}, {"a": "b"}, "\0", "..", ".drumline", "errors", {"Kick": "much"}, {"Nope": 1.0}]


@pytest.mark.parametrize("name", list(make_record()))
def test_no_value_of_any_field_gives_more_than_an_error_in_words(
    command: CommandLine, tmp_path: Path, name: str
) -> None:
    """Whatever an index says: nothing is written outside of the tree, and no command fails in Python."""
    for number, value in enumerate(ODD_VALUES):
        base = tmp_path / str(number)
        base.mkdir()
        archive = Archive(base)
        archive.add(b"kick.wav")
        records: list[Any] = [{**archive.records[0], name: value}, archive.index(b"gone.wav")]
        run = archive.run(records)
        before = sorted(base.rglob("*"))
        for arguments in (
            ("rebuild", run.directory, "--out", base / "out", "--json"),
            ("rebuild", run.directory, "--out", base / "out", "--dry-run", "--threshold", "0.4"),
            ("stats", run.index_path),
            ("diff", run.directory, run.index_path),
        ):
            outcome = command(*arguments)
            assert outcome.code in (0, 3, 7), (value, outcome.err)
            assert "\x1b" not in outcome.out + outcome.err
        made = [path for path in base.rglob("*") if path not in before]
        assert [path for path in made if not path.is_relative_to(base / "out")] == []


def test_a_record_of_the_right_kinds_fits() -> None:
    assert misfit(make_record()) is None
    assert misfit(make_record(error="timeout")) is None
    assert misfit({**make_record(), "size": True}) == "size"


def test_errors_about_garbled_records_do_not_speak_python(tmp_path: Path, command: CommandLine) -> None:
    record: Any = make_record()
    del record["duration_sec"]
    path = tmp_path / "index.jsonl"
    write_index(path, [record])
    outcome = command("stats", path)
    assert outcome.code == IndexFormatError.exit_code
    assert "'duration_sec' is missing" in outcome.err
    assert not re.search(r"KeyError|TypeError|NoneType|object", outcome.err)


@pytest.mark.parametrize(
    "change",
    [
        lambda info: info.pop("settings"),
        lambda info: info.update(settings=7),
        lambda info: info["settings"].pop("misc"),
        lambda info: info["settings"].update(misc=[]),
        lambda info: info.update(canonical_map=["Kick"]),
        lambda info: info.update(canonical_map={"Kick": "../../x"}),
        lambda info: info.update(canonical_map={"Kick": 5}),
        lambda info: info.update(archive_root=5, archive_root_b64=None),
        lambda info: info.update(archive_root_b64="%%%"),
        lambda info: info.update(archive_root_b64=7),
        lambda info: info.update(index="../../other"),
        lambda info: info.update(index=7),
        lambda info: info.update(settings={"target_labels": 5, "misc": {"threshold": "x", "label": 5}}),
    ],
)
def test_a_crafted_run_json_gives_an_error_in_words(
    command: CommandLine, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    archive = Archive(tmp_path)
    archive.add(b"kick.wav")
    run = archive.run()
    info = json.loads((run.directory / "run.json").read_text())
    change(info)
    (run.directory / "run.json").write_text(json.dumps(info))
    for arguments in (
        ("rebuild", run.directory, "--out", tmp_path / "out", "--threshold", "0.4"),
        ("rebuild", run.directory, "--out", tmp_path / "out"),
        ("stats", run.directory),
        ("diff", run.directory, run.directory),
    ):
        outcome = command(*arguments)
        assert outcome.code in (0, 3, 6, 7), outcome.err
        assert not re.search(r"KeyError|TypeError|NoneType|has no attribute|Traceback", outcome.err)
    assert not [path for path in tmp_path.parent.glob("x*") if path != tmp_path]


def test_no_pickle_is_ever_loaded() -> None:
    """Pickles run what they please: nothing of ours imports what reads them, nor lets NumPy do so."""
    sources = [path for part in ("engine", "convert", "bench") for path in (ROOT / part).rglob("*.py")]
    assert len(sources) > 50
    for path in sources:
        text = path.read_text()
        assert not re.search(
            r"\b(?:import|from) (?:pickle|shelve|marshal|dill|joblib|cloudpickle)\b", text
        ), path
        assert "allow_pickle=True" not in text, path
        assert not re.search(r"\byaml\.(?:load|unsafe_load|full_load)\(", text), path
        assert not re.search(r"\b(?:eval|exec)\(", text), path
        assert not re.search(r"torch\.load\((?!.*weights_only=True)", text), path


def test_settings_errors_name_what_stands_in_the_way(tmp_path: Path, irregular: Path) -> None:
    from drumline.config import load_config

    with pytest.raises(ConfigError, match=NO_REGULAR):
        load_config(irregular)
    with pytest.raises(DrumlineError, match=NO_REGULAR):
        read_labels(irregular)


ESCAPES = "\x1b]0;owned\x07\x9b31m\u202e"


@pytest.mark.parametrize(
    "arguments",
    [
        ("infer", f"nowhere{ESCAPES}"),
        ("infer", "here", f"more{ESCAPES}"),
        ("infer", "here", f"--no-such-option{ESCAPES}"),
        (f"no-command{ESCAPES}",),
        ("stats", f"nowhere{ESCAPES}"),
        ("rebuild", f"nowhere{ESCAPES}", "--out", "o", "--copy-mode", f"x{ESCAPES}"),
        ("verify", f"nowhere{ESCAPES}"),
        ("undo", f"nowhere{ESCAPES}"),
        ("infer", "here", "--config", f"nowhere{ESCAPES}"),
        ("infer", "here", "--labels", f"x{ESCAPES}"),
        ("infer", "here", "--model", f"nowhere{ESCAPES}"),
    ],
    ids=lambda arguments: arguments[0][:10],
)
def test_what_was_typed_comes_back_without_its_escapes(
    command: CommandLine, arguments: tuple[str, ...]
) -> None:
    """A shell makes arguments of the names of files, which may be anybody's."""
    outcome = command(*arguments)
    assert outcome.code != 0
    assert not set(ESCAPES) - set("]0;owned31m") & set(outcome.out + outcome.err)


def test_labels_that_look_like_markup_are_shown_as_they_are(command: CommandLine, tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.add(b"kick.wav", assigned_label="[/red] [bold]")
    run = archive.run()
    for arguments in (
        ("rebuild", run.directory, "--out", tmp_path / "out"),
        ("stats", run.index_path),
        ("diff", run.directory, run.index_path),
    ):
        outcome = command(*arguments)
        assert outcome.code == 0, outcome.err
    assert "[/red] [bold]" in command("stats", run.index_path).out


def test_labels_in_the_progress_panel_are_shown_as_they_are() -> None:
    from rich.console import Console

    from drumline.progress import _label_lines

    snapshot: Any = SimpleNamespace(labels={"[/red]": 3})
    console = Console(width=60)
    with console.capture() as shown:
        console.print(*_label_lines(snapshot))
    assert "[/red]" in shown.get()


def test_a_label_cannot_hide_its_directory(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.add(b"kick.wav", assigned_label=".drumline")
    archive.rebuild()
    assert list(archive.tree()) == [b"label_drumline/kick.wav"]


def test_a_manifest_holds_no_byte_that_steers_a_terminal(tmp_path: Path) -> None:
    names = [b"a\x1b[31m", b"b\xc2\x9b31m", b"c\xe2\x80\xae", b"d\xe2\x81\xa6", b"e\xff", b"f\n", b"g\\x"]
    archive = Archive(tmp_path)
    for name in [*names, "plain Bébé ス".encode()]:
        archive.add(name + b".wav")
    archive.rebuild()
    text = (archive.out / "_manifests/Kick.txt").read_text("utf-8")
    lines = text.splitlines()
    assert len(lines) == len(names) + 1
    assert "Kick/plain Bébé ス.wav" in lines
    assert all(char.isprintable() or char == "\n" for char in text)
    assert lines[1] == r"Kick/b\xc2\x9b31m.wav"


def custom_model(domain: str, *, defined: bool = False) -> bytes:
    """Return a model with one node of a domain, which the model defines itself or not."""
    node = _bytes_field(1, "features") + _bytes_field(2, "logits") + _bytes_field(4, "Evil")
    graph = _bytes_field(1, node + _bytes_field(7, domain)) + _bytes_field(2, "graph")
    function = _bytes_field(25, _bytes_field(1, "Evil") + _bytes_field(10, domain))
    return _bytes_field(7, graph) + (function if defined else b"")


def test_a_model_with_operators_of_its_own_is_refused(command: CommandLine, tmp_path: Path) -> None:
    assert foreign_domains(custom_model("evil")) == ["evil"]
    assert foreign_domains(custom_model("com.microsoft")) == foreign_domains(custom_model("")) == []
    assert foreign_domains(custom_model("evil", defined=True)) == []
    shipped = [path.read_bytes() for path in (ROOT / "models").glob("*/*.onnx")]
    assert shipped
    assert [foreign_domains(model) for model in shipped] == [[]] * len(shipped)
    create_stub(tmp_path / "stub")
    (tmp_path / "stub/model.onnx").write_bytes(custom_model("evil"))
    write_tone(tmp_path / "kick.wav")
    outcome = command("infer", tmp_path, "--model", tmp_path / "stub", "--runs-root", tmp_path / "runs")
    assert outcome.code == BundleError.exit_code
    assert "operators of 'evil'" in outcome.err
