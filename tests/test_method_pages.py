"""docs/methods/ is what the recipes say now, and says all of it."""

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from shortflow.config import recipe_named
from shortflow.recipes import RECIPES, SETTINGS

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "methods"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("method_pages", ROOT / "scripts" / "method_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(script: ModuleType) -> dict[str, str]:
    return script.pages()


def test_the_pages_are_those_that_the_script_makes(made: dict[str, str]) -> None:
    """If this fails: python scripts/method_pages.py."""
    assert {file.name for file in FOLDER.glob("*")} == set(made)
    for name, text in made.items():
        assert (FOLDER / name).read_text() == text, f"{name} is stale; run python scripts/method_pages.py"


@pytest.mark.parametrize("name", RECIPES)
def test_a_page_says_everything_about_its_recipe(name: str, made: dict[str, str]) -> None:
    text, recipe = made[f"{name}.md"], recipe_named(name)
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == [
        "Formula",
        "Symbols",
        "Published run",
        "Settings",
        "What published code does differently",
        "Expected results",
        "Cost of a step",
        "Train and sample",
        "BibTeX",
    ]
    assert f"# {recipe.title}\n" in text
    assert f"`{name}` · {recipe.year}" in text
    if recipe.arxiv:
        assert f"(https://arxiv.org/abs/{recipe.arxiv})" in text
    assert recipe.published is not None
    (run,) = re.findall(r"^## Published run\n\n(.*)$", text, re.MULTILINE)
    for what, number in (("batch", recipe.published.batch), ("steps", recipe.published.steps)):
        assert (f"{number:,}" in run) if number else (what in run.partition("Not established: ")[2]), run
    for setting in SETTINGS.get(name, ())[1:]:
        assert f"The setting `{name}/{setting}`" in text


@pytest.mark.parametrize("name", RECIPES)
def test_the_settings_of_a_page_are_a_run_file(name: str, made: dict[str, str], tmp_path: Path) -> None:
    from shortflow.config import load_run

    (settings,) = re.findall(r"```yaml\n(.*?)```", made[f"{name}.md"], re.DOTALL)
    indented = "".join(f"  {line}\n" for line in settings.splitlines())
    (tmp_path / "run.yaml").write_text(f"recipe:\n  name: {name}\n{indented}")
    read, meant = load_run(tmp_path / "run.yaml").recipe, recipe_named(name)
    parts = ("path", "parameterization", "conditioning", "sigma_data", "objective", "batches", "optimizer")
    assert all(getattr(read, part) == getattr(meant, part) for part in parts)


def test_commands_on_the_pages_exist(made: dict[str, str]) -> None:
    from typer.main import get_command

    from shortflow.cli import app

    command = get_command(app)
    count = 0
    for name in RECIPES:
        (lines,) = re.findall(r"```sh\n(.*?)```", made[f"{name}.md"], re.DOTALL)
        for line in lines.splitlines():
            words = line.split()
            known = {option for parameter in command.commands[words[1]].params for option in parameter.opts}  # type: ignore[attr-defined]
            assert {word for word in words if word.startswith("--")} <= known, line
            count += 1
        needs = recipe_named(name).objective.needs
        assert ("--teacher" in lines) == bool(needs & {"teacher", "pairs"})
        assert ("--init-from" in lines) == (name in ("progressive-distillation", "tcm"))
    assert count >= 3 * len(RECIPES)


@pytest.mark.parametrize("name", ["tcm", "progressive-distillation", "reflow"])
def test_commands_of_methods_that_start_from_a_model_run(
    name: str, made: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from shortflow.cli import main

    monkeypatch.chdir(tmp_path)
    (lines,) = re.findall(r"```sh\n(.*?)```", made[f"{name}.md"], re.DOTALL)
    for line in lines.splitlines()[:-1]:
        small = ["-n", "8"]
        if " train " in line:
            small = ["--set", "images=64", "--set", "batch=32", "--set", "preview_every=0"]
        if name == "reflow" and f"train {name}" in line:
            small += ["--set", "pairs.count=64", "--set", "pairs.steps=2"]
        with pytest.raises(SystemExit) as caught:
            main([*line.split()[1:], *small])
        assert not caught.value.code, line
    assert Path(f"{name}.png").is_file()


def test_options_that_docstrings_name_exist() -> None:
    """Options of the command line in the recipes' docstrings, such as --sampler re-noise, are real."""
    from typer.main import get_command

    from shortflow.cli import app
    from shortflow.sample import GRIDS, SAMPLERS

    known = {
        option
        for command in get_command(app).commands.values()  # type: ignore[attr-defined]
        for parameter in command.params
        for option in parameter.opts
    }
    named = 0
    for module in {sys.modules[make.__module__] for make in RECIPES.values()}:
        for code in re.findall(r"`(--[^`]*)`", module.__doc__ or ""):
            words = code.split()
            assert {word for word in words if word.startswith("--")} <= known, f"{module.__name__}: {code}"
            for option, values in (("--sampler", SAMPLERS), ("--grid", GRIDS)):
                if option in words:
                    assert words[words.index(option) + 1] in values
            named += 1
    assert named > 15


def test_the_overview_has_every_recipe_once_and_the_tree_all_of_them(made: dict[str, str]) -> None:
    table, tree = made["README.md"].split("## Who is whose limit")
    rows = re.findall(
        r"^\| \[`([\w-]+)`\]\(([\w-]+)\.md\) \| (\d{4}) \| (.+) \| ([\d.]+) F \| .+ \|$", table, re.MULTILINE
    )
    assert sorted(row[0] for row in rows) == sorted(RECIPES)
    assert all(row[0] == row[1] and int(row[2]) == recipe_named(row[0]).year for row in rows)
    assert len({row[3] for row in rows}) >= len(rows) - 1  # each says what is its own
    named = set(re.findall(r"`([\w-]+)`", tree))
    assert named == set(RECIPES)


def test_docstrings_that_are_laid_out_otherwise_are_refused(script: ModuleType) -> None:
    good = "T.\n\n    x = y\n\n| symbol in the paper | field |\n|---|---|\n| x | `path` |\n\nNote.\n\n"
    end = "Where published code differs: nowhere.\n\nSampling: one jump.\n\nExpected: 1."
    found = script.sections(good + end)
    assert found["notes"] == "Note."
    assert script.body(found["differs"]) == "Nowhere."
    for bad in (good + end.replace("Sampling", "Sample"), good.replace("    x", "x") + end, good + "Expected: 1."):
        with pytest.raises(ValueError, match=r"T\.: expected"):
            script.sections(bad)


def test_every_module_of_recipes_is_laid_out_alike(script: ModuleType) -> None:
    files = [file for file in (ROOT / "src/shortflow/recipes").glob("*.py") if file.stem != "__init__"]
    assert len(files) > 20
    for file in files:
        parts = script.sections(ast.get_docstring(ast.parse(file.read_text())) or "")
        assert all(parts[name] for name in ("title", "formula", "table", "differs", "sampling", "expected"))
