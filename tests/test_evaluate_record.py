"""Tables and record files."""

import json
import math

import pytest

from shortflow.errors import MetricError
from shortflow.evaluate import markdown_table, table, write_record

ROW = {
    "n": 500,
    "fd": 12.3456,
    "fd_percent": 15.5,
    "kid": -0.0951,
    "precision": 1.0,
    "recall": 0.25,
    "density": 0.8,
    "coverage": 0.9,
    "conditional_accuracy": 0.988,
}
ROWS = {"1 step": ROW, "real (held out)": ROW | {"fd": 0.3, "conditional_accuracy": None, "kid": None}}


def test_table_is_aligned():
    assert table(ROWS).splitlines() == [
        "                   acc      FD   FD %     KID  precision  recall  density  coverage    N",
        "1 step           0.988  12.346  15.50  -0.095      1.000   0.250    0.800     0.900  500",
        "real (held out)      –   0.300  15.50       –      1.000   0.250    0.800     0.900  500",
    ]


def test_markdown_table():
    lines = markdown_table(ROWS).splitlines()
    assert lines[1] == "| --- |" + " ---: |" * 9
    assert lines[2] == "| 1 step | 0.988 | 12.346 | 15.50 | -0.095 | 1.000 | 0.250 | 0.800 | 0.900 | 500 |"
    with pytest.raises(MetricError, match="at least one"):
        markdown_table({})


def test_write_record_round_trip(tmp_path):
    path = tmp_path / "new" / "evaluation.json"
    write_record(path, ROWS)
    write_record(path, {"rows": ROWS})
    assert json.loads(path.read_text()) == {"rows": ROWS}
    assert [p.name for p in path.parent.iterdir()] == ["evaluation.json"]


def test_a_failed_write_leaves_the_old_record(tmp_path, monkeypatch):
    path = tmp_path / "evaluation.json"
    write_record(path, ROW)
    with pytest.raises(MetricError, match=r"evaluation\.json cannot be written"):
        write_record(path, {"fd": math.nan})
    with pytest.raises(MetricError, match="JSON"):
        write_record(path, {"fd": object()})

    def broken(handle):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        write_record(path, {"fd": 1.0})
    assert json.loads(path.read_text()) == ROW
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation.json"]
