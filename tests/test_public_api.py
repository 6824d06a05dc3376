"""`import drumline` is light, and the public names are the ones that are documented."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import drumline

DOCS = Path(__file__).resolve().parents[1] / "docs"


def _modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
    )


def test_importing_drumline_imports_nothing_heavy() -> None:
    modules = _modules_after("import drumline")
    assert not modules & {"numpy", "scipy", "soundfile", "onnxruntime", "rich", "click", "tensorflow"}


def test_the_command_line_starts_without_anything_heavy() -> None:
    modules = _modules_after("from drumline.cli import main, cli; cli.get_command(None, 'infer')")
    assert not modules & {
        "numpy",
        "scipy",
        "soundfile",
        "onnxruntime",
        "rich",
        "tensorflow",
        "drumline_convert",
    }


def test_the_walk_starts_before_numpy_and_sqlite_are_imported() -> None:
    modules = _modules_after("import drumline.cli.infer, drumline.config, drumline.pipeline.infer")
    assert not modules & {"numpy", "sqlite3", "rich", "onnxruntime"}


def test_running_an_inference_needs_neither_librosa_nor_a_training_framework() -> None:
    modules = _modules_after("import drumline.pipeline.run, drumline.classify, drumline.pipeline.extract")
    assert not modules & {"librosa", "tensorflow", "keras", "onnx", "drumline_convert", "onnxruntime"}


def test_the_public_names_are_these() -> None:
    assert sorted(drumline.__all__) == [
        *("Bundle", "Classifier", "Decision", "DecisionSettings", "DrumlineError", "InferSettings"),
        *(
            "MiscSettings",
            "Prediction",
            "RebuildSettings",
            "Record",
            "Run",
            "__version__",
            "execute",
            "infer",
        ),
        *("load_bundle", "open_run", "plan_rebuild", "preview", "read_index", "redecide", "undo"),
    ]


def test_every_public_name_can_be_imported_and_has_a_docstring() -> None:
    for name in drumline.__all__:
        assert name == "__version__" or getattr(drumline, name).__doc__


def test_every_public_function_is_shown_in_the_documentation() -> None:
    text = (DOCS / "api.md").read_text()
    shown = [
        "infer",
        "preview",
        "open_run",
        "read_index",
        "redecide",
        "plan_rebuild",
        "execute",
        "undo",
        "Classifier",
    ]
    assert [name for name in [*shown, "load_bundle", "DrumlineError"] if f"drumline.{name}" not in text] == []


def test_no_public_name_is_hidden_by_a_module() -> None:
    assert not [name for name in drumline.__all__ if (Path(drumline.__file__).parent / f"{name}.py").exists()]
