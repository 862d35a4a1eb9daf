"""What long operations say on the way: a bar on a terminal, a line now and then in a log."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shortflow.cli import progress as shown


class Clock:
    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(shown, "clock", lambda: found.now)
    return found


def run(clock: Clock, seconds: float, steps: int, **options: object) -> None:
    """An operation of equal steps."""
    with shown.progress("samples", **options) as report:  # type: ignore[arg-type]
        for k in range(1, steps + 1):
            clock.now += seconds / steps
            report(k, steps)


def test_a_quick_operation_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 9.0, 1000)
    assert capsys.readouterr().out == ""


def test_a_long_one_has_a_line_at_every_tenth_with_the_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    run(clock, 1000.0, 2000)
    lines = capsys.readouterr().out.splitlines()
    # Half a second a sample: after 200 of them 1800 are left.
    assert lines[0] == "samples   200/2,000  left 15:00"
    assert [line.split()[1] for line in lines] == [f"{200 * k:,}/2,000" for k in range(1, 11)]
    assert lines[-1] == "samples 2,000/2,000  left 0:00"


def test_tenths_that_follow_quickly_are_left_out(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 25.0, 100)  # a tenth every 2.5 s, a line every 10 s
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["40/100", "80/100"]
    run(clock, 25.0, 100, patience=0.0)
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_a_day_has_a_line_every_ten_minutes(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    run(clock, 86400.0, 86400)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 150  # 14 and the tenth itself, ten times
    assert lines[0].split()[:2] == ["samples", "600/86,400"]
    assert lines[0].endswith("left 23:50:00")


def test_what_goes_on_knows_its_speed_from_what_it_has_done_itself(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with shown.progress("samples", patience=0.0) as report:
        for done in (800, 900, 1000):  # 700 were there
            clock.now += 10.0
            report(done, 1000)
    assert capsys.readouterr().out.splitlines() == [
        "samples   800/1,000",
        "samples   900/1,000  left 0:10",
        "samples 1,000/1,000  left 0:00",
    ]


def test_more_is_said_between_number_and_time(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with shown.progress("step", patience=0.0) as report:
        report(1, 2, ("loss 1.0", "", "3 images/s"))
        clock.now += 2.0
        report(2, 2, ("loss 0.5", "", "3 images/s"))
    assert capsys.readouterr().out == "step 1/2  loss 1.0  3 images/s\nstep 2/2  loss 0.5  3 images/s  left 0:00\n"


def test_other_processes_say_nothing(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    run(clock, 1000.0, 20)
    assert capsys.readouterr().out == ""


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A terminal of so many columns."""

    def wide(columns: int) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(columns))

    return wide


@pytest.mark.parametrize(("columns", "error"), [(140, True), (90, False)])
def test_a_terminal_has_a_bar(
    columns: int, error: bool, terminal: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(columns)
    with shown.progress("step", title="training", stays=True) as report:
        report(1, 2, ("loss 1.25", "3 images/s", "velocity error 0.5"))
        report(2, 2, ("loss 0.75", "7 images/s", "velocity error 0.5"))
    said = capsys.readouterr().out
    assert "training" in said
    assert "2/2" in said
    assert "loss 0.75" in said
    assert "7 images/s" in said
    assert ("velocity error" in said) == error


def test_a_bar_that_was_not_asked_for_is_not_there(
    terminal: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two of them, of which only one has something to do: pairs that are there already, then training."""
    terminal(140)
    with shown.progress("pairs"), shown.progress("step", title="training") as report:
        report(1, 1)
    assert "pairs" not in capsys.readouterr().out


def test_one_bar_ends_before_the_next_begins(
    terminal: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    terminal(140)
    with shown.progress("pairs") as pairs, shown.progress("step", title="training", stays=True) as steps:
        pairs(1, 2)
        pairs(2, 2)
        steps(1, 1)
    said = capsys.readouterr().out
    assert said.index("pairs") < said.index("training")


def test_commands_have_no_bars_of_their_own() -> None:
    """All of them are shown by this module."""
    folder = Path(shown.__file__).parent
    assert [path.name for path in sorted(folder.glob("*.py")) if "rich.progress" in path.read_text()] == []
    assert "from rich import progress" in (folder / "progress.py").read_text()
