"""FID and its kin of a trained model, or of anybody's images, against a reference; the record has every choice."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from shortflow import evaluate
from shortflow.data import images as data_images
from shortflow.data.decoded import Corrupt
from shortflow.data.images import Crop
from shortflow.data.latents import holds_latents
from shortflow.data.stored import Stored, of_dataset, open_images
from shortflow.errors import MetricError
from shortflow.evaluate import Extractor, Plan, Statistics
from shortflow.evaluate.reference import REFERENCE_ORDER, SAMPLE_ORDER
from shortflow.evaluate.score import ADM_SIZE, SPLITS
from shortflow.hub import Model, fingerprint
from shortflow.runs.decoding import check_decoder
from shortflow.runs.drawing import Drawing
from shortflow.runs.gathering import Part, World, chunks_beside, done_with, gather
from shortflow.runs.loading import load_data
from shortflow.runs.sampling import draw, held_out_conditions, steps_named
from shortflow.runs.streaming import BATCH
from shortflow.typing import Report

__all__ = [
    "Compared",
    "compare",
    "drawn_images",
    "extractor_named",
    "statistics_of",
    "training_images",
]

FEATURES = 10_000  # of a side, for KID, precision and recall
_POINTS = "features are those of images, and this model makes points; leave out --features"

# Given (what is being done, Report or None): who shows it, and how.
Reports = Callable[[str], Report | None]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What is scored: sets of images by the names of their rows, and the settings that made them."""

    images: Mapping[str, Stored]
    made: Mapping[str, Any] = field(default_factory=dict)


def extractor_named(
    name: str,
    *,
    source: str | None = None,
    weights: Path | None = None,
    published: bool = True,
    device: str = "cpu",
) -> Extractor:
    """The features by the name that a command line gives them.

    Args:
        name: "inception"; "classifier", the one shipped for the data `source`; "classifier:NAME"; or a .pt2 file.
        weights, published: as for `load_inception`.

    Raises:
        MetricError: if there are none of that name, or their weights are not there.
    """
    if name == "inception":
        return evaluate.load_inception(weights, device=device, published=published)
    kind, _, data = name.partition(":")
    if kind == "classifier":
        return evaluate.classifier_features(evaluate.load_classifier(data or source or "", device))
    if name.endswith(".pt2"):
        return evaluate.load_program(name, device=device)
    raise MetricError(
        f"there are no features {name!r}; give inception, classifier, classifier:NAME ("
        f"{', '.join(evaluate.classifier_names())}), or a file of shortflow.evaluate.save_program, NAME.pt2"
    )


def drawn_images(
    model: Model, steps: Sequence[int], n: int, *, resolution: int | None = None, **drawing: Any
) -> Compared:
    """n images of a model in each number of steps, drawn when they are read, and never held together.

    Latents are decoded as they are drawn.

    Args:
        resolution: what the images are cropped and scaled to; None: as they are.
        drawing: the fields of `Drawing`: seed, guidance, window, sampler, grid, middle, bf16, and for a model of
            latents the autoencoder (`decoding`).

    Raises:
        MetricError: if the model makes points, or latents that nothing decodes.
        ConfigError: if the autoencoder is not the one that the latents were made with.
        SamplerError: if it cannot be sampled so.
    """
    spec, how = model.spec, Drawing(**drawing)
    if spec.kind == "points":
        raise MetricError(_POINTS)
    if spec.kind == "latents" and how.autoencoder is None:
        raise MetricError(
            "features are those of images, and this model makes latents; give the autoencoder that decodes them "
            "(--encoder FOLDER)"
        )
    if how.autoencoder is not None:
        check_decoder(how.autoencoder, spec)
    made = {
        **how.record(model),
        "sha256": fingerprint(model.path),
        "batch": BATCH,
        "compiled": getattr(model.flow.network, "_compiled_call_impl", None) is not None,
    }
    if spec.num_classes:
        made["classes"] = f"in turn: sample k is of class k mod {spec.num_classes}"
    conditions, split = held_out_conditions(model)
    if conditions is not None:
        told = np.arange(min(n, len(conditions)))
        how = replace(how, condition=torch.from_numpy(conditions.take(told)))
        made["conditions"] = f"the first {len(told):,} of {split}, in turn"
    rows = {
        steps_named(count): _drawn(model, n, how.settings(model.flow, times), f"{made} {times}", resolution)
        for count, times in how.grids(model.flow, steps).items()
    }
    return Compared(images=rows, made=made)


