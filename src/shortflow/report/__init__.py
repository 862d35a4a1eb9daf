"""Pages: runs, studies and diagnoses as one self-contained HTML file, made of nothing but their files.

files, reading, drawable                            what is read, what cannot be, and what is to be drawn before
metrics, seen                                       what figures are called, and which of them decides
runpage, studypage, diagnosispage, sidebyside       what a page says of a run, a study, a diagnosis, several
training, samples, recipes, runcost                 sections of theirs
studycost, studyvariants
blocks, charts, maps, motion, svg, page, templates/ how it is drawn and set

The page opens from disk and asks for nothing: styles, figures and pictures are in it, there is no script, and a policy
in its head forbids the browser to load anything else. jinja2 and matplotlib come with the extra `report`.
"""

import importlib.util
from pathlib import Path
from typing import Any

from shortflow.errors import ConfigError

__all__ = ["check_installed", "check_places", "report_page", "write_report"]


def report_page(paths: list[Path], title: str | None = None) -> str:
    """The HTML of a page on what lies at `paths`: one run, study or diagnosis, or several side by side.

    Raises:
        CheckpointError: if there is no run, study or diagnosis at one of them.
        ConfigError: if nothing is named, a study or diagnosis cannot be read, or the extra `report` is missing.
    """
    if not paths:
        raise ConfigError("name at least one run, study or diagnosis")
    check_installed()
    from shortflow.report.files import opened
    from shortflow.report.page import page_of, rendered

    found: list[Any] = [opened(path) for path in paths]
    return rendered(page_of(found, title))


def check_installed() -> None:
    """Raise `ConfigError` if jinja2 or matplotlib are missing, before anything is drawn."""
    missing = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"pages need {' and '.join(missing)}; install them with: pip install 'shortflow[report]'")


def check_places(paths: list[Path], out: Path) -> None:
    """Raise what `write_report` would for what is named wrongly, before anything is drawn or read."""
    from shortflow.report.files import place_of

    for path in paths:
        place_of(path)
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; give the name of a file, such as {out / 'page.html'}")


def write_report(paths: list[Path], out: Path, title: str | None = None) -> Path:
    """Write the page to `out`, atomically; returns it. Errors are those of `report_page`."""
    from shortflow.files import write_atomic

    check_places(paths, out)
    write_atomic(out, report_page(paths, title))
    return out
