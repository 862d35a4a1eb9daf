"""Training steps with dropout compile to one graph, with derivatives inside and with checkpointed blocks."""

import subprocess
import sys
from pathlib import Path

import pytest

import compiled


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_step_with_dropout_is_one_graph_and_its_numbers_are_the_same(checkpoint: bool) -> None:
    command = [sys.executable, compiled.__file__, *(["checkpoint"] if checkpoint else [])]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [line.split() for line in done.stdout.splitlines()]
    assert [(kind, what, count) for kind, what, count in found[:-1]] == [
        (kind, make.__name__, "1") for kind in compiled.KINDS for make in (compiled.tangent, compiled.terminal)
    ]
    assert int(found[-1][-1]) <= 6  # with and without gradient, a pair, and other numbers of rows
