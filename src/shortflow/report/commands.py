"""The commands that score a run: which one can, by what its data are, and the one that made a record."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shortflow.data import Dataset, DataSpec
from shortflow.data.formats import found_at
from shortflow.data.latents import holds_latents, read_meta
from shortflow.errors import DataError, MetricError, ShortflowError
from shortflow.evaluate.classifier import classifier_names, load_classifier
from shortflow.evaluate.inception import find_inception
from shortflow.report.metrics import made_of, steps_of

__all__ = ["score_command", "scored_by", "unscored"]


def score_command(run: str | Path, data: Dataset | DataSpec, source: str) -> str:
    """What to give the command line to score a run, complete but where only its user knows what is real.

        points, images of a shipped classifier    shortflow evaluate RUN
        other images, latents made of images      shortflow evaluate RUN --features inception
        stored latents                            shortflow evaluate RUN --reference IMAGES --resolution SIDE

    The Inception weights are fetched by it where they are not at hand.

    Args:
        data: what the run is trained on; source: where that lies, as the run file says.
    """
    words = ["shortflow", "evaluate", str(run)]
    if data.kind == "points" or (data.kind == "images" and _classified(source, data.shape)):
        return shlex.join(words)
    words += ["--features", "inception"]
    folder = Path(source).expanduser()
    if data.kind == "latents" and (not found_at(source) or (folder.is_dir() and holds_latents(folder))):
        assert data.latent is not None
        words += [*_encoded_images(folder), "--resolution", str(data.latent.pixels[1])]
    try:
        find_inception()
    except MetricError:
        words.append("--download")
    return shlex.join(words)


def _classified(source: str, shape: tuple[int, ...]) -> bool:
    return source in classifier_names() and tuple(load_classifier(source).network.shape) == shape


def _encoded_images(folder: Path) -> list[str]:
    """The images that a store of latents was made of, as a reference; IMAGES where it does not say."""
    for place in (folder, folder / "train"):
        try:
            source = read_meta(place)["source"]
        except DataError:
            continue
        split = [] if source["split"] == "train" else ["--split", source["split"]]
        return ["--reference", source["where"], *split] if "where" in source else ["--reference", "IMAGES"]
    return ["--reference", "IMAGES"]


def unscored(directory: Path, description: Mapping[str, Any] | None, source: str | None) -> str:
    """A sentence on a run without scores, with the command that scores it.

    Args:
        description: what the model's header says; source: where the data lie; None where that cannot be read.
    """
    command = f"shortflow evaluate {directory}"
    try:
        if description is not None and source is not None:
            command = score_command(directory, DataSpec.from_dict(description["data"]), source)
    except (ShortflowError, OSError, KeyError, TypeError, ValueError):  # of a header that is not ours
        pass
    return f"It has not been scored: {command}."


def scored_by(target: str, record: Mapping[str, Any]) -> str | None:
    """The command that makes a record of a run again; None where it does not say enough.

    Args:
        target: the run that is to be scored.
    """
    rows = {name: row for name, row in record["rows"].items() if steps_of(name)}
    features = _features(record)
    if not rows or features is None:
        return None
    words = ["shortflow", "evaluate", target, "--steps", ",".join(str(steps_of(name)) for name in rows)]
    words += ["--n", str(next(iter(rows.values())).get("n")), *features, *_sampling_options(made_of(record))]
    return shlex.join(words)


def _features(record: Mapping[str, Any]) -> list[str] | None:
    """The options of features and reference; none for evaluation.json, None where no command names these features."""
    known, reference = record.get("features"), record.get("reference")
    if not isinstance(known, Mapping):
        return []
    name = str(known.get("name"))
    if name.startswith("inception"):
        words = ["--features", "inception"] + ["--other-weights"] * (not known.get("published"))
    elif name.startswith("classifier-"):
        words = ["--features", f"classifier:{name.removeprefix('classifier-')}"]
    else:
        return None
    if not isinstance(reference, Mapping) or not reference.get("source"):
        return None
    if reference.get("own"):  # what the run was trained on, which it knows itself
        split = str(reference["source"]).rpartition(":")[2]
        words += [] if split == "train" else ["--split", split]
    else:
        words += ["--reference", str(reference["source"])]
    sides = record.get("resolution")
    return words + (["--resolution", str(sides[0])] if record.get("resize") and isinstance(sides, Sequence) else [])


def _sampling_options(made: Mapping[str, Any]) -> Iterator[str]:
    for key, option, usual in (
        ("seed", "--seed", 0),
        ("guidance", "--guidance", 1.0),
        ("grid", "--grid", None),
        ("middle", "--middle", None),
    ):
        value = made.get(key)
        if value is not None and value != usual:
            yield from (option, str(value))
    window = made.get("window")
    if isinstance(window, list):
        yield from ("--window", ",".join(map(str, window)))
    if made.get("precision") == "bf16":
        yield "--bf16"
