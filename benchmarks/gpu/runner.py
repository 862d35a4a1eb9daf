"""Running parts one after the other within a budget of time, so that no failure or delay loses what others found."""

import gc
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Context", "Part", "TimeUp", "faults", "run_all"]

Record = dict[str, Any]


@dataclass(kw_only=True)
class Context:
    """What parts are told.

    Attributes:
        device: where to measure.
        quick: tiny sizes, for tests.
        found: the results of the parts before, by name; of those only that were finished.
    """

    device: torch.device
    quick: bool = False
    found: dict[str, Record] = field(default_factory=dict)

    @property
    def backend(self) -> str:
        """That networks are compiled by; quick runs trace them, and leave out the compiler itself."""
        return "eager" if self.quick else "inductor"


@dataclass(frozen=True)
class Part:
    """A measurement with a name; `run` returns values for JSON."""

    name: str
    run: Callable[[Context], Record]


class TimeUp(BaseException):
    """The budget is used up. Not an Exception, so that nobody who tries something else on errors goes on."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `TimeUp` inside the context after so many seconds, where there are alarms and this thread gets them."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, ring)
    # Again and again: Python drops what is raised while it collects garbage.
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_all(
    parts: Sequence[Part],
    context: Context,
    budget: float,
    save: Callable[[dict[str, Record]], None],
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Record]:
    """{name: {"state", "seconds", "result" or "reason", "warnings"}}; `save` is called with it after every part.

    States are "done", "failed" (with the error), "stopped" (the budget ended while it ran) and "skipped".
    """
    records: dict[str, Record] = {}
    began = clock()
    for part in parts:
        start = clock()
        left = budget - (start - began)
        if left <= 0:
            records[part.name] = {"state": "skipped", "reason": f"the budget of {budget:g} s was used up before it"}
        else:
            records[part.name] = {**_run(part, context, left, budget), "seconds": round(clock() - start, 2)}
        save(records)
    return records


def _run(part: Part, context: Context, left: float, budget: float) -> Record:
    record: Record
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        try:
            with limited(left):
                result = part.run(context)
            record = {"state": "done", "result": result}
            context.found[part.name] = result
        except TimeUp:
            record = {"state": "stopped", "reason": f"the budget of {budget:g} s ended while it ran"}
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).strip()}"[:1000]
            record = {"state": "failed", "reason": reason, "where": traceback.format_exc().splitlines()[-8:]}
    heard = dict.fromkeys(" ".join(str(warning.message).split())[:300] for warning in said)
    if heard:
        record["warnings"] = list(heard)[:10]
    _clear()
    return record


def _clear() -> None:
    """Give back what the part held. A device that a failure has left unusable must not end the run."""
    gc.collect()
    with suppress(Exception):
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def faults(records: dict[str, Record]) -> list[str]:
    """What is wrong, a line each: parts that failed, and checks whose value is out of its bound."""
    found = [f"{name}: {each['reason']}" for name, each in records.items() if each["state"] == "failed"]
    for name, each in records.items():
        for check in each.get("result", {}).get("checks", []):
            if not check["good"]:
                found.append(f"{name}: {check['what']} is {check['value']:.1e}, the bound is {check['bound']:.0e}")
    return found
