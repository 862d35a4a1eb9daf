"""From what was read to a page, and from a page to HTML."""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from shortflow.report.blocks import Block, Page, Row, Section
from shortflow.report.diagnosispage import diagnosis_sections
from shortflow.report.files import Diagnosis, Run, Study
from shortflow.report.runpage import run_sections
from shortflow.report.sidebyside import side_by_side
from shortflow.report.studypage import study_sections
from shortflow.report.svg import swatch

__all__ = ["page_of", "rendered"]

Found = Run | Study | Diagnosis


def page_of(found: Sequence[Found], title: str | None = None) -> Page:
    """The page on one object, or on several side by side."""
    if len(found) == 1:
        one = found[0]
        return Page(title=title or _title(one), line=_line(one), sections=_sections(one, "p"))
    names = _names(found)
    sections = side_by_side(list(zip(names, found, strict=True)), _sections)
    return Page(title=title or _few(names), line=f"{len(found)} side by side", sections=sections)


def _sections(one: Found, name: str) -> list[Section]:
    match one:
        case Run():
            return run_sections(one, name)
        case Study():
            return study_sections(one, name)
        case Diagnosis():
            return diagnosis_sections(one, name)


def _title(one: Found) -> str:
    if isinstance(one, Run):
        if one.config is not None:
            return f"{one.config.recipe.name} on {one.config.data.source}"
        return one.name
    return f"Study {one.name}" if isinstance(one, Study) else f"Diagnosis of {one.name}"


def _line(one: Found) -> str:
    return str(one.path if isinstance(one, Diagnosis) else one.directory)


def _names(found: Sequence[Found]) -> list[str]:
    """A name for each, that no other has: as many folders before it as that takes."""
    names = [one.name for one in found]
    paths = [Path(_line(one)).absolute().parts for one in found]
    for count in range(2, max(map(len, paths)) + 1):
        known = dict(zip(names, paths, strict=True))
        twice = {name for name, path in zip(names, paths, strict=True) if known[name] != path}  # of two places
        names = ["/".join(path[-count:]) if name in twice else name for name, path in zip(names, paths, strict=True)]
    return [name if names.count(name) == 1 else f"{name} ({k + 1})" for k, name in enumerate(names)]


def _few(names: Sequence[str]) -> str:
    *others, last = names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"]
    return f"{', '.join(others)} and {last}"


def rendered(page: Page) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("shortflow.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["code"] = _code
    environment.globals |= {"swatch": swatch, "anchor": _Anchors()}
    styles = "\n".join(_styles(page.sections))
    text = environment.get_template("page.html.j2").render(
        page=page,
        css=Markup(environment.get_template("style.css").render()),  # a file of ours
        motion=Markup(styles),  # rules of numbers that `motion` has written
        made=f"shortflow {_version()}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    return re.sub(r"\n\s*\n+", "\n", text)


def _code(text: str) -> Markup:
    """A sentence in which `commands` are set as such."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


class _Anchors:
    """Names of headings, unique in a page: `anchor(section)` is the same for the same section."""

    def __init__(self) -> None:
        self.known: dict[int, str] = {}
        self.kept: list[Any] = []  # so that no number of an object is given twice

    def __call__(self, section: Section) -> str:
        if id(section) not in self.known:
            plain = re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "part"
            taken = set(self.known.values())
            name = next(n for k in range(1, len(taken) + 2) if (n := plain if k == 1 else f"{plain}-{k}") not in taken)
            self.known[id(section)] = name
            self.kept.append(section)
        return self.known[id(section)]


def _styles(sections: Sequence[Section]) -> Iterator[str]:
    """The rules of everything that moves."""
    for section in sections:
        for block in _blocks(section.blocks):
            if style := getattr(block, "style", None):
                yield str(style)
        yield from _styles(section.parts)


def _blocks(blocks: Sequence[Block]) -> Iterator[Block]:
    for block in blocks:
        yield block
        if isinstance(block, Row):
            yield from _blocks(block.blocks)


def _version() -> str:
    try:
        return version("shortflow")
    except PackageNotFoundError:
        return "(not installed)"
