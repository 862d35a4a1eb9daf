"""The README's code runs as it stands there, with a smaller budget; its links lead somewhere; its commands exist."""

import re
from pathlib import Path

import pytest

from shortflow.config import parts

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_ten_lines_train_and_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = blocks("python")[0]
    statements = [line for line in code.splitlines() if line.strip() and not line.startswith(("from ", "import "))]
    assert len(statements) <= 10
    small = code.replace("256_000", "10_240")
    assert small != code
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(small, "README.md", "exec"), names)
    assert names["points"].shape == (1000, 2)
    assert names["record"].step == 20
    assert (tmp_path / "out/toy/model.safetensors").is_file()


def test_own_method_takes_part_in_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shortflow as sf

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts, "_KINDS", dict(parts._KINDS))  # what is registered here is forgotten afterwards
    names: dict = {}
    exec(
        compile(
            "from dataclasses import dataclass\nimport shortflow as sf\n" + blocks("python")[1], "README.md", "exec"
        ),
        names,
    )
    exec(compile(blocks("python")[2], "README.md", "exec"), names)
    run, data = names["run"], names["data"]
    assert type(run.recipe.objective.metric).__name__ == "Cubed"
    assert isinstance(run.recipe.path, sf.Cosine)
    from dataclasses import replace

    run = replace(run, train=replace(run.train, images=1024, batch=512))
    losses = [record.loss for record in sf.training(run, data, tmp_path / "run")]
    assert len(losses) == 2
    # the run file names the part, so that the run can be opened again
    assert sf.load(tmp_path / "run").run == run


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("document", documents(), ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_commands_in_the_readme_exist() -> None:
    from typer.main import get_command

    from shortflow.cli import app

    command = get_command(app)
    for line in "\n".join(blocks("sh")).splitlines():
        words = line.split("#")[0].split()
        if words and words[0].endswith("shortflow"):
            found = command.commands[words[1]]  # type: ignore[attr-defined]
            known = {name for parameter in found.params for name in parameter.opts}
            for word in words[2:]:
                if word.startswith("--"):
                    assert word in known, f"{line}: {word}"


def test_every_module_says_what_it_owns() -> None:
    import ast

    for file in (ROOT / "src/shortflow").rglob("*.py"):
        assert ast.get_docstring(ast.parse(file.read_text())), file


def test_every_document_is_found_from_the_index() -> None:
    index, docs = (ROOT / "docs/README.md").read_text(), ROOT / "docs"
    linked = {target.split("#")[0] for target in re.findall(r"\]\(([^)]+)\)", index)}
    assert {f"how-to/{page.name}" for page in (docs / "how-to").glob("*.md")} <= linked
    assert {page.name for page in docs.glob("*.md")} - {"README.md"} <= linked
    assert {"methods/README.md", "decisions/README.md"} <= linked
    decisions = (docs / "decisions/README.md").read_text()
    pages = sorted(page.name for page in (docs / "decisions").glob("0*.md"))
    assert re.findall(r"\((0[\w-]+\.md)\)", decisions) == pages
    assert [int(name[:4]) for name in pages] == list(range(1, len(pages) + 1))
    for name in pages:
        heading = (docs / "decisions" / name).read_text().splitlines()[0]
        assert heading.startswith(f"# {int(name[:4])}. ")
        assert f"[{heading.split('. ', 1)[1]}]({name})" in decisions


def test_the_readme_stays_short() -> None:
    assert len(README.splitlines()) <= 125


def test_methods_in_how_it_works_are_recipes() -> None:
    """Every row of the table of methods names methods that there are."""
    from shortflow.recipes import RECIPES

    text = (ROOT / "docs/how-it-works.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| [^|]+ \| [^|]+ \|$", text, re.MULTILINE)
    known = {name.replace("-", "") for name in RECIPES} | {"scd", "shortcutmodels"}  # sCD is sct-distilled
    methods = [method.strip() for row in rows for method in row.split(",") if method.strip() and "---" not in method]
    assert len(methods) > 20
    for method in methods:
        assert method.lower().replace("-", "").replace(" ", "").replace("α", "alpha") in known, method
