"""`shortflow evaluate`."""

import hashlib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from shortflow.cli.common import Bf16, Compile, CropName, Encoder, Guidance, Imports, Window, numbers, say, window_of
from shortflow.cli.progress import progress
from shortflow.cli.referring import (
    Corrupt,
    Download,
    FeaturesName,
    InceptionFile,
    OtherWeights,
    Resolution,
    Split,
    check_neighbours,
    check_unused,
    extractor_of,
    going_on,
)
from shortflow.cli.sampling import GammaShare, GridName, SamplerName, loaded
from shortflow.errors import ConfigError

__all__ = ["evaluate"]


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RUN|IMAGES",
            help="A run directory or a model.safetensors file; or anybody's images: a folder, .zip, .npz, .npy or "
            ".tar.",
            show_default=False,
        ),
    ],
    steps: Annotated[str, typer.Option(help="Numbers of steps, with commas.")] = "1,2,4,8",
    n: Annotated[
        int | None,
        typer.Option(
            "--n",
            "-n",
            help="Samples per number of steps, by default 1000, or 50000 with --reference or --features. Scores are "
            "only comparable at equal n.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="STATS|IMAGES",
            help="What to compare with: statistics (.npz with mu and sigma), or images, as a path or a data set's name "
            "(cifar10, cifar10:test). For a run by default the images it was trained on.",
            show_default=False,
        ),
    ] = None,
    features: FeaturesName = "auto",
    inception: InceptionFile = None,
    other_weights: OtherWeights = False,
    download: Download = False,
    resolution: Resolution = None,
    crop: CropName = None,
    split: Split = None,
    corrupt: Corrupt = "refuse",
    neighbours: Annotated[
        str,
        typer.Option(
            metavar="N|adm",
            help="Features of each side that KID, precision and recall are taken of, at most, 0 for none; or adm: all "
            "samples beside 10000 of the reference. By default 10000, and adm with a reference file of ADM's.",
        ),
    ] = "auto",
    is_splits: Annotated[
        Literal["mixed", "ordered"],
        typer.Option(
            "--is-splits",
            metavar="mixed|ordered",
            help="Inception score of ten mixed parts of the images; or, as ADM has it, ordered: of 5000 images each in "
            "their order.",
        ),
    ] = "mixed",
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    guidance: Guidance = 1.0,
    window: Window = None,
    sampler: SamplerName = "auto",
    gamma: GammaShare = None,
    grid: GridName = "auto",
    middle: Annotated[
        float | None, typer.Option(metavar="T", help="The time in the middle of two steps, instead of --grid's.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="JSON file; by default evaluation.json beside the model, or with --reference or --features "
            "evaluation-FEATURES@REFERENCE.json; beside images IMAGES.evaluation-FEATURES@REFERENCE.json."
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="For a run and its shipped classifier: write the samples there, an array for each number of steps, "
            "and score them from there: if that is interrupted, the same command goes on where it stopped.",
            show_default=False,
        ),
    ] = None,
    bf16: Bf16 = False,
    compile: Compile = False,
    encoder: Encoder = None,
    imports: Imports = None,
) -> None:
    """Score a model, or anybody's images, beside real data.

    A run is scored by number of steps, in the features of the classifier that is shipped for its data, next to held-out
    images; with --reference or --features in those of Inception (FID, sFID, Inception score, KID, precision and recall)
    or of a network of yours, for which latents are decoded as they are drawn. Every choice that a figure depends on is
    written to the JSON file beside it. Interrupted, the same command goes on where it stopped; under torchrun, several
    processes share the work and give the same figures.
    """
    from shortflow import runs
    from shortflow.data.images import check_square

    most = _neighbours(neighbours)
    rule, kind, acting = runs.sampler_named(sampler, gamma), runs.grid_named(grid), window_of(window)
    settings: dict[str, Any] = {
        "seed": seed,
        "guidance": guidance,
        "window": acting,
        "sampler": rule,
        "grid": kind,
        "middle": middle,
        "bf16": bf16,
    }
    is_run = _is_run(target)
    if is_run and reference is None and features in ("auto", "classifier"):
        unused = {"--resolution": resolution is not None, "--inception": inception is not None}
        unused |= {"--crop": crop is not None}
        unused |= {"--split": split is not None, "--corrupt": corrupt == "skip", "--is-splits": is_splits == "ordered"}
        check_unused(unused)
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise ConfigError(
                "scores in the features of the shipped classifier are for one process; start it without a launcher, or "
                "give --reference or --features"
            )
        number = 1000 if n is None else n
        _score(Path(target), numbers(steps, "--steps"), number, settings, out, keep, compile, encoder)
        return
    check_unused({"--keep": keep is not None}, "these features, whose sums are kept beside the result")
    with runs.processes() as world:
        weights = (inception, other_weights, download, world.device)
        if is_run:
            model = loaded(Path(target), compile, world.device)
            counts, number = numbers(steps, "--steps"), 50_000 if n is None else n
            if reference is None:
                own = {"--corrupt": corrupt == "skip", "--crop": crop is not None}
                check_unused(own, "the images that a run was trained on: its data.corrupt and data.crop count")
            check_square(resolution, crop or "centre")
            crop = crop or model.run.data.crop
            known = reference or runs.training_images(model, resolution, split or "train")
            settings["autoencoder"] = world.in_turn(lambda: _decoder(model, encoder, world.device))
            compared = runs.drawn_images(model, counts, number, resolution=resolution, **settings)
            extractor = extractor_of(features, model.run.data.source, *weights)
        else:
            made = {"--n": n is not None, "--compile": compile, "--bf16": bf16, "--sampler": rule is not None}
            made |= {"--encoder": encoder is not None}
            check_unused(made | {"--guidance": guidance != 1, "--window": acting is not None}, "images that are there")
            if reference is None:
                raise ConfigError(
                    f"{target}: say what to compare these images with: --reference STATS.npz, or --reference IMAGES"
                )
            extractor, known = extractor_of(features, reference.partition(":")[0], *weights), reference
            with progress("images", title=f"looking at {target}") as looking:
                images = runs.open_images(
                    target, resolution=resolution, crop=crop or "centre", corrupt=corrupt, report=looking
                )
            compared = runs.Compared(images={Path(target).name or target: images})
        path = out or _place(target, extractor.name, reference, split, is_run)
        with going_on(path) as reports:
            record = runs.compare(
                compared,
                known,
                extractor,
                resolution=resolution,
                crop=crop or "centre",
                neighbours=most,
                ordered=is_splits == "ordered",
                out=path,
                world=world,
                reports=reports,
                split=None if reference is None else split,
                corrupt=corrupt,
                say=say,
            )
    if record is not None:
        _show(record, path)


