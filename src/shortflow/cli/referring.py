"""`shortflow reference`, and what it shares with `shortflow evaluate`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from shortflow.cli.common import CropName, count, say
from shortflow.cli.progress import progress
from shortflow.errors import ConfigError

__all__ = [
    "Corrupt",
    "Download",
    "FeaturesName",
    "InceptionFile",
    "OtherWeights",
    "Resolution",
    "Split",
    "check_neighbours",
    "check_unused",
    "extractor_of",
    "going_on",
    "reference",
]

FeaturesName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="inception (FID); classifier (the one shipped for the data), classifier:NAME; FILE.pt2, a program of "
        "features; or auto: the classifier for a run without --reference, otherwise inception.",
    ),
]
InceptionFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Weights of the FID Inception-v3, pt_inception-2015-12-05-6726825d.pth; by default what the environment "
        "variable SHORTFLOW_INCEPTION names, or what --download has fetched.",
        show_default=False,
    ),
]
OtherWeights = Annotated[
    bool,
    typer.Option(
        "--other-weights", help="Take Inception weights other than the published ones; the result is not FID."
    ),
]
Download = Annotated[
    bool,
    typer.Option("--download", help="Fetch the published Inception weights (91 MiB) if they are not there; only then."),
]
Resolution = Annotated[
    int | None,
    typer.Option(
        metavar="PIXELS",
        help="Crop and scale images of both sides to this first; by default they must have one size.",
        show_default=False,
    ),
]
Keep = Annotated[
    int,
    typer.Option(metavar="N", help="Features that are kept for KID, precision and recall, at most; 0 for none."),
]
Split = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Which split of the real images: train, test, val or all; by default train, as training has it. Also as "
        "IMAGES:NAME.",
        show_default=False,
    ),
]
Corrupt = Annotated[
    Literal["refuse", "skip"],
    typer.Option(
        metavar="refuse|skip",
        help="Images that cannot be read: refuse them, before anything is computed, or skip them and list them.",
    ),
]


def reference(
    images: Annotated[
        str,
        typer.Argument(
            metavar="IMAGES",
            help="A folder, .zip, .npz, .npy or .tar of images, hf:NAME, or a data set's name (cifar10, cifar10:test).",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="NAME.npz", help="Where the statistics go.", show_default=False)],
    features: FeaturesName = "inception",
    inception: InceptionFile = None,
    other_weights: OtherWeights = False,
    download: Download = False,
    resolution: Resolution = None,
    crop: CropName = None,
    split: Split = None,
    corrupt: Corrupt = "refuse",
    neighbours: Keep = 10_000,
) -> None:
    """Make statistics of images, to compare others with.

    That is done by evaluate --reference. The file holds mu and sigma (and mu_s and sigma_s), as other projects read
    them, some features for KID, precision and recall, and what made them. Interrupted, the same command goes on; under
    torchrun, processes share the work.
    """
    from shortflow import runs

    check_neighbours(neighbours)
    if out.suffix != ".npz":
        raise ConfigError(f"--out {out}: statistics are .npz files; give a name that ends so")
    if out.exists():
        raise ConfigError(f"{out} is there already; give another name, or remove it")
    with runs.processes() as world:
        name = "inception" if features == "auto" else features
        extractor = extractor_of(name, images.partition(":")[0], inception, other_weights, download, world.device)
        with progress("images", title=f"looking at {images}") as looking:
            stored = runs.open_images(
                images, split=split, resolution=resolution, crop=crop or "centre", corrupt=corrupt, report=looking
            )
        for note in stored.notes:
            say(f"note: {note}")
        with going_on(out) as reports:
            found = runs.statistics_of(stored, extractor, keep=neighbours, out=out, world=world, report=reports(images))
    if found is not None:
        for title, reason in stored.skipped:
            say(f"skipped: {title} ({reason})")
        say(f"{count(stored.count, 'image')} of {stored.shape[2]}×{stored.shape[1]} pixels, {extractor.name} → {out}")


# ------------------------------------------------------------------------------------------------ shared by the two


def extractor_of(
    name: str, source: str, inception: Path | None, other_weights: bool, download: bool, device: str
) -> Any:
    from shortflow import runs
    from shortflow.evaluate import download_inception

    name = "inception" if name == "auto" else name
    check_unused({"--inception": inception is not None and name != "inception"}, f"--features {name}")
    if download:
        if name != "inception" or inception is not None:
            raise ConfigError("--download fetches the published Inception weights; leave it out with other ones")
        with progress("bytes", title="Inception weights") as shown:
            download_inception(shown)
    return runs.extractor_named(name, source=source, weights=inception, published=not other_weights, device=device)


def check_unused(given: dict[str, bool], what: str = "the features of the shipped classifier") -> None:
    options = [option for option, is_given in given.items() if is_given]
    if options:
        raise ConfigError(f"{', '.join(options)}: has no meaning for {what}; leave it out")


def check_neighbours(count: int) -> None:
    if count < 0:
        raise ConfigError(f"--neighbours must be at least 0, got {count}")


@contextmanager
def going_on(path: Path) -> Iterator[Callable[[str], Any]]:
    """What shows how far each set of images is; and a word on Ctrl-C: finished chunks are kept."""
    shown = ExitStack()

    def reports(what: str) -> Any:
        shown.close()  # the bar of the set before
        return shown.enter_context(progress("images", title=what))

    try:
        with shown:
            yield reports
    except KeyboardInterrupt:
        say(f"\nStopped before {path} was done; the same command goes on from the last finished chunk")
        raise typer.Exit(130) from None
