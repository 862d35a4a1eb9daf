"""`shortflow sample`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from shortflow.cli.common import (
    Bf16,
    Compile,
    Encoder,
    Guidance,
    Imports,
    RunPath,
    Window,
    count,
    numbers,
    say,
    window_of,
)
from shortflow.cli.progress import progress
from shortflow.errors import ConfigError

__all__ = ["GammaShare", "GridName", "SamplerName", "loaded", "sample"]

SamplerName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="push-forward, re-noise, restart, gamma, euler, heun, or auto: the one that the recipe was made for.",
    ),
]
GammaShare = Annotated[
    float | None,
    typer.Option(
        metavar="G",
        help="With --sampler gamma: from 0 (push-forward, no new noise) to 1 (re-noise); by default 0.5.",
        show_default=False,
    ),
]
GridName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="How the times are spaced: uniform, karras, edm, or auto: the usual one of the path.",
    ),
]


def sample(
    run: RunPath,
    n: Annotated[int, typer.Option("--n", "-n", help="How many samples.")] = 64,
    steps: Annotated[int, typer.Option(help="Jumps from noise to data.")] = 1,
    times: Annotated[
        str | None, typer.Option(help="The grid itself instead of --steps, decreasing: 1,0.7,0.3,0.")
    ] = None,
    grid: GridName = "auto",
    middle: Annotated[
        float | None, typer.Option(metavar="T", help="The time in the middle of two steps, instead of --grid.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option("--class", help="Class names or indices, with commas; by default all in turn.")
    ] = None,
    condition: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For models that are told vectors or sequences: a .npy or .safetensors file of them, used in turn.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Sample k is a function of (seed, k), for any --n.")] = 0,
    guidance: Guidance = 1.0,
    window: Window = None,
    sampler: SamplerName = "auto",
    gamma: GammaShare = None,
    interpolate: Annotated[
        bool, typer.Option("--interpolate", help="Rows of 8 that go from one noise to another, one class a row.")
    ] = False,
    single: Annotated[bool, typer.Option("--single", help="One PNG file a sample, into the folder --out.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="NAME.png: a picture. NAME.npy: an array. With --single a folder. By default samples.png, or samples."
        ),
    ] = None,
    bf16: Bf16 = False,
    compile: Compile = False,
    encoder: Encoder = None,
    imports: Imports = None,
) -> None:
    """Draw samples from a trained model.

    They become one picture, a grid in reading order; or single files, or an array, which are written batch by batch,
    for any number of samples. If that is interrupted, the same command goes on where it stopped. Latents are decoded;
    if the autoencoder is not there, they are written as they are, to an .npz file (or the array).
    """
    from shortflow import runs
    from shortflow.pictures import save_png
    from shortflow.sample import grid_times

    rule, kind, acting = runs.sampler_named(sampler, gamma), runs.grid_named(grid), window_of(window)
    given = {"--times": times is not None, "--grid": kind is not None, "--middle": middle is not None}
    _check_grid_options([option for option, is_given in given.items() if is_given], steps)
    _check_sample(interpolate, single, any(given.values()) or rule is not None or bf16 or compile, out)
    if interpolate and n % 8:
        raise ConfigError(f"--interpolate draws rows of 8 samples; give --n as a multiple of 8, not {n}")
    model = loaded(run, compile)
    chosen, told = _classes(classes, model.spec), _conditions(condition, model.spec)
    path = out or Path("samples" if single else "samples.png")
    found = runs.decoding(model.spec, model.run.data.encoder, encoder, say=say)
    if found.unverified is not None:
        say(f"note: {found.unverified}")
    if found.note is not None:
        say(f"note: {found.note}")
        single = False
        path = path if path.suffix.lower() == ".npy" else path.with_suffix(".npz")
    if interpolate:
        pixels, columns = runs.interpolation(
            model,
            rows=max(1, n // 8),
            steps=steps,
            classes=chosen,
            condition=told,
            seed=seed,
            guidance=guidance,
            window=acting,
            autoencoder=found.autoencoder,
        )
        if found.decoded:
            save_png(runs.picture(pixels, columns), path)
        else:
            runs.save_latents(path, pixels, None, model.spec)
        say(f"{count(len(pixels) // columns, 'row')} of {columns} samples, {count(steps, 'step')} → {path}")
        return
    if times is not None:
        chosen_times = tuple(numbers(times, "--times", float))
    else:
        chosen_times = grid_times(model.flow, steps, kind, middle)
    settings: dict[str, Any] = {
        "times": chosen_times,
        "sampler": rule,
        "classes": chosen,
        "condition": told,
        "seed": seed,
        "guidance": guidance,
        "window": acting,
        "bf16": bf16,
        "autoencoder": found.autoencoder,
    }
    if single or path.suffix.lower() == ".npy":
        with _going_on(path, n) as report:
            write = runs.save_folder if single else runs.save_array
            before = write(model, n, path, report=report, **settings)
        what = f"{count(n, 'file')} → {path}/" if single else f"{count(n, 'sample')} → {path}"
        say(what + (f" ({before:,} of them were there)" if before else ""))
    else:
        with progress("samples") as shown:
            pixels, labels = runs.generate(model.flow, model.spec, n, report=shown, **settings)
        if found.decoded:
            save_png(runs.picture(pixels), path)
        else:
            runs.save_latents(path, pixels, labels, model.spec)
        say(f"{count(n, 'sample')}, {count(len(chosen_times) - 1, 'step')} → {path}")
    if bf16:
        checked = min(n, 64)
        apart = runs.bf16_difference(model.flow, model.spec, checked, **settings)
        say(f"bf16: the first {count(checked, 'sample')} differ from fp32 by {apart:.2%} of their deviation")


def loaded(run: Path, compile: bool, device: str | None = None) -> Any:
    """The model at `run`, its network compiled where that is asked for."""
    from shortflow import hub

    model = hub.load(run, device)
    if compile:
        from shortflow.nn.compiling import compile_network

        compile_network(model.flow.network)
    return model


@contextmanager
def _going_on(path: Path, n: int) -> Iterator[Callable[[int, int], None]]:
    """How far it is, and a word on Ctrl-C: what is written is kept."""
    done = 0
    try:
        with progress("samples") as shown:

            def report(now: int, total: int) -> None:
                nonlocal done
                done = now
                shown(now, total)

            yield report
    except KeyboardInterrupt:
        say(f"\nStopped after {done:,} of {n:,} samples → {path}; the same command goes on from there")
        raise typer.Exit(130) from None


def _check_grid_options(given: list[str], steps: int) -> None:
    """Raise `ConfigError` if more than one of --times, --grid and --middle was given, or a middle without two steps."""
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} say the same thing in two ways; give one of them")
    if given == ["--middle"] and steps != 2:
        raise ConfigError(f"--middle is the middle time of two steps, not of {steps}; add --steps 2")


def _check_sample(interpolate: bool, single: bool, sampled_otherwise: bool, out: Path | None) -> None:
    """Raise `ConfigError` for options that do not go together, before the model is opened."""
    if interpolate and (sampled_otherwise or single):
        raise ConfigError(
            "--interpolate goes with --steps only; leave out --times, --grid, --middle, --sampler, --single, --bf16 "
            "and --compile"
        )
    known = (".png",) if interpolate else (".png", ".npy")
    if not single and out is not None and out.suffix.lower() not in known:
        array = "" if interpolate else ", in .npy for an array"
        raise ConfigError(f"--out {out}: pictures are PNG files; give a name that ends in .png{array} (or --single)")


def _conditions(path: Path | None, spec: Any) -> Any:
    """The conditions in a file, as the model takes them; None for models of classes and unconditional ones."""
    import numpy as np
    import torch

    from shortflow.data import open_conditions
    from shortflow.typing import condition_words

    if spec.condition is None:
        if path is not None:
            raise ConfigError(f"--condition {path}: this model is told {spec.told}; leave it out")
        return None
    words = condition_words(spec.condition)
    if path is None:
        raise ConfigError(
            f"this model is told {words} for each sample; give them with --condition FILE.npy (or .safetensors), whose "
            "rows are used in turn"
        )
    found = open_conditions(path)
    longer = len(found.shape) == 2 and len(spec.condition) == 2 and found.shape[0] > spec.condition[0]
    if longer or len(found.shape) != len(spec.condition) or found.shape[-1] != spec.condition[-1]:
        raise ConfigError(
            f"--condition {path}: it holds {condition_words(found.shape)}, and this model is told {words}"
        )
    return torch.from_numpy(found.take(np.arange(len(found))))


def _classes(text: str | None, spec: Any) -> list[int] | None:
    from shortflow.config import nearest

    names = spec.classes
    if text is None:
        return None
    if spec.condition is not None:
        raise ConfigError(f"--class {text}: this model is told {spec.told}; give them with --condition FILE")
    if not names:
        raise ConfigError(f"--class {text}: this model is unconditional, it has no classes")
    chosen = []
    for part in (p.strip() for p in text.split(",") if p.strip()):
        if part in names:
            chosen.append(names.index(part))
        elif part.isdecimal() and int(part) < len(names):
            chosen.append(int(part))
        else:
            raise ConfigError(
                f"--class: there is no class {part!r}, {nearest(part, names)} (or a number below {len(names)})"
            )
    if not chosen:
        raise ConfigError(f"--class {text!r} names no class; leave it out for all in turn")
    return chosen
