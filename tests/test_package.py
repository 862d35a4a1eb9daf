"""The package as a whole: importing it is fast and light, and every name in its vocabulary is there."""

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from jaxtyping import TypeCheckError

import shortflow
from shortflow import paths


def fastest(code: str, runs: int = 3) -> float:
    """Seconds that the fastest of several new interpreters took over the statement, start-up left out."""
    timed = f"import time\nbegan = time.perf_counter()\n{code}\nprint(time.perf_counter() - began)"
    times = []
    for _ in range(runs):
        done = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True)
        times.append(float(done.stdout.split()[-1]))
    return min(times)


def test_importing_the_package_is_fast() -> None:
    assert fastest("import shortflow") < 0.3


@pytest.mark.parametrize("module", ["shortflow", "shortflow.cli", "shortflow.errors"])
def test_importing_is_light(module: str) -> None:
    heavy = ("torch", "numpy", "PIL", "accelerate", "pydantic", "safetensors", "yaml")
    code = f"import sys, {module}\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_of_the_vocabulary_is_what_its_home_holds() -> None:
    # All modules first: a module of the same name would hide a value from then on.
    for found in pkgutil.walk_packages(shortflow.__path__, "shortflow."):
        importlib.import_module(found.name)
    for name in shortflow.__all__:
        value = getattr(shortflow, name)
        assert not isinstance(value, ModuleType), name
        if name != "__version__":
            assert value is getattr(sys.modules[shortflow._HOME_OF[name]], name)
    assert len(set(shortflow.__all__)) == len(shortflow.__all__)
    assert set(shortflow.__all__) <= set(dir(shortflow))


def test_every_module_holds_what_it_offers() -> None:
    for found in pkgutil.walk_packages(shortflow.__path__, "shortflow."):
        module = importlib.import_module(found.name)
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{found.name}.{name}"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'shortflow' has no attribute 'nothing'"):
        shortflow.nothing  # noqa: B018


def test_only_declared_packages_are_imported() -> None:
    """Importing everything pulls in none of the packages that are for tests and scripts only."""
    code = (
        "import importlib, pkgutil, sys, shortflow\n"
        "for found in pkgutil.walk_packages(shortflow.__path__, 'shortflow.'): importlib.import_module(found.name)\n"
        "print([name for name in ('sklearn', 'scipy', 'torchvision', 'pytest', 'beartype') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_types_are_checked_where_the_suite_asks_for_it(request: pytest.FixtureRequest) -> None:
    wrong = torch.zeros(2, 2)  # times have one axis
    if not request.config.getoption("--types"):
        pytest.skip("run with --types")
    with pytest.raises(TypeCheckError):
        paths.Linear().alpha(wrong)