def _drawn(model: Model, n: int, settings: Mapping[str, Any], identity: str, resolution: int | None) -> Stored:
    spec, data = model.spec, model.run.data
    c, h, w = spec.shape if spec.latent is None else spec.latent.pixels

    def read(first: int, last: int) -> Any:
        for part in draw(model.flow, spec, last, first=first, batch_size=BATCH, **settings):
            pixels = np.asarray(part.pixels)
            yield pixels if resolution is None else data_images.resize(pixels, resolution)  # squares: by any crop

    return Stored(
        source=str(model.path),
        count=n,
        shape=(c, h, w) if resolution is None else (c, resolution, resolution),
        formats={"drawn": n},
        identity=identity,
        resolution=resolution,
        crop=data.crop if spec.kind == "latents" or data.resolution is not None else None,
        read=read,
    )


def training_images(model: Model, resolution: int | None = None, split: str = "train") -> Stored:
    """The images that a model was trained on, also those whose latents were made while it was trained.

    Raises:
        DataError: if they are not there.
        MetricError: if it was trained on stored latents, or points.
    """
    if model.spec.kind == "points":
        raise MetricError(_POINTS)
    data, folder = model.run.data, Path(model.run.data.source).expanduser()
    if model.spec.kind == "latents" and (data.encoder is None or (folder.is_dir() and holds_latents(folder))):
        raise MetricError(
            f"{model.path}: this model was trained on latents, which are no images to compare with; give a reference "
            "(--reference STATS|IMAGES)"
        )
    found = of_dataset(load_data(data, split, resolution=resolution))
    return replace(found, crop=None if resolution is None and data.resolution is None else data.crop)


def statistics_of(
    images: Stored,
    extractor: Extractor,
    *,
    keep: int = 10_000,
    out: Path | None = None,
    world: World | None = None,
    report: Report | None = None,
) -> Statistics | None:
    """The statistics of all images, as a reference, written to `out`; None in processes other than the first.

    Arguments are those of `Plan` and `gather`.
    """
    plan = Plan(n=images.count, keep=keep, order=REFERENCE_ORDER)
    with chunks_beside(out, [(images, extractor, plan)], world):
        tally = gather(images, extractor, plan, beside=out, world=world, report=report)
        if tally is None:
            return None
        found = Statistics.of(tally, extractor, images.source, images.skipped, images.crop)
        if out is not None:
            found.save(out)
            done_with(out, images, extractor, plan)
        return found


