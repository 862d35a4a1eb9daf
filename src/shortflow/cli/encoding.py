"""`shortflow encode`."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from shortflow.cli.common import CropName, Imports, count, numbers, say
from shortflow.cli.progress import progress
from shortflow.errors import ConfigError

__all__ = ["encode"]


def encode(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Images, as for train --data: a folder, .zip, .npz, .tar shards, tables, hf:NAME, or a named set. Or "
            "latents: another repository's LMDB, to import; or finished LATENTS, to change --scale and --shift of.",
            show_default=False,
        ),
    ],
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER",
            help="The autoencoder: sd-vae-ft-ema, sd-vae-ft-mse, OWNER/REPOSITORY on the Hugging Face hub, a folder.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="LATENTS", help="Folder for the latents.", show_default=False)
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Crop and resize images to this side, in pixels; needed for photographs.")
    ] = None,
    crop: CropName = None,
    split: Annotated[str, typer.Option(help="Which split of the source: train, test, all, or its own.")] = "train",
    image: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of shards and tables: the field or column that is the image.", show_default=False
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The field or column that is the label; none leaves labels out, folder is the first sub-folder.",
            show_default=False,
        ),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="Latents are used as (z − shift)·scale: one number, one for each channel with commas, or `measured` "
            "for deviation 1. By default what the autoencoder's config says.",
            show_default=False,
        ),
    ] = None,
    shift: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS", help="See --scale; `measured` is the mean of each channel.", show_default=False
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images a pass of the autoencoder.")] = 32,
    shard_size: Annotated[int, typer.Option(help="Images of a file, which an interruption costs at most.")] = 4096,
    dtype: Annotated[str, typer.Option(help="Of the stored numbers: float16 or float32.")] = "float16",
    corrupt: Annotated[
        str,
        typer.Option(help="Images that cannot be read: `refuse` lists them at the end, `skip` leaves them out."),
    ] = "refuse",
    device: Annotated[
        str | None, typer.Option(help="Such as cpu or cuda:1; by default a GPU if there is one.", show_default=False)
    ] = None,
    imports: Imports = None,
) -> None:
    """Encode images to latents, for training on.

    The folder LATENTS gets the moments of the latents of every image and of its mirror, labels, and what they were made
    with. Several processes share the work (torchrun -m shortflow encode …). Interrupted, the same command goes on.
    """
    from shortflow import runs
    from shortflow.data.latents import META
    from shortflow.data.lmdblatents import is_lmdb, open_lmdb
    from shortflow.data.sources import open_source
    from shortflow.train.engine import Engine

    columns: dict[str, Any] = {"image": image, "label": label, "corrupt": corrupt}

    units = {"scale": _units(scale, "--scale"), "shift": _units(shift, "--shift")}
    _check_units(**units)
    if (Path(source) / META).is_file():
        _rescale(Path(source), units, {"--encoder": encoder, "--out": out})
        return
    if encoder is None or out is None:
        raise ConfigError(
            "give the autoencoder and a folder for the latents: shortflow encode SOURCE --encoder sd-vae-ft-ema --out "
            "LATENTS"
        )
    settings = runs.EncodeSettings(batch=batch, shard=shard_size, dtype=dtype, corrupt=corrupt)  # type: ignore[arg-type]
    engine = Engine()
    place = engine.device if device is None else _device(device)
    autoencoder = engine.in_turn(lambda: _autoencoder(encoder, place))
    if is_lmdb(Path(source)):
        feed: Any = runs.Stored(open_lmdb(Path(source)), autoencoder)
    else:
        images = open_source(source, split, resolution, crop=crop or "centre", **columns)
        for note in images.notes:
            say(f"note: {note}")
        feed = runs.Images(images, autoencoder)
    try:
        with progress("images", title="encoding") as shown:
            made = runs.encode(feed, autoencoder, out, settings=settings, **units, engine=engine, report=shown, say=say)
    except KeyboardInterrupt:
        say(f"\nStopped; finished shards are kept in {out}, and the same command goes on from there")
        raise typer.Exit(130) from None
    _tell(made, out, "" if crop in (None, "centre") else f" --set data.crop={crop}")


def _autoencoder(encoder: str, device: Any) -> Any:
    from shortflow.data.encoders import load_autoencoder

    return load_autoencoder(encoder, device, say=say)


def _units(text: str | None, option: str) -> Any:
    return text if text in (None, "measured") else numbers(text, option, float)


def _check_units(scale: Any, shift: Any) -> None:
    """Raise `ConfigError` for numbers that no latents can have, before any is made."""
    for option, values, good in (("--scale", scale, "positive and finite"), ("--shift", shift, "finite")):
        known = values if isinstance(values, list) else []
        if not all(math.isfinite(value) and (value > 0 or option == "--shift") for value in known):
            raise ConfigError(f"{option} must be {good}, got {','.join(map(str, known))}")


def _device(name: str) -> Any:
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise ConfigError(
            f"--device {name} cannot be used ({why}); leave it out, or give another such as cpu"
        ) from error
    return name


def _rescale(folder: Path, units: dict[str, Any], others: dict[str, Any]) -> None:
    from shortflow import runs
    from shortflow.data.latentspec import in_short

    given = [name for name, value in others.items() if value is not None]
    if given or not any(value is not None for value in units.values()):
        raise ConfigError(
            f"{folder} holds finished latents; give --scale or --shift to use them in other units"
            + (f", and leave out {' and '.join(given)}" if given else "")
        )
    latent = runs.rescaled(folder, **units)
    say(
        f"{folder}: latents are used as (z − shift)·scale with scale {in_short(latent.scale)} and shift "
        f"{in_short(latent.shift)}"
    )


def _tell(made: Any, out: Path, settings: str) -> None:
    from shortflow.data.latentspec import in_short

    kind = count(len(made.classes), "class", "classes") if made.classes else "unconditional"
    there = f" ({made.before:,} of them were there)" if made.before else ""
    say(f"{made.count:,} latents, {kind}{there}: {made.bytes / 2**20:,.1f} MiB → {out}")
    for _, title, why in made.skipped[:5]:
        say(f"left out: {title} ({why})")
    if len(made.skipped) > 5:
        say(f"left out: {len(made.skipped) - 5} more, see {out / 'meta.json'}")
    mean, std = made.measured
    say(f"of each channel: mean {in_short(mean)}, standard deviation {in_short(std)}")
    used = [deviation * k for deviation, k in zip(std, made.latent.scale, strict=True)]
    say(
        f"used as (z − shift)·scale: scale {in_short(made.latent.scale)}, shift {in_short(made.latent.shift)}, which "
        f"gives standard deviations {in_short(used)}"
    )
    if made.psnr is not None:
        say(f"decoded again: PSNR {made.psnr[0]:.1f} dB, of the mirrors {made.psnr[1]:.1f} dB")
    say(f"{'Images beside their' if made.psnr else 'Some'} decoded latents: {out / 'decoded.png'}")
    say(f"Train:   shortflow train esc --data {out}{settings} --out out/latents")
