"""The scores and the logs of a study's cells as two tables: python scripts/study_logs.py OUT [OUT …] --into FOLDER

FOLDER/NAME-scores.csv     a row for each cell and number of steps: variant, seed, steps, and all figures
FOLDER/NAME-training.csv   twenty rows for each cell: variant, seed, images, loss, and what else its log has of numbers

NAME is the directory's. Cells that are not done are left out of the scores.
"""

import argparse
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shortflow.files import write_atomic
from shortflow.studies import cell_directory, read_plan

ROWS = 20  # of the log of a cell


def scores(out: Path) -> Iterator[dict[str, Any]]:
    """The figures of the samples of every cell that is done, by number of steps."""
    plan = read_plan(out)
    for variant, seed in plan.cells:
        file = cell_directory(out, variant.name, seed) / "evaluation.json"
        if file.is_file():
            for name, row in json.loads(file.read_text())["rows"].items():
                if name.endswith(("step", "steps")):
                    numbers = {key: value for key, value in row.items() if isinstance(value, (int, float))}
                    yield {"variant": variant.name, "seed": seed, "steps": int(name.split()[0]), **numbers}


def training(out: Path) -> Iterator[dict[str, Any]]:
    """The numbers in the logs of all cells, at twenty times of each run, the last of which is its end."""
    plan = read_plan(out)
    for variant, seed in plan.cells:
        file = cell_directory(out, variant.name, seed) / "stats.jsonl"
        if file.is_file():
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            for k in sorted({(i + 1) * len(rows) // ROWS - 1 for i in range(ROWS)} - {-1}):
                numbers = {key: value for key, value in rows[k].items() if isinstance(value, (int, float))}
                yield {"variant": variant.name, "seed": seed, **numbers}


def written(rows: list[dict[str, Any]]) -> str:
    """The rows as CSV, numbers to six digits; a column for everything that one of them has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    file = io.StringIO()
    table = csv.DictWriter(file, columns, lineterminator="\n")
    table.writeheader()
    table.writerows({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    return file.getvalue()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="+", type=Path, help="directories of studies")
    parser.add_argument("--into", type=Path, required=True)
    options = parser.parse_args(arguments)
    options.into.mkdir(parents=True, exist_ok=True)
    for out in options.out:
        for what, rows in (("scores", scores(out)), ("training", training(out))):
            file = options.into / f"{out.resolve().name}-{what}.csv"
            write_atomic(file, written(list(rows)))
            print(file)


if __name__ == "__main__":
    main()