# -------------------------------------------------------------------------------------------------------------- helpers


def _is_run(target: str) -> bool:
    """Whether a run is meant: one that is there, or anything that is no image file, folder or data set."""
    from shortflow.data import names
    from shortflow.data.formats import is_source
    from shortflow.data.stored import parted

    name, split = parted(target)
    path = Path(name).expanduser()
    if path.is_dir():
        return split is None and ((path / "model.safetensors").is_file() or (path / "run.yaml").is_file())
    return name not in names() and not is_source(name)


def _neighbours(text: str) -> int | Literal["adm"] | None:
    if text in ("auto", "adm"):
        return "adm" if text == "adm" else None
    try:
        found = int(text)
    except ValueError:
        raise ConfigError(f"--neighbours {text}: give a number of features, or adm") from None
    check_neighbours(found)
    return found


def _decoder(model: Any, encoder: str | None, device: str) -> Any:
    """The autoencoder of a model of latents, None for one of images."""
    from shortflow import runs
    from shortflow.errors import MetricError

    found = runs.decoding(model.spec, model.run.data.encoder, encoder, device=device, say=say)
    if found.note is not None:
        raise MetricError(found.note)
    if found.unverified is not None:
        say(f"note: {found.unverified}")
    return found.autoencoder


def _place(target: str, features: str, reference: str | None, split: str | None, is_run: bool) -> Path:
    """Where a record goes by default: features and reference each have their own, but for the images of a run itself,
    evaluation-FEATURES.json."""
    path = Path(target.replace("/", "-") if target.startswith("hf:") else target).expanduser()
    against = ("" if split is None else f"@{split}") if reference is None else f"@{_key(reference, split)}"
    if is_run:
        return (path if path.is_dir() else path.parent) / f"evaluation-{features}{against}.json"
    return path.with_name(f"{_plain(path.name)}.evaluation-{features}{against}.json")


def _key(reference: str, split: str | None) -> str:
    """The name of a reference in that of a file; of one on a disk with the beginning of a sum of its place."""
    from shortflow.data import names
    from shortflow.data.stored import parted

    name, named = parted(reference)
    path, which = Path(name).expanduser(), split or named
    end = "" if which is None else f"-{which}"
    if name in names() or not path.exists():
        return _plain(f"{name}{end}")
    return _plain(f"{path.stem}{end}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}")


def _plain(name: str) -> str:
    """Without what stands in patterns, splits and paths."""
    return re.sub(r"[:{},*?\[\]/\\]", "-", name)


def _score(
    run: Path,
    counts: list[int],
    n: int,
    settings: dict[str, Any],
    out: Path | None,
    keep: Path | None,
    compile: bool,
    encoder: str | None,
) -> None:
    from shortflow import runs
    from shortflow.evaluate import write_record

    model = loaded(run, compile)
    if model.spec.latent is None:
        runs.decoding(model.spec, encoder=encoder)  # which refuses one
    try:
        with progress("sampling steps", title="scoring") as shown:
            record = runs.score(model, counts, n=n, keep=keep, report=shown, **settings)
    except KeyboardInterrupt:
        kept = f"the same command goes on with the samples in {keep}"
        say(f"\nStopped; {'nothing is kept, which --keep FOLDER would change' if keep is None else kept}")
        raise typer.Exit(130) from None
    path = out or model.path.parent / "evaluation.json"
    write_record(path, record)
    say(runs.score_table(record))
    for line in runs.verdict(record):
        say(line)
    say(f"→ {path}")


def _show(record: dict[str, Any], path: Path) -> None:
    from shortflow import runs
    from shortflow.evaluate import write_record

    write_record(path, record)
    say(runs.compared_table(record))
    for line in runs.remarks(record):
        say(f"Note: {line}.")
    say(f"→ {path}")