def compare(
    compared: Compared,
    reference: str | Path | Stored,
    extractor: Extractor,
    *,
    resolution: int | None = None,
    crop: Crop = "centre",
    neighbours: int | Literal["adm"] | None = None,
    ordered: bool = False,
    k: int = 3,
    out: Path | None = None,
    world: World | None = None,
    reports: Reports = lambda what: None,
    split: str | None = None,
    corrupt: Corrupt = "refuse",
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any] | None:
    """The record of every set of images against the reference; None in processes other than the first.

    Args:
        reference: statistics (.npz with mu and sigma), or images as for `open_images`, which are then seen first; or
            what the run was trained on (`training_images`).
        resolution: what both sides are brought to; it must have been given for `compared` too.
        crop: how images of the reference become squares of it.
        neighbours: features of each side that KID, precision and recall are taken of, at most; "adm": those of all
            samples beside 10,000 of the reference; None: the latter where the reference is a file of ADM's, with
            statistics and images, and otherwise 10,000.
        ordered: see `Plan`.
        k: which neighbour they are of.
        out: the file that the record is for; the parts of the work are kept beside it until all is done.
        split, corrupt: as for `open_images`, of the reference where it is images.
        say: told the notes on images of both sides, before any is seen.

    Raises:
        MetricError: if reference and images cannot be compared, before any image is seen.
        DataError: if there are no such images.
    """
    world = world or World()
    sets = list(compared.images.values())
    known, images = _opened(reference, resolution, crop, split, corrupt, reports)
    said = known or _expected(images, extractor)
    for each in sets:
        if each.count < 2:
            raise MetricError(f"{each.source}: {each.count} image is too few; a covariance needs 2, a figure thousands")
        evaluate.check_comparable(said, extractor, (each.shape[1], each.shape[2]), each.crop)
    for note in dict.fromkeys(note for each in (images, *sets) if each is not None for note in each.notes):
        say(f"note: {note}")
    spatial = said.spatial is not None or known is None
    adm = neighbours == "adm" or (neighbours is None and known is not None and images is not None)
    most = neighbours if isinstance(neighbours, int) else FEATURES

    def planned(images: Stored, order: int, keep: int) -> Part:
        plan = Plan(n=images.count, keep=keep, order=order, spatial=spatial, ordered=ordered)
        return images, extractor, plan

    # Where the statistics came with images (ADM), those give the features of the reference.
    real = None if images is None else planned(images, REFERENCE_ORDER, most)
    made = {label: planned(each, SAMPLE_ORDER, each.count if adm else most) for label, each in compared.images.items()}

    def statistics(what: str, part: Part) -> Statistics | None:
        tally = gather(*part, beside=out, world=world, report=reports(what))
        return None if tally is None else Statistics.of(tally, extractor, part[0].source, part[0].skipped, part[0].crop)

    parts = [*([] if real is None else [real]), *made.values()]
    with chunks_beside(out, parts, world):
        base = _joined(known, None if real is None else statistics("reference", real))
        found = {label: statistics(label, part) for label, part in made.items()}
        if world.rank > 0 or base is None:
            return None
        rows = {
            label: evaluate.compare_statistics(
                each, base, k=k, neighbours=most, samples=each.count if adm else None, device=extractor.device
            )
            for label, each in found.items()
            if each is not None
        }
        if out is not None:
            for part in parts:
                done_with(out, *part)
    return {
        "made": dict(compared.made) or _stored(sets[0]),
        "resolution": [sets[0].shape[1], sets[0].shape[2]],
        "resize": None if resolution is None else f"to {resolution}",
        "crop": sets[0].crop,
        "rounding": "uint8: nearest level, clamped to 0…255" if compared.made else "uint8, as stored",
        "features": extractor.record() | {"origin": dict(extractor.origin)},
        "reference": base.record()
        | {"formats": {} if images is None else images.formats, "own": isinstance(reference, Stored)},
        "neighbours": f"{'all samples' if adm else f'{most:,} samples'} and {most:,} of the reference, at most",
        "inception_score_splits": f"{ADM_SIZE:,} images each, in order" if ordered else f"{SPLITS}, in a random order",
        "torch": torch.__version__,
        "rows": rows,
    }


def _stored(images: Stored) -> dict[str, Any]:
    """What images that are there were made of."""
    return {
        "source": images.source,
        "formats": images.formats,
        "skipped": [list(each) for each in images.skipped],
    }


def _opened(
    reference: str | Path | Stored,
    resolution: int | None,
    crop: Crop,
    split: str | None,
    corrupt: Corrupt,
    reports: Reports,
) -> tuple[Statistics | None, Stored | None]:
    """The statistics in a file, if it is one; and the images of the reference, if there are any."""
    if isinstance(reference, Stored):
        return None, reference
    path = Path(reference).expanduser()
    pickled = path.suffix in (".pkl", ".pickle")  # which the reader refuses, in words
    if not pickled and not (path.suffix == ".npz" and evaluate.holds_statistics(path)):
        looking = reports("looking at the reference")
        options: dict[str, Any] = {"split": split, "resolution": resolution, "corrupt": corrupt}
        return None, open_images(reference, **options, crop="centre" if resolution is None else crop, report=looking)
    if split is not None:
        raise MetricError(f"{path}: statistics have no splits; leave out the split {split}")
    known = evaluate.read_statistics(path)
    if known.rows is not None or not evaluate.holds_images(path):
        return known, None
    images = open_images(path)
    return replace(known, resolution=known.resolution or (images.shape[1], images.shape[2])), images


def _expected(images: Stored | None, extractor: Extractor) -> Statistics:
    """What the statistics of images will say of themselves."""
    assert images is not None
    empty = torch.zeros(extractor.dimension, dtype=torch.float64)
    return Statistics(
        features=evaluate.Gaussian(mean=empty, cov=torch.diag(empty)),
        resolution=(images.shape[1], images.shape[2]),
        crop=images.crop,
        extractor=extractor.record(),
        source=images.source,
    )


def _joined(known: Statistics | None, side: Statistics | None) -> Statistics | None:
    if known is None or side is None:
        return known or side
    return replace(known, rows=side.rows)
