"""Training steps compile, with dropout, derivatives and checkpoints inside, and a wrong compiler is found."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import compiled


def said(what: str) -> list[str]:
    """The lines of `compiled.py`, which must end well."""
    command = [sys.executable, compiled.__file__, what]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def check(kind: str, layout: str, lines: list[str]) -> None:
    agrees, noticed = lines
    assert agrees.startswith(f"{kind} {layout} agrees")
    assert re.search(r"failed \(its gradient of [\w.]+ differs from the plain \w+'s by 1\.0e-01 of its size", noticed)


def test_a_compiled_network_under_autocast_and_a_compiler_with_a_wrong_backward_pass() -> None:
    check("mlp", "counted", said("quick"))


@pytest.mark.slow
def test_steps_compiled_as_a_whole_and_those_of_the_u_net() -> None:
    """With dropout, with checkpoints and under autocast, in both layouts of rows."""
    lines = said("whole")
    check("mlp", "fixed", lines[:2])
    assert [line.split()[:3] for line in lines[2:]] == [
        ["unet", layout, "agrees"] for layout in ("counted", "fixed") for _ in range(3)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["graphs", "checkpoint"])
def test_a_step_with_dropout_is_one_graph_and_its_numbers_are_the_same(what: str) -> None:
    found = [line.split() for line in said(what)]
    assert [(kind, what, count) for kind, what, count in found[:-1]] == [
        (kind, make.__name__, "1") for kind in compiled.KINDS for make in (compiled.tangent, compiled.terminal)
    ]
    assert int(found[-1][-1]) <= 6  # with and without gradient, a pair, and other numbers of rows
