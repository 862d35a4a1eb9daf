"""Every page of docs/how-to does what it says: its file is imported, its run trained, its model loaded and sampled."""

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shortflow import hub
from shortflow.cli import main
from shortflow.config import parts
from shortflow.errors import CheckpointError
from shortflow.sample import SAMPLERS

PAGES = sorted((Path(__file__).parents[1] / "docs" / "how-to").glob("*.md"))
SMALL = ("--set", "images=64", "--set", "batch=32", "--set", "preview_every=0")
LONGEST = 30  # lines of text and code


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Parts and modules of a user's are unknown again after the test."""
    before, modules = dict(parts._KINDS), set(sys.modules)
    samplers = dict(SAMPLERS)
    yield
    for table, was in ((parts._KINDS, before), (SAMPLERS, samplers)):
        table.clear()
        table.update(was)  # pyright: ignore[reportArgumentType]
    for name in set(sys.modules) - modules:
        if "." not in name:
            del sys.modules[name]


def block(page: Path, language: str) -> str | None:
    found = re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(found) <= 1
    return found[0] if found else None


def run(command: str, *more: str) -> None:
    words = shlex.split(command)
    assert words[0] == "shortflow"
    with pytest.raises(SystemExit) as caught:
        main([*words[1:], *more])
    assert not caught.value.code, command


def test_there_is_a_page_for_every_kind_of_part() -> None:
    names = {page.stem for page in PAGES}
    assert names == {"path", "time-law", "target", "metric", "weighting", "velocity", "network", "sampler"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_short(page: Path) -> None:
    lines = [line for line in page.read_text().splitlines() if line.strip() and not line.startswith("```")]
    assert len(lines) <= LONGEST
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_works_as_it_stands(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, run_file, commands = block(page, "python"), block(page, "yaml"), block(page, "sh")
    assert code
    assert commands
    (name,) = re.findall(r"`(\w+\.py)`", page.read_text())
    Path(name).write_text(code)
    (part,) = re.findall(r"@sf\.register\n@dataclass\(frozen=True, kw_only=True\)\nclass (\w+)", code)
    if run_file is not None:
        assert part in run_file
        Path("run.yaml").write_text(run_file)
    trained = []
    for command in commands.splitlines():
        small = command.startswith("shortflow train")
        run(command, *(SMALL if small else ("-n", "60") if "evaluate" in command else ("-n", "16")))
        if small:
            trained.append(command.split("--out ")[1])
    assert part in parts._KINDS
    assert "out/run" in trained
    models = [hub.load(directory) for directory in trained]
    assert all(model.step == 2 for model in models)
    if run_file is not None:
        assert all(part in (Path(directory) / "run.yaml").read_text() for directory in trained)
        # Whoever does not know the part cannot open the model, and is told what to do: a file is never executed.
        del parts._KINDS[part]
        with pytest.raises(CheckpointError, match=f"no such kind '{part}'.*--import FILE"):
            hub.load("out/run")
    pixels = np.asarray(Image.open("samples.png"))
    assert pixels.std() > 0


# ------------------------------------------------------------------------------------------------------------- --import


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_a_file_that_cannot_be_imported_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no such Python file" in refused(capsys, "recipes", "--import", str(tmp_path / "none.py"))
    text = tmp_path / "mine.txt"
    text.write_text("x = 1\n")
    assert "there is no such Python file" in refused(capsys, "recipes", "--import", str(text))
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\ny = 1 / 0\n")
    assert f"--import {broken} failed: ZeroDivisionError: division by zero (line 2)" in refused(
        capsys, "recipes", "--import", str(broken)
    )
    assert "broken" not in sys.modules
    wrong = tmp_path / "wrong.py"
    wrong.write_text("x = 1\ndef\n")
    assert "(line 2)" in refused(capsys, "recipes", "--import", str(wrong))
    taken = tmp_path / "json.py"
    taken.write_text("")
    assert "there is a module called json already; rename the file" in refused(
        capsys, "recipes", "--import", str(taken)
    )


def test_a_file_is_executed_once_and_a_part_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "counted.py"
    file.write_text("import builtins\nbuiltins.counted = getattr(builtins, 'counted', 0) + 1\n")
    import builtins

    for _ in range(2):
        with pytest.raises(SystemExit):
            main(["recipes", "--import", str(file), "--import", str(file)])
    try:
        assert builtins.counted == 1  # pyright: ignore[reportAttributeAccessIssue]
    finally:
        del builtins.counted  # pyright: ignore[reportAttributeAccessIssue]
    part = tmp_path / "loose.py"
    part.write_text("import shortflow as sf\n@sf.register\nclass Loose(sf.Metric):\n    pass\n")
    assert "Loose cannot stand in a run file: it must be a dataclass" in refused(
        capsys, "show", "esc", "--import", str(part)
    )


def test_a_recipe_of_ones_own_is_trained_by_its_name(tmp_path: Path) -> None:
    from shortflow.recipes import RECIPES

    file = tmp_path / "own.py"
    file.write_text(
        "from dataclasses import replace\nfrom shortflow.recipes import RECIPES, meanflow\n\n\n"
        'def own():\n    """Mine."""\n    return replace(meanflow(), name="own")\n\n\nRECIPES["own"] = own\n'
    )
    try:
        out = tmp_path / "out"
        run(f"shortflow train own --data moons --import {file} --out {out}", *SMALL)
        run("shortflow recipes")
        run("shortflow show own")
        assert hub.load(out).run.recipe.name == "own"
    finally:
        RECIPES.pop("own", None)
