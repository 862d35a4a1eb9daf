"""What `shortflow compare` says while cells are made, and at the end."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortflow.cli.common import aligned, count, duration, say
from shortflow.cli.progress import clock

if TYPE_CHECKING:
    from shortflow.studies import Cell, State, StudyPlan

__all__ = ["Board", "introduced", "told"]

EVERY = 30.0  # seconds from one line about all cells to the next, in a log


def introduced(plan: "StudyPlan", out: Path) -> str:
    study = plan.study
    variants = len(plan.compared)
    return (
        f"{study.name}: {count(variants, 'variant')} on {study.data}, {count(len(study.seeds), 'seed')}, "
        f"{count(len(plan.cells), 'cell')} → {out}"
    )


class Board:
    """What is said while cells are made: a line when one begins or ends; and how all are, now and then, or, on a
    terminal, below these lines."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.phases: dict[str, str] = {}
        self.first: tuple[float, float] | None = None  # time and work done, when first looked
        self.last: tuple[float, float] | None = None  # and when some was last done: scores come all at once
        self.line = clock()
        self.live: Any = None

    def __enter__(self) -> "Board":
        from rich.console import Console
        from rich.live import Live

        console = Console()
        if console.is_terminal:
            self.live = Live(console=console, auto_refresh=False, transient=True)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def update(self, state: "State") -> None:
        if not self.phases:
            self._say(introduced(state.plan, self.out))
        for cell in state.cells:
            before = self.phases.get(cell.name)
            if before != cell.phase:
                self._changed(state, cell, before)
            self.phases[cell.name] = cell.phase
        text = self._overview(state)
        if self.live is not None:
            from rich.text import Text

            self.live.update(Text(text), refresh=True)
        elif clock() - self.line >= EVERY:
            self.line = clock()
            say(text)

    def _say(self, text: str) -> None:
        if self.live is not None:
            self.live.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            say(text)

    def _changed(self, state: "State", cell: "Cell", before: str | None) -> None:
        if cell.phase == "running":
            going_on = f" after step {cell.step:,}" if cell.step else ""
            self._say(f"{cell.name}: begins{going_on}")
        elif cell.phase == "done" and before is not None:
            self._say(f"{cell.name}: done{_figure(state.plan, cell)}")
        elif cell.phase == "failed":
            lines = (cell.error or "").splitlines() or [""]
            log = cell.directory / "log.txt"
            self._say(f"{cell.name}: failed: {lines[0]}" + (f" (log: {log})" if log.is_file() else ""))

    def _overview(self, state: "State") -> str:
        """How many are done, who is at what, and how long it will take."""
        plan = state.plan
        training = {each.name: each.cost * each.images for each in plan.variants}  # both in passes over single images
        scoring = {each.name: plan.sampled(each) for each in plan.variants}
        ended = [cell for cell in state.cells if cell.phase in ("done", "failed")]
        work = sum(training[cell.variant] + scoring[cell.variant] for cell in state.cells)
        done = sum(training[cell.variant] + scoring[cell.variant] for cell in ended)
        done += sum(training[cell.variant] * cell.step / cell.steps for cell in state.cells if cell not in ended)
        now = clock()
        self.first = self.first or (now, done)
        if self.last is None or done != self.last[1]:
            self.last = (now, done)
        running = [f"{cell.name} {_at(cell)}" for cell in state.cells if cell.phase == "running"]
        parts = [f"{len(ended)} of {len(state.cells)} cells", *running]
        (since, before), (until, _) = self.first, self.last
        if done > before and until > since:
            left = (work - done) * (until - since) / (done - before) - (now - until)
            if left > 0:
                parts.append(f"left {duration(left)}")
        return "  ".join(parts)


def _at(cell: "Cell") -> str:
    return "scoring" if cell.step >= cell.steps else f"step {cell.step:,}/{cell.steps:,}"


def _figure(plan: "StudyPlan", cell: "Cell") -> str:
    """The figure that decides, of one cell."""
    from shortflow.runs.sampling import steps_named
    from shortflow.studies.cells import record_of
    from shortflow.studies.metrics import METRICS

    steps = steps_named(plan.study.primary_steps)
    row = (record_of(cell.directory) or {}).get("rows", {}).get(steps, {})
    value = row.get(plan.metric)
    return "" if value is None else f", {plan.metric} {value:{METRICS[plan.metric].form}} in {steps}"


def told(out: Path) -> None:
    """The table of the figure that decides, the verdict, and where everything is."""
    from shortflow.studies import read_results
    from shortflow.studies.verdict import figure, primary_rows

    results = read_results(out)
    study = results["study"]
    known = {(r["variant"], r["steps"]): r for r in results["rows"] if r["metric"] == study["metric"]}
    rows = [(study["metric"], *(count(number, "step") for number in study["steps"]))]
    order = [row["variant"] for row in primary_rows(results)]
    for name in dict.fromkeys([*order, *(name for name, _ in known)]):
        cells = [known.get((name, number)) for number in study["steps"]]
        rows.append(
            (name, *("–" if c is None else figure(study["metric"], c["mean"], c["standard_error"]) for c in cells))
        )
    if len(rows) > 1:
        say()
        for line in aligned(rows):
            say(line)
    say()
    for sentence in results["verdict"]:
        say(sentence)
    say(f"→ {out / 'table.md'}, {out / 'results.json'}; a page of it: shortflow report {out}")
