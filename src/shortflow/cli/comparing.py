"""`shortflow compare`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shortflow.cli.common import Imports, Settings, aligned, count, duration, numbers, optional_value, say
from shortflow.cli.progress import progress
from shortflow.cli.studying import Board, introduced, told
from shortflow.errors import ConfigError

if TYPE_CHECKING:
    from shortflow.studies import Study, StudyPlan

__all__ = ["Compare", "compare"]

DEFAULT = "default"  # what --slurm without a value stands for
EVERY = 1.0  # seconds between two looks
Compare = optional_value("--slurm", DEFAULT, lambda word: "=" in word)


def compare(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPES|STUDY.yaml",
            help="Names of recipes, with commas between them, or a study's file. Without, the study in --out goes on.",
            show_default=False,
        ),
    ] = None,
    study: Annotated[
        str | None, typer.Option(metavar="NAME", help="A ready study; --studies lists them.", show_default=False)
    ] = None,
    studies: Annotated[bool, typer.Option("--studies", help="List the ready studies.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Directory of the study; by default out/NAME.", show_default=False)
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD.PATH=VALUE,VALUE…",
            help="Values of a setting, each a variant; repeat for all combinations with those of another.",
        ),
    ] = None,
    settings: Settings = None,
    data: Annotated[str | None, typer.Option(help="As for `shortflow train`.", show_default=False)] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Crop and resize images to this side.", show_default=False)
    ] = None,
    images: Annotated[int | None, typer.Option(help="Budget of a cell: images seen.", show_default=False)] = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="Budget: seconds of training, at speeds that are measured once.", show_default=False),
    ] = None,
    forwards: Annotated[
        float | None,
        typer.Option(help="Budget: F × images, passes of the network over single images.", show_default=False),
    ] = None,
    flops: Annotated[float | None, typer.Option(help="Budget: floating-point operations.", show_default=False)] = None,
    seeds: Annotated[
        str | None, typer.Option(help="How many, or which: 3, or 0,1,5. By default 3.", show_default=False)
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Numbers of steps to score, by default 1,2,4,8,128.", show_default=False)
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(help="Shares of the budget to score at as well, such as 0.25,0.5,1.", show_default=False),
    ] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="Samples to score.", show_default=False)] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="What decides; by default fd_percent, or energy_distance for points.", show_default=False),
    ] = None,
    metric_steps: Annotated[
        int | None, typer.Option(help="In how many steps; by default the first of --steps.", show_default=False)
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="VARIANT", help="Test all against this one, not all pairs.", show_default=False),
    ] = None,
    features: Annotated[
        str | None, typer.Option(metavar="NAME", help="As for `shortflow evaluate`.", show_default=False)
    ] = None,
    reference: Annotated[
        str | None, typer.Option(metavar="STATS|IMAGES", help="As for `shortflow evaluate`.", show_default=False)
    ] = None,
    jobs: Annotated[int, typer.Option(help="Cells that are made at a time.")] = 1,
    threads: Annotated[
        int | None,
        typer.Option(help="Of each; by default the cores over --jobs, or OMP_NUM_THREADS.", show_default=False),
    ] = None,
    slurm: Annotated[
        str | None,
        typer.Option(
            metavar="[OPTION=VALUE,…]",
            help="Make the cells in jobs of SLURM, through submitit: timeout_min=240,partition=gpu,gpus_per_node=1.",
            show_default=False,
        ),
    ] = None,
    imports: Imports = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Another study: runs that it has made with the same settings and seed are copied; repeat for more.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything; say what is missing, and how long it takes.")
    ] = False,
    work: Annotated[
        bool, typer.Option("--work", help="Take part in the study in --out: make cells here, one after the other.")
    ] = False,
    tied: Annotated[bool, typer.Option(hidden=True, help="End with the one who has started this worker.")] = False,
) -> None:
    """Compare methods or settings at an equal budget, by seeds.

    Cells that are missing are made. Interrupted or killed, the same command goes on. Several of them may work on the
    same --out, on many machines, too. OUT/table.md says what is best, with standard errors and what is significant;
    OUT/results.json has everything; `shortflow report OUT` makes a page of it.
    """
    if studies:
        _list()
        return
    if work:
        _work(out, tied, reuse or [])
        return
    given: dict[str, Any] = {
        "data": data,
        "resolution": resolution,
        "seeds": None if seeds is None else _seeds(seeds),
        "steps": None if steps is None else numbers(steps, "--steps"),
        "at": None if at is None else numbers(at, "--at", float),
        "n": n,
        "metric": metric,
        "metric_steps": metric_steps,
        "against": against,
        "features": features,
        "reference": reference,
        "threads": threads,
        "vary": vary or None,
    }
    budget = {"images": images, "seconds": seconds, "forwards": forwards, "flops": flops}
    given["budget"] = {name: value for name, value in budget.items() if value is not None} or None
    asked = {name: value for name, value in given.items() if value is not None}
    chosen = _chosen(what, study, asked, settings or [], out)
    out = out or Path("out") / (chosen.name if chosen is not None else "study")
    if dry_run:
        _show(chosen, out, jobs, threads, reuse or [])
        return
    _make(chosen, out, jobs, threads, slurm, imports or [], reuse or [])


def _chosen(
    what: str | None, ready: str | None, given: dict[str, Any], settings: list[str], out: Path | None
) -> "Study | None":
    """The study that is asked for; None for the one that is there."""
    from shortflow.config import to_plain
    from shortflow.studies import load_study, study_of

    if what is not None and ready is not None:
        raise ConfigError(f"{what} and --study {ready}: give one of them")
    if what is None and ready is None:
        if not given and not settings:
            return None
        there = None if out is None else out / "study.yaml"
        if there is None or not there.is_file():
            options = ", ".join(f"--{name.replace('_', '-')}" for name in [*given, *(["set"] if settings else [])])
            raise ConfigError(
                f"what is to be compared? Beside {options} give recipes, a file, or --study NAME; or --out with the "
                "directory of a study that was begun"
            )
        what = str(there)
    if ready is not None or str(what).endswith((".yaml", ".yml")):
        found = load_study(str(ready or what))
        own = {"metric": None} if "data" in given else {}  # other data may have other figures
        plain = {**to_plain(found), **own, **given, "settings": [*found.settings, *settings]}
        return study_of(plain)
    names = [name.strip() for name in str(what).split(",") if name.strip()]
    return study_of({"recipes": names, **given, "settings": settings})


def _seeds(text: str) -> list[int]:
    found = numbers(text, "--seeds")
    if found == [0] and "," not in text:
        raise ConfigError("--seeds 0 asks for no run; one number says how many seeds (--seeds 1 is seed 0 alone)")
    return list(range(found[0])) if len(found) == 1 and "," not in text else found


def _list() -> None:
    from shortflow.studies import load_study, ready_studies
    from shortflow.studies.study import expanded

    rows = []
    for name in ready_studies():
        found = load_study(name)
        about = " ".join(found.about.split())
        rows.append(
            (name, f"{len(expanded(found))} × {count(len(found.seeds), 'seed')}", about.split(". ")[0].rstrip("."))
        )
    for line in aligned(rows):
        say(line)
    say("\nShow one: shortflow compare --study NAME --dry-run")


def _work(out: Path | None, tied: bool, sources: list[Path]) -> None:
    from shortflow import studies
    from shortflow.train import Interrupted

    if out is None:
        raise ConfigError("--work takes part in a study that was begun; name its directory with --out")
    if tied:
        studies.tied()
    try:
        good = studies.work(out, sources=sources, say=say)
    except (Interrupted, KeyboardInterrupt):
        say("Stopped; everything is saved.")
        raise typer.Exit(130) from None
    say("Nothing is left to make." if good else "Nothing is left to make but what has failed.")


# --------------------------------------------------------------------------------------------------------------- before


def _planned(study: "Study | None", out: Path, jobs: int, threads: int | None) -> "StudyPlan":
    """The plan, without a trace."""
    from shortflow import studies

    before = studies.read_plan(out) if (out / "study.yaml").is_file() else None
    if study is None:
        return before or studies.read_plan(out)
    with progress("variants") as shown:
        return studies.plan(study, threads=threads or studies.threads_of(jobs), before=before, report=shown)


def _show(study: "Study | None", out: Path, jobs: int, threads: int | None, sources: list[Path]) -> None:
    """Say what would be made."""
    from shortflow.studies.forecast import forecast

    plan = _planned(study, out, jobs, threads)
    found = forecast(plan, out, sources)
    say(introduced(plan, out))
    base = plan.study.against or plan.compared[0].name
    rows = [("variant", "images", "F a step", "minutes", "cells", "needs", f"differs from {base} in")]
    for variant in plan.variants:
        cells = [cell for cell in found.cells if cell.variant == variant.name]
        done = sum(cell.phase == "done" for cell in cells)
        needs = ", ".join(dict.fromkeys(filter(None, (variant.teacher, variant.start, variant.weak))))
        words = ["for others only"] if variant.support else [*variant.difference]
        differs = words[0] if len(words) == 1 else ", ".join(word.partition(":")[0] for word in words)
        minutes = f"{found.seconds[variant.name] / 60:,.1f}"
        cost = (f"{variant.images:,}", f"{variant.cost:.2f}", minutes)
        rows.append((variant.name, *cost, f"{done} of {len(cells)} done", needs, _short(differs)))
    for line in aligned(rows):
        say(line)
    missing = sum(cell.phase != "done" for cell in found.cells)
    several = f", {duration(found.left / jobs)} in {jobs}" if jobs > 1 else ""
    known = "measured in its cells" if len(found.measured) == len(plan.variants) else "estimated from a few steps"
    if found.copied:
        say(f"{count(len(found.copied), 'cell')} to be copied: {', '.join(found.copied)}")
    say(
        f"{count(missing, 'cell')} of {len(found.cells)} missing: {found.forwards:,.3g} F × images, "
        f"{duration(found.left)} in one process{several}, {known}"
    )
    say(f"decides: {plan.metric} in {count(plan.study.primary_steps, 'step')}")
    say("Nothing was made, and nothing written: this was --dry-run.")


def _short(text: str, width: int = 70) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


# ---------------------------------------------------------------------------------------------------------------- while


def _make(
    study: "Study | None",
    out: Path,
    jobs: int,
    threads: int | None,
    slurm: str | None,
    imports: list[Path],
    sources: list[Path],
) -> None:
    """Make the cells, and say how it goes."""
    from shortflow import studies

    launcher = None
    if slurm is not None:
        planned = threads or (study.threads if study is not None else None) or studies.threads_of(jobs)
        launcher = studies.SlurmWorkers(
            out=out, threads=planned, imports=tuple(imports), sources=tuple(sources), options=_options(slurm)
        )
    with progress("variants", title="planning") as shown:
        states = studies.compare(
            study,
            out,
            jobs=jobs,
            threads=threads,
            launcher=launcher,
            imports=imports,
            sources=sources,
            poll=0.0,
            report=shown,
        )
    state = None
    try:
        with Board(out) as board:
            for state in states:
                board.update(state)
                if not state.finished:
                    time.sleep(EVERY)  # here, so that Ctrl-C is met here
    except KeyboardInterrupt:
        say("\nStopping: the workers save what they have …")
        states.close()  # type: ignore[attr-defined]
        say(f"Stopped. Go on with the same command, or: shortflow compare --out {out}")
        raise typer.Exit(130) from None
    assert state is not None
    told(out)
    if any(cell.phase == "failed" for cell in state.cells):
        raise typer.Exit(2)


def _options(text: str) -> dict[str, Any]:
    """The options in "timeout_min=240,partition=gpu"."""
    from shortflow.yamlfile import parse_yaml

    if text == DEFAULT:
        return {}
    found = {}
    for part in text.split(","):
        name, separator, value = part.partition("=")
        if not separator:
            raise ConfigError(
                f"--slurm {text}: expected option=value, with commas, such as timeout_min=240,partition=gpu"
            )
        found[name.strip()] = parse_yaml(value, f"--slurm {name}")
    return found
