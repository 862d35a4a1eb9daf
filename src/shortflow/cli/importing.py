"""`shortflow import`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from shortflow.cli.common import Settings, count, numbers, say

__all__ = ["import_weights"]


def import_weights(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Weights as their authors publish them: .pt, .pth, .bin, .ckpt, .safetensors, .npz."
        ),
    ],
    kind: Annotated[
        str, typer.Option("--from", metavar="KIND", help="esc, meanflow, sit, repa or dit: whose weights they are.")
    ],
    out: Annotated[Path, typer.Option(help="Directory for the model, which must not hold one.")],
    average: Annotated[
        bool | None,
        typer.Option(
            "--ema/--model",
            help="The averaged weights, or those that were trained; by default the average where there is one.",
            show_default=False,
        ),
    ] = None,
    heads: Annotated[
        int | None, typer.Option(help="Attention heads; by default those of the published size of that width.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="Number of classes; by default the last row of the table is “no class”.")
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Side of the images in pixels, for weights without positions.")
    ] = None,
    pixels: Annotated[bool, typer.Option("--pixels", help="The network sees images in [−1, 1], not latents.")] = False,
    latent_scale: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="What latents were multiplied by, one number or one for each channel with commas: 1/deviation, where "
            "they were normalised; by default the number of the project.",
            show_default=False,
        ),
    ] = None,
    latent_shift: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="What was taken off them before, such as their mean; by default 0.",
            show_default=False,
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The autoencoder that they were made with, if it is another than the project's (sd-vae-ft-ema or "
            "sd-vae-ft-mse).",
            show_default=False,
        ),
    ] = None,
    data: Annotated[str, typer.Option(help="Name of the data that they were trained on.")] = "imagenet",
    settings: Settings = None,
) -> None:
    """Make a model of weights that others publish.

    Of ESC, MeanFlow, SiT, REPA and DiT. Sizes are read off the tensors. Nothing in the file is executed; one that
    cannot be read so is refused with the way to convert it. The model can then be sampled, scored, shown, distilled and
    trained on as one of your own.
    """
    from shortflow.hub import interop

    imported = interop.read(
        kind,
        file,
        average=average,
        heads=heads,
        classes=classes,
        resolution=resolution,
        pixels=pixels,
        latent_scale=None if latent_scale is None else numbers(latent_scale, "--latent-scale", float),
        latent_shift=None if latent_shift is None else numbers(latent_shift, "--latent-shift", float),
        encoder=encoder,
        data=data,
        settings=tuple(settings or ()),
    )
    path = interop.write(imported, out)
    say(f"{_described(imported)} → {path}")
    for note in imported.origin["notes"]:
        say(f"note: {note}")
    guided = imported.flow.guided
    if guided is not None:
        say(f"note: taken to have guidance in the weights, as published ({guided}); --set changes that")
    steps = " --steps 50" if imported.flow.ends == "diagonal" else ""
    decoder = "" if imported.spec.latent is None else f" --encoder {imported.spec.latent.encoder}"
    say(f"Samples: shortflow sample {out}{steps}{decoder} --out samples.png")


def _described(imported: Any) -> str:
    """The weights in a line."""
    from shortflow.config import in_words

    spec, network = imported.spec, imported.flow.network
    sides = "×".join(map(str, spec.shape))
    seen = f"images {sides}" if spec.latent is None else f"latents {sides} {spec.latent.in_words()}"
    null = " and “no class”" if getattr(network, "null_label", None) is not None else ""
    known = f"{count(spec.num_classes, 'class', 'classes')}{null}"
    which = {"ema": "averaged weights", "model": "trained weights"}.get(imported.origin["weights"], "weights")
    return f"{imported.origin['kind']}, {which}: {in_words(imported.run.network)}; {known}; {seen}"
