"""The model card: what a bundle was trained on, how good it is where it was measured, and where it fails."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from drumline_convert.corpus import Recording
from drumline_convert.taxonomy import TrainingTaxonomy

__all__ = ["model_card", "network_name", "with_calibration"]

_FEW = 25


def model_card(
    name: str,
    version: str,
    recordings: Sequence[Recording],
    taxonomy: TrainingTaxonomy,
    metrics: dict[str, Any],
) -> str:
    """Return the card as Markdown; `metrics` is what `drumline_convert.make_model` measured."""
    parts = [
        f"# {name} {version}",
        _what(taxonomy, metrics),
        _use(),
        _quality(name, metrics),
        _classes(metrics),
        _failures(recordings, taxonomy, metrics),
        _training(recordings, taxonomy, metrics),
        _sources(recordings),
    ]
    return "\n\n".join(parts) + "\n"


def _what(taxonomy: TrainingTaxonomy, metrics: dict[str, Any]) -> str:
    model, front_end = metrics["model"], metrics["settings"]["front_end"]
    seconds = front_end["samples"] / front_end["sample_rate"]
    return (
        f"{network_name(metrics)}. It hears the first {seconds:.2f} s of a drum one-shot and gives\n"
        f"probabilities of {len(taxonomy.fine)} fine labels; summed by `canonical_mapping.json` they decide\n"
        f"between {', '.join(taxonomy.canonical[:-1])} and {taxonomy.canonical[-1]}.\n"
        f"{model['parameters']:,} parameters, {model['multiply_adds'] / 1e6:.1f} million multiply-adds a "
        f"file, ONNX opset {model['opset']}, {model['bytes'] / 1e6:.2f} MB."
    )


def network_name(metrics: dict[str, Any]) -> str:
    """Return what kind of network was trained, and on what: ``"Residual CNN on mfcc"``."""
    settings = metrics["settings"]
    kind = {"cnn": "Residual CNN", "autoencoder": "Classifier on the codes of a convolutional autoencoder"}
    members = settings["training"]["members"]
    mean = f", mean of {members} networks" if members > 1 else ""
    return f"{kind[settings['architecture']['kind']]} on {settings['front_end']['name']}{mean}"


def _use() -> str:
    return """## Intended use

Sorting archives of drum one-shots into kit pieces, with a threshold below which files go to `misc`, and a
person who corrects what matters. Not meant for loops, full mixes, onset detection or transcription. A file
that is no drum at all is called `misc` only as far as it resembles the effects, synths, voices and
percussion of the training set."""


_PUBLISHED = {
    "accuracy": "accuracy, six drums and misc",
    "macro_f1": "macro-F1 over the seven",
    "six_accuracy": "accuracy among drums that are called drums",
    "fine_accuracy": "accuracy, fine labels",
    "ece": "ECE, 15 bins",
    "auroc": "AUROC of drums against misc",
    "precision_80": "precision at 80 % coverage",
}
"""Name of a figure → what the card calls it."""


def _figure_rows(metrics: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Iterate over figure, mean of the folds, interval over families, lowest and highest fold."""
    measured, calibration = metrics["calibrated"], metrics["calibration"]
    mean, intervals = measured["mean"], measured["interval"]
    for key, text in _PUBLISHED.items():
        folds = [fold[key] for fold in measured["folds"]]
        yield text, f"{mean[key]:.3f}", _span(intervals[key]), _span((min(folds), max(folds)))
    yield "accuracy, six drums and misc, before calibration", f"{metrics['mean']['accuracy']:.3f}", "", ""
    yield "ECE of all folds together, each by the others", f"{measured['ece_pooled']:.3f}", "", ""
    pooled = (f"{calibration[when]['ece']:.3f}" for when in ("before", "after"))
    yield "ECE of all folds pooled, before and after calibration", ", ".join(pooled), "", ""


