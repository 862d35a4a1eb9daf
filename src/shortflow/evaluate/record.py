"""Evaluation records as tables and files.

A table has one row a record (1 step, 2 steps, …, real); a file is JSON, written so that a reader sees the old
content or the new one, never a half of it.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shortflow.errors import MetricError

__all__ = ["markdown_table", "table", "verdict", "write_record"]

# Column head, key of the record, format.
_COLUMNS = (
    ("acc", "conditional_accuracy", ".3f"),
    ("FD", "fd", ".3f"),
    ("FD %", "fd_percent", ".2f"),
    ("KID", "kid", ".3f"),
    ("precision", "precision", ".3f"),
    ("recall", "recall", ".3f"),
    ("density", "density", ".3f"),
    ("coverage", "coverage", ".3f"),
    ("N", "n", "d"),
)


def _cells(rows: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    if not rows:
        raise MetricError("a table needs at least one record")
    body = []
    for name, record in rows.items():
        values = [(record.get(key), form) for _, key, form in _COLUMNS]
        body.append([name, *("–" if value is None else format(value, form) for value, form in values)])
    return [["", *(head for head, _, _ in _COLUMNS)], *body]


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The records as an aligned plain-text table, a line each, named by the keys of `rows`; – where there is none.

    >>> table({"1 step": evaluate_images(...), "real (held out)": real_row(...)})
    """
    cells = _cells(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, *values in cells:
        numbers = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *numbers]))
    return "\n".join(lines)


def markdown_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The same table in Markdown."""
    head, *body = _cells(rows)
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *body])


def verdict(record: Mapping[str, Any]) -> list[str]:
    """What the table says about one step against few steps, in words."""
    rows = record["rows"]
    if "1 step" not in rows or "4 steps" not in rows or rows["1 step"].get("coverage") is None:
        return []
    worse = [
        f"{name} {rows['1 step'][key]:.3f} against {rows['4 steps'][key]:.3f}"
        for name, key in (
            ("accuracy", "conditional_accuracy"),
            ("coverage", "coverage"),
            ("recall", "recall"),
            ("FD", "fd"),
        )
        if None not in (rows["1 step"][key], rows["4 steps"][key])
        and (rows["1 step"][key] - rows["4 steps"][key]) * (-1 if key == "fd" else 1) < 0
    ]
    return [f"One step is worse than four in: {'; '.join(worse)}."] if worse else ["One step is no worse than four."]


def write_record(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write `record` to `path` as indented JSON, atomically: temporary file beside it, fsync, rename.

    Raises:
        MetricError: if a value is not finite or not JSON; the file at `path` is then untouched.
    """
    path = Path(path)
    try:
        text = json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise MetricError(f"the record for {path} cannot be written as JSON: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    # Opened plainly, not through tempfile, whose files are private: a record is as readable as its directory.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
