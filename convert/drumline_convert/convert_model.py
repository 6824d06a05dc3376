"""A trained `.keras` model → a bundle."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from drumline.bundle import load_bundle
from drumline.errors import BundleError
from drumline_convert.bundle_writer import BundleDescription, write_bundle
from drumline_convert.export import check_parity, export_onnx
from drumline_convert.taxonomy import TrainingTaxonomy
from drumline_convert.training import prepare_tensorflow

__all__ = ["convert_model"]


def convert_model(model_path: Path, like: Path | None, out: Path, version: str) -> dict[str, float]:
    """Convert a Keras model that shares front end and labels with the bundle `like` (None: the default).

    Returns
    -------
    dict
        What `drumline_convert.export.check_parity` measured, on random features.

    Raises
    ------
    BundleError
        When the model cannot be loaded, does not fit the bundle, or ONNX and Keras disagree.
    """
    bundle = load_bundle(like)
    prepare_tensorflow()
    import keras

    try:
        model = keras.models.load_model(model_path)
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(f"cannot load the Keras model {str(model_path)!r}: {error}") from error
    expected = ((None, *bundle.front_end.shape), (None, len(bundle.labels)))
    if (model.input_shape, model.output_shape) != expected:
        raise BundleError(
            f"the model maps {model.input_shape} to {model.output_shape}; "
            f"bundle {bundle.name} needs {expected[0]} to {expected[1]}",
            "Name the bundle whose front end and labels the model was trained with: --like BUNDLE.",
        )
    features = np.random.default_rng(0).normal(0, 30, (256, *bundle.front_end.shape)).astype(np.float32)
    calibration = {"method": "none", "temperature": 1.0, "version": 0, "fitted_on": None}
    description = BundleDescription(
        out.name,
        version,
        f"Converted from {model_path.name}; not calibrated",
        bundle.front_end,
        calibration,
        f"# {out.name} {version}\n\nConverted from `{model_path.name}`. Neither evaluated nor calibrated.\n",
    )
    with TemporaryDirectory() as directory:
        graph = Path(directory, "model.onnx")
        export_onnx(model, bundle.front_end, graph)
        parity = check_parity(graph, model, features)
        write_bundle(out, graph, TrainingTaxonomy(bundle.taxonomy, {}), description)
    return parity