def _quality(name: str, metrics: dict[str, Any]) -> str:
    folds, calibration = metrics["folds"], metrics["calibration"]
    header = ("figure", "mean of the folds", "95 % over families", "lowest–highest fold")
    cost = f"{metrics['model']['files_per_cpu_second']:,}"
    return f"""## Quality on kits that it has not heard

{len(folds)} folds by family over {metrics["recordings"]:,} recordings of {metrics["families"]} families; no
family and no content hash is on two sides. Measured, with everything else here, by

    make model    # drumline train model --corpus CORPUS --out models/{name}

{_table(header, _figure_rows(metrics))}

Each fold is calibrated by a temperature from the other folds, as the bundle is by one from all: a canonical
label is a sum over fine ones, so a temperature also turns close decisions. The interval is that of all folds
together, by 1,000 resamples of the families.

The shipped weights are trained on all recordings, so no figure can be measured on them here; the networks of
the folds, trained on four fifths, stand for them. The temperature ({calibration["temperature"]}) is fitted on
the pooled held-out logits of the folds. Prototypes like it lost four to six points on collections unlike
these. The same seed on the same machine gave the same held-out logits, bit for bit; what differs by less than
a point between two settings or seeds is noise.

ONNX and Keras differ by at most {metrics["parity"]["probabilities"]:.1e} in any probability over all
{int(metrics["parity"]["files"]):,} recordings. Cost: {cost} files per CPU-second, model alone, one core,
batch 64, on the machine that made it."""


def _classes(metrics: dict[str, Any]) -> str:
    rows = [
        (
            label,
            f"{scores['precision']:.3f}",
            f"{scores['recall']:.3f}",
            f"{scores['f1']:.3f}",
            f"{scores['support']:,}",
        )
        for label, scores in metrics["classes"].items()
    ]
    header = ("class", "precision", "recall", "F1", "recordings")
    return (
        f"## Per class\n\nOver the held-out recordings of all folds, no threshold.\n\n{_table(header, rows)}"
    )


def _failures(recordings: Sequence[Recording], taxonomy: TrainingTaxonomy, metrics: dict[str, Any]) -> str:
    counts = Counter(taxonomy.fold.get(recording.label, recording.label) for recording in recordings)
    thin = ", ".join(label for label in taxonomy.fine if counts[label] < _FEW)
    rows = [
        (entry["label"], entry["called"], f"{entry['recordings']} of {entry['of']}")
        for entry in metrics["confused"]
    ]
    folded = ", ".join(f"{rare} → {label}" for rare, label in taxonomy.fold.items())
    return f"""## Known failures and limits

What most often goes wrong, by the label in the manifest:

{_table(("label", "called", "recordings"), rows)}

- Labels come from file and folder names, kit maps and General MIDI notes; nobody listened to each file.
  Part of what counts as an error is a wrong or ambiguous label.
- Few cymbals. Fine labels with under {_FEW} recordings say little: {thin or "none"}.
- Too rare to be classes of their own: {folded or "none"}.
- Perc, FX, Synth, Loop and Other are mixed bags; these fine labels are hints, not facts.
- Low toms and kicks, congas and toms, rims and claves, bright rides and crashes differ by a context that one
  hit does not carry.
- Only the first 1.13 s is heard."""


def _training(recordings: Sequence[Recording], taxonomy: TrainingTaxonomy, metrics: dict[str, Any]) -> str:
    settings = metrics["settings"]
    training, architecture = settings["training"], settings["architecture"]
    widths = ", ".join(map(str, architecture["widths"]))
    return f"""## Training

{len(recordings):,} recordings, each in {settings["augment"]["variants"]} versions: as it is, and with random
resampling (pitch and length), shortened or cut tails, equaliser and filters, rooms, drive, low sample rates
and bit depths, noise and shift. {training["epochs"]} epochs of AdamW, weights averaged exponentially. The
loss is the cross-entropy of the fine labels plus that of the summed canonical ones; recordings whose label is
uncertain count less{_doubts(metrics)}.
A fixed first layer makes {architecture["bands"]} standardised log-mel bands of every
frame{_decay(architecture)}; then come a convolution to {architecture["stem"]} channels and blocks
of {widths} channels. What differs from the settings that `drumline train recipe` prints:
{_changed(settings)}. Code: `convert/drumline_convert`."""


