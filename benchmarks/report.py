"""Put the results into docs/performance.md: python -m benchmarks.report

The page has a block for each file of results, between two comments; what stands there is written from the JSON and by
nobody else, and is "Not measured." where there is no file.
"""

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.measure import RESULTS
from shortflow.files import write_atomic

__all__ = ["BLOCKS", "PAGE", "blocks", "filled", "rewrite"]

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"

BLOCKS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "step-cpu": tables.step,
    "compiled-cpu": tables.step,  # compiled and plain alone, with more rounds
    "step-xeon": tables.step,  # an earlier one, on another processor
    "recipes-cpu": tables.recipes,
    "scaling-cpu": tables.scaling,
    "plugin-cpu": tables.plugin,
    "kept-cpu": tables.kept,
    "kernels-cpu": tables.kernels,
    "loader-cpu": tables.loader,
    "sampling-cpu": tables.sampling,
    "checks-cpu": tables.checks,
    "gpu": tables.gpu,
}
"""Block and file of results: how it is told."""


def blocks(results: Path = RESULTS) -> dict[str, str]:
    """The text of every block, from the files of results in the folder."""
    found = {}
    for name, text in BLOCKS.items():
        file = results / f"{name}.json"
        found[name] = text(json.loads(file.read_text())) if file.exists() else "Not measured."
    return found


def filled(page: str, texts: Mapping[str, str]) -> str:
    """The page with these texts in its blocks.

    Raises:
        ValueError: if a block does not stand in the page exactly once, or the page has one without a text.
    """
    known = re.findall(r"^<!-- results: ([\w-]+) -->$", page, re.MULTILINE)
    if sorted(known) != sorted(texts):
        raise ValueError(f"the page must have the blocks {sorted(texts)}, each once, and has {sorted(known)}")
    for name, text in texts.items():
        start, end = f"<!-- results: {name} -->", f"<!-- end: {name} -->"
        if page.count(end) != 1 or page.index(end) < page.index(start):
            raise ValueError(f"the block {name} of the page must end with {end}, once, after its start")
        before, rest = page.split(start)
        page = f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}"
    return page


def rewrite(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Bring the page up to date with the results."""
    write_atomic(page, filled(page.read_text(), blocks(results)))


def main(arguments: list[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(
        arguments
    )
    rewrite()
    print(PAGE)


if __name__ == "__main__":
    main()
