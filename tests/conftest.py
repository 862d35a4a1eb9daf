import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: threads of small operations would only wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

from commands import Said, Shortflow

# How long a case takes says more about what else the machine does than about the library.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")

SOURCE = Path(__file__).parents[1] / "src" / "shortflow"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--types", action="store_true", help="check shapes and types of every call in the library")


def pytest_configure(config: pytest.Config) -> None:
    """Checks every module but the rules of the dual pass: they name no shapes, and every operation calls several."""
    if config.getoption("--types"):
        names = sorted(
            path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
        )
        checked = [f"shortflow.{name}" for name in names if name not in ("__init__", "dual")]
        install_import_hook(checked, "beartype.beartype")


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """A test that draws without a generator draws the same numbers every time."""
    torch.manual_seed(0)


@pytest.fixture
def shortflow(capsys: pytest.CaptureFixture[str]) -> Shortflow:
    """Run a command in this process: exit code, standard output and error. Captured output is no terminal."""
    from shortflow.cli import main  # not before the types of the library are checked, if they are

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Said(int(caught.value.code or 0), out, err)

    return run
