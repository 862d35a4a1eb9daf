"""The published runs on ImageNet-256 as run files: python scripts/imagenet_runs.py (--check: whether they are current)

examples/imagenet-256/NAME.yaml holds the whole run of `imagenet_published`, resolved, with the latents that it is for;
a comment has the published figure with its source, the command that makes the latents, and what the run will take
(`shortflow.estimate`). docs/imagenet.md has all of them in a table.
"""

import argparse
from dataclasses import replace
from functools import cache
from pathlib import Path

from imagenet_published import RUNS, Published
from shortflow.config.runfile import to_yaml
from shortflow.cost import known_costs, step_cost
from shortflow.data import DataSpec
from shortflow.data.latentspec import LatentSpec
from shortflow.estimate import SHARE, Estimate, estimate
from shortflow.files import write_atomic
from shortflow.nn.configs import SiTConfig
from shortflow.recipe import Recipe
from shortflow.recipes import RECIPES

FOLDER = Path(__file__).parents[1] / "examples" / "imagenet-256"
PAGE = Path(__file__).parents[1] / "docs" / "imagenet.md"
BEGIN, END = "<!-- python scripts/imagenet_runs.py -->", "<!-- end -->"
GPUS = 8  # that share a batch in the table
EPOCH = 1_281_167  # images
LATENTS = DataSpec(name="imagenet-256", shape=(4, 32, 32), classes=tuple(str(i) for i in range(1000)), image=False)


@cache
def counted(recipe: Recipe) -> float:
    """The cost of a step in F, from the table of the library where it has this objective."""
    usual = RECIPES.get(recipe.name)
    same = usual is not None and replace(usual(), published=None) == recipe
    return known_costs()[recipe.name] if same else step_cost(recipe)


def estimated(published: Published) -> Estimate:
    run = published.run
    return estimate(run, LATENTS, counted(replace(run.recipe, published=None)))


def text(name: str, published: Published, found: Estimate) -> str:
    """The run file."""
    run = published.run
    wanted, store = published.latents, published.store.removeprefix("./")
    local = f"about {found.kept / 2 / 2**20:,.0f} MiB an image in bf16"
    heads = [
        f"{published.recipe.title}: {name}",
        f"Published FID-50k on ImageNet-256: {published.figure}.",
        *(f"Note: {note}." for note in published.notes),
        f"Latents {wanted.in_words()}:",
        f"  shortflow encode ./imagenet/train --encoder {wanted.encoder} --resolution 256 --out {store}",
        f"  shortflow encode {store} {wanted.options}",
        f"Takes (counted, not measured): {found.parameters / 1e6:,.0f}M parameters; {run.train.steps:,} steps of "
        f"{run.train.batch:,} = {run.train.images / EPOCH:,.0f} epochs;",
        f"{found.step:.2f} F a step, {found.forward / 1e9:,.1f} GFLOP an image in F; {found.hours():,.0f} H100-hours "
        f"at {SHARE:.0%} of the peak;",
        f"{found.held / 2**30:,.1f} GiB for weights, gradient, moments and averages, activations {local}.",
        f"Start: torchrun --nproc-per-node 8 -m shortflow train examples/imagenet-256/{name}.yaml --out out/{name}",
    ]
    return "".join(f"# {line}\n" for line in heads) + to_yaml(run)


def row(name: str, published: Published, found: Estimate) -> list[str]:
    """The run in the table."""
    run = published.run
    each = found.held + found.kept / 2 * run.train.batch / GPUS  # activations in bf16
    size = run.network.dimensions
    plain = SiTConfig(size=published.size).dimensions == size
    named = f"{published.size}/{published.patch}" if plain else f"{size.depth} × {size.width}"
    network = f"{named}, {found.parameters / 1e6:,.0f}M"
    return [
        f"[`{name}`](../examples/imagenet-256/{name}.yaml)",
        network,
        f"{run.train.batch:,}",
        f"{run.train.images / 1e6:,.0f}M",
        f"{found.step:.2f}",
        f"{found.hours():,.0f}",
        f"{each / 2**30:,.0f} GiB",
        _latents(published.latents),
        published.figure,
    ]


def _latents(spec: LatentSpec) -> str:
    return f"{spec.encoder.removeprefix('sd-vae-')}, {'by channel' if any(spec.shift) else f'× {spec.scale[0]}'}"


def table(rows: list[list[str]]) -> str:
    head = [
        "run file",
        "network",
        "batch",
        "images",
        "F a step",
        "H100-hours",
        "memory",
        "latents",
        "published FID-50k",
    ]
    lines = [head, ["---", "---", *["---:"] * 5, "---", "---"], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def page(rows: list[list[str]]) -> str:
    """The page with these rows in its table."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n{table(rows)}{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file is not what it would be")
    options = parser.parse_args()
    files, rows, stale = {}, [], []
    for name, published in RUNS.items():
        found = estimated(published)
        files[FOLDER / f"{name}.yaml"] = text(name, published, found)
        rows.append(row(name, published, found))
    files[PAGE] = page(rows)
    for path, content in files.items():
        if options.check:
            stale += [] if path.is_file() and path.read_text(encoding="utf-8") == content else [path.name]
        else:
            write_atomic(path, content)
    if stale:
        raise SystemExit(f"not current: {', '.join(stale)}; run python scripts/imagenet_runs.py")


if __name__ == "__main__":
    main()
