"""Train every recipe on the same data with the same network and budget, and write docs/results.md.

    python scripts/compare_recipes.py --out out/compare [--data digits,mixture] [--recipes esc,meanflow] [--set …]

Finished runs are not repeated, interrupted ones are resumed: give the command again until the table is whole.
Several processes may work on the same folder with different --recipes; `--table` only writes the table.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from shortflow import hub, runs
from shortflow.cost import known_costs
from shortflow.evaluate import write_record
from shortflow.recipes import RECIPES
from shortflow.train.state import latest_state

STEPS = (1, 2, 4, 8)
# What a recipe that is no beginning of its own follows, and what it starts from: other cells of the same table.
TEACHERS = {
    "cd": "edm",
    "cd-linear": "flow-matching",
    "tcm": "ect",
    "reflow": "flow-matching",
    "sct-distilled": "flow-matching",
    "ayf-emd": "flow-matching",
    "ayf-lmd": "flow-matching",
}
STARTS = {
    "ect": "edm",
    "progressive-distillation": "flow-matching",
    "cd-linear": "flow-matching",
    "reflow": "flow-matching",
    "tcm": "ect",
    "ayf-emd": "flow-matching",
    "ayf-lmd": "flow-matching",
}
BUDGET = {"digits": 128_000, "mixture": 512_000}  # samples seen

INTRODUCTION = """\
# Every recipe, one budget

Every recipe with the same network, data and number of samples; only the name changes. Made by

    python scripts/compare_recipes.py --out out/compare --threads 1

One seed, small networks, minutes of training on a CPU: the table shows that each recipe learns and what one step costs
it in quality, not which method is best. The settings are the presets for small data, without guidance
(`shortflow show RECIPE --data digits`), with the same learning rate for all but ECT and TCM, whose unsquared norm wants
a smaller one; on points methods with the adaptive weight have it at power 0. Recipes that follow or start from another
model have their own budget on top of that model's, another row of the same table:

{others}

Cost is that of a training step in forward passes of the network on the batch; a plain step costs 3. FD % is the
Fréchet distance in per cent of the data's variance. N = 2,000 samples for images (neighbour scores at n = 500, see
[evaluation](evaluation.md)), 10,000 points.

How to read it. A sampler that draws the mean of each class has accuracy 1 and recall 0: look at both. Methods that
learn their jumps level by level (shortcut, progressive distillation) learn the longest last. Networks that only know
jumps to the data (the consistency family) are sampled with new noise between the steps, so more steps need not be
better.

"""


def cell(recipe: str, data: str, out: Path, settings: list[str]) -> None:
    """Train and score one recipe on one data set, unless its record is there."""
    if (out / "evaluation.json").exists():
        return
    resume = latest_state(out / "state") is not None
    if resume:
        run, dataset = runs.open_run(out)
    else:
        others = {"teacher": TEACHERS.get(recipe), "init_from": STARTS.get(recipe)}
        given = {name: str(out.parent / other) for name, other in others.items() if other is not None}
        run, dataset = runs.configure(recipe, data, settings=settings, **given)
    began = time.perf_counter()
    for record in runs.training(run, dataset, out, resume=resume):
        if record.step % max(1, run.train.steps // 5) == 0:
            print(f"{data:10s} {recipe:14s} step {record.step:6d}  loss {record.loss:.4f}", flush=True)
    seconds = time.perf_counter() - began
    model = hub.load(out)
    scored = runs.score(model, STEPS, n=2000 if model.spec.image else 10_000)
    budget = {"training_seconds": seconds, "steps": run.train.steps, "batch": run.train.batch}
    write_record(out / "evaluation.json", {**scored, **budget})


def best(rows: dict, key: str) -> str:
    """The few-step row with the smallest value of `key`."""
    return min(
        (name for name in rows if name != "1 step" and not name.startswith("real")), key=lambda name: rows[name][key]
    )


def cost(recipe: str) -> str:
    """The cost of a training step, to one digit."""
    return f"{known_costs()[recipe]:.1f}"


def digits_table(records: dict[str, dict]) -> list[str]:
    lines = [
        "| recipe | cost | 1 step: acc. | FD % | recall | coverage | best few-step | acc. | FD % | recall | coverage |",
        "|---|---:|---:|---:|---:|---:|---|---:|---:|---:|---:|",
    ]

    def figures(row: dict) -> str:
        keys = ("conditional_accuracy", "fd_percent", "recall", "coverage")
        return " | ".join(f"{row[key]:.3f}" for key in keys)

    for name, record in records.items():
        few = best(record["rows"], "fd")
        lines.append(
            f"| {name} | {cost(name)} | {figures(record['rows']['1 step'])} | {few} | {figures(record['rows'][few])} |"
        )
    real = next(iter(records.values()))["rows"]["real (held out)"]
    lines.append(f"| *real, held out* | | {figures(real)} | | | | | |")
    return lines


def points_table(records: dict[str, dict]) -> list[str]:
    lines = [
        "| recipe | cost | 1 step: energy distance | sliced W2 | best few-step | energy distance | sliced W2 |",
        "|---|---:|---:|---:|---|---:|---:|",
    ]
    for name, record in records.items():
        rows = record["rows"]
        few = best(rows, "energy_distance")
        one, many = rows["1 step"], rows[few]
        lines.append(
            f"| {name} | {cost(name)} | {one['energy_distance']:.4f} | {one['sliced_w2']:.4f} | {few} "
            f"| {many['energy_distance']:.4f} | {many['sliced_w2']:.4f} |"
        )
    real = next(iter(records.values()))["rows"]["real (train)"]
    lines.append(f"| *training points* | | {real['energy_distance']:.4f} | {real['sliced_w2']:.4f} | | | |")
    return lines


def others() -> str:
    """Which recipe follows or starts from which, in words."""
    words = []
    for name in [*dict.fromkeys([*TEACHERS, *STARTS])]:
        follows, starts = TEACHERS.get(name), STARTS.get(name)
        both = f"follows and starts from {follows}"
        one = f"follows {follows}" if starts is None else f"starts from {starts}"
        words.append(f"- {name} {both if follows == starts else one}")
    return "\n".join(words)


def table(out: Path, data: list[str], recipes: list[str]) -> str:
    """The Markdown of docs/results.md from the records in `out`."""
    text = INTRODUCTION.format(others=others()).splitlines()
    for name in data:
        records = {r: json.loads(p.read_text()) for r in recipes if (p := out / name / r / "evaluation.json").exists()}
        if not records:
            continue
        first = next(iter(records.values()))
        text += [f"## {name}: {first['steps']:,} steps of {first['batch']} ({first['images_seen']:,} samples seen)", ""]
        if "classifier" in first["rows"]["1 step"]:
            known = first["rows"]["1 step"]["classifier"]
            text += [f"Features: classifier {known['name']}, sha256 {known['sha256'][:12]}.", ""]
        text += (digits_table if "conditional_accuracy" in first["rows"]["1 step"] else points_table)(records)
        text.append("")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/compare"))
    parser.add_argument("--data", default="digits,mixture")
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--set", dest="settings", action="append", default=[])
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0 leaves the default")
    parser.add_argument("--table", action="store_true", help="only write the table")
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "docs/results.md", help="the table")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    data, recipes = options.data.split(","), options.recipes.split(",")
    if not options.table:
        for name in data:
            for recipe in recipes:
                budget = [f"images={BUDGET[name]}"] if name in BUDGET else []
                cell(recipe, name, options.out / name / recipe, ["preview_every=0", *budget, *options.settings])
    options.to.write_text(table(options.out, data, list(RECIPES)))


if __name__ == "__main__":
    main()