def _doubts(metrics: dict[str, Any]) -> str:
    """Return what is said of labels that the training itself doubts."""
    doubted, doubt = metrics.get("doubted"), metrics["settings"]["training"]["doubt"]
    if doubted is None:
        return ""
    return (
        f", and {len(doubted):,} of {metrics['recordings']:,} weigh {doubt['weight']:g} times as much:\n"
        f"{doubt['folds']} networks were trained beforehand, and one that had not heard the recording's\n"
        f"family is {doubt['probability']:.0%} sure of another canonical label. In the folds, only networks "
        "from\nwithin a fold's training side have a say"
    )


def _decay(architecture: dict[str, Any]) -> str:
    step = architecture["decay_step"]
    return f", behind the first {architecture['attack']} of every {step} averaged" if step > 1 else ""


def _changed(settings: dict[str, Any]) -> str:
    from drumline_convert.recipe import flat, shipped_values

    shipped = shipped_values()
    changed = {name: value for name, value in flat(settings).items() if shipped.get(name, value) != value}
    return ", ".join(f"{name} = {value}" for name, value in changed.items()) or "nothing"


def _sources(recordings: Sequence[Recording]) -> str:
    counts = Counter((recording.source, recording.licence) for recording in recordings)
    rows = [(source, licence, f"{count:,}") for (source, licence), count in sorted(counts.items())]
    return f"""## Data and licences

The recordings are not part of this bundle. Licences as each source states them:

{_table(("source", "stated licence", "recordings"), rows)}"""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def with_calibration(card: str, calibration: dict[str, Any]) -> str:
    """Return a card with a section on its calibration, in place of the one that it had."""
    parts = re.split(r"(?m)^(?=## )", card)
    kept = [part for part in parts if not part.startswith(_CALIBRATION)]
    place = next((number for number, part in enumerate(kept) if part.startswith("## Per class")), len(kept))
    kept.insert(place, _calibration_section(calibration))
    return "".join(part.rstrip("\n") + "\n\n" for part in kept).rstrip("\n") + "\n"


_CALIBRATION = "## Calibration"


def _calibration_section(calibration: dict[str, Any]) -> str:
    fitted_on, before, after = (calibration.get(key, {}) for key in ("fitted_on", "before", "after"))
    held = (calibration.get("cross_fitted") or {}).get(calibration.get("method"))
    rows = [
        (name, *(_number(figures.get(key)) for key in ("ece", "nll")))
        for name, figures in (
            ("before", before),
            ("after, on what it was fitted on", after),
            ("after, on families that it was not fitted on", held or {}),
        )
    ]
    ranking = "" if calibration.get("keeps_ranking", True) else " It can change the ranking of fine labels."
    points = calibration.get("operating_points", {})
    return f"""{_CALIBRATION}

By {calibration.get("method")}, version {calibration.get("version")}, fitted on
{fitted_on.get("recordings", 0):,} recordings of {fitted_on.get("families", 0):,} families:
{fitted_on.get("what", "not said")}.{ranking}

{_table(("", "ECE, 15 bins", "negative log-likelihood"), rows)}{_points(points)}
"""


def _points(points: dict[str, Any]) -> str:
    if not points:
        return ""
    rows = []
    for name, point in points.items():
        found = point.get("held_out") or point["fitted"]
        limits = ", ".join(
            f"{label} {'never' if limit is None else f'{limit:.2f}'}"
            for label, limit in point["thresholds"].items()
        )
        rows.append((f"`{name}`", *(_number(found[key]) for key in _EFFECTS), limits))
    header = ("`--threshold`", "right of the believed", "drums kept", "misc believed", "thresholds")
    return f"\n\nOn families that the thresholds were not fitted on:\n\n{_table(header, rows)}"


_EFFECTS = ("precision", "recall", "misc_believed")


def _span(ends: Sequence[float | None]) -> str:
    return "–".join("?" if end is None else f"{end:.3f}" for end in ends)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
