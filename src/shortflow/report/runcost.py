"""Sections of a run: what it cost, its settings, and how to make it again."""

from collections.abc import Mapping, Sequence
from typing import Any

from shortflow.config import to_yaml
from shortflow.report.blocks import Block, Code, Section, Sentences, Table, number
from shortflow.report.commands import scored_by
from shortflow.report.files import Run
from shortflow.report.metrics import measured

__all__ = [
    "cost_section",
    "duration",
    "made_again",
    "made_again_section",
    "settings_section",
    "step_cost_of",
    "sums_table",
    "trained_seconds",
]


def duration(seconds: float) -> str:
    """A time in words of fitting size."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def trained_seconds(run: Run) -> float | None:
    """How long the lines of the record took together."""
    seconds, before = 0.0, 0
    for line in run.lines:
        speed = measured(line.get("images_per_second"))
        if speed is not None and speed > 0 and line["images"] > before:
            seconds += (line["images"] - before) / speed
        before = line["images"]
    return seconds or None


def step_cost_of(run: Run) -> float | None:
    """F of a training step, where it has been counted."""
    cost = run.pictures and run.pictures.index.get("cost")
    return measured(cost.get("training_step")) if isinstance(cost, Mapping) else None


def cost_section(run: Run) -> Section:
    rows = []
    seconds, per_step = trained_seconds(run), step_cost_of(run)
    if run.header is not None:
        rows.append(["parameters", number(run.header.parameters)])
    if run.config is not None:
        rows.append(["images a step", number(run.config.train.batch)])
    if run.lines:
        rows.append(["steps done", number(run.lines[-1]["step"])])
    if seconds is not None:
        rows.append(
            [
                "time of these steps",
                duration(seconds) if seconds < 120 else f"{duration(seconds)} ({round(seconds):,} s)",
            ]
        )
        rows.append(["images a second", number(round(run.lines[-1]["images"] / seconds))])
        rows.append(["slowest and fastest line", _speeds(run.lines)])
    if per_step is not None:
        rows.append(["a training step", f"{per_step:.2f} F"])
        if run.lines:
            rows.append(["training so far", f"{number(round(per_step * run.lines[-1]['images']))} passes of one image"])
    rows.append(["sampling", "1 pass of the network for each image and step"] if run.header else [])
    if run.status is not None:
        kinds = ", ".join(f"{kind} {_size(count)}" for kind, count in run.status.disk.items() if count)
        rows.append(["on disk", f"{_size(sum(run.status.disk.values()))} ({kinds})"])
    rows = [row for row in rows if row]
    if not rows:
        return Section(title="Cost")
    note = "F is one pass of the network over the batch without gradient; a step of flow matching costs 3 F."
    table = Table(caption="What it took", head=["", ""], rows=rows, words=frozenset({1}), note=note)
    return Section(title="Cost", blocks=[table])


def _speeds(record: Sequence[Mapping[str, Any]]) -> str:
    speeds = [speed for line in record if (speed := measured(line.get("images_per_second")))]
    return f"{min(speeds):,.0f} and {max(speeds):,.0f} images a second"


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"


def settings_section(run: Run) -> Section:
    text = run.text or (to_yaml(run.config) if run.config is not None else None)
    if text is None:
        return Section(title="Settings")
    said = Sentences(
        texts=["Every setting, as the run was made with it. Saved as run.yaml, this file starts the run again."]
    )
    return Section(title="Settings", blocks=[said, Code(text=text.rstrip() + "\n", label="run.yaml", folded=True)])


def made_again(run: Run) -> list[str]:
    """Commands that make the run and its figures again, from the run file in the page."""
    commands = ["shortflow train run.yaml --out out/again"] if run.text is not None else []
    target = "out/again" if commands else str(run.directory)
    commands += [command for record in run.evaluations.values() if (command := scored_by(target, record))]
    commands.append(f"shortflow report {target} --out page.html")
    return commands


def sums_table(sums: Sequence[tuple[str, int, str]]) -> Table:
    """Files and their sums."""
    rows = [[name, f"{size:,}", total] for name, size, total in sums]
    return Table(
        caption="Files that this page was made of", head=["file", "bytes", "SHA-256"], rows=rows, words=frozenset({2})
    )


def made_again_section(run: Run) -> Section:
    blocks: list[Block] = [Code(text="\n".join(made_again(run)) + "\n", label="Commands")]
    if run.sums:
        blocks.append(sums_table(run.sums))
    header = run.header
    if header is not None and header.total is not None:
        blocks.append(
            Sentences(texts=[f"The model says that the sum over its weights and its description is {header.total}."])
        )
    references = header and header.description.get("references")
    if isinstance(references, Mapping):
        rows = [
            [role, str(each.get("run")), str(each.get("sha256"))]
            for role, each in references.items()
            if isinstance(each, Mapping)
        ]
        table = Table(
            caption="Other models that it learned from",
            head=["as", "run", "SHA-256"],
            rows=rows,
            words=frozenset({1, 2}),
        )
        blocks.append(table)
    return Section(title="Make it again", blocks=blocks)
