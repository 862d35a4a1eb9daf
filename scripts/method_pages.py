"""Write docs/methods/, a page for every recipe and a table of all, from the recipes themselves.

    python scripts/method_pages.py [--costs]

Nothing in those pages is written by hand, so that they cannot contradict the code: a test makes them again and
compares. With --costs the costs of a step are measured anew first (a minute).
"""

import argparse
import json
import re
import sys
from pathlib import Path

from shortflow.config import difference_in_words, recipe_named, to_yaml
from shortflow.cost import TABLE, known_costs, step_cost
from shortflow.paths import VarianceExploding
from shortflow.recipe import Recipe
from shortflow.recipes import RECIPES, SETTINGS

FOLDER = Path(__file__).parents[1] / "docs" / "methods"
GROUPS = ("Many steps", "One step, from scratch", "From another model")
RESULTS = ("Where the authors' code differs", "Where published code differs", "Sampling", "Expected")

INTRODUCTION = """\
# Methods

Every published method of the library, as a value made of parts. `shortflow recipes` prints this table, `shortflow show
NAME` what stands on a method's page, `shortflow recipes --diff A B` what is different between two.

The cost is the arithmetic of a training step in units of F, one pass of the network over the batch without gradient; a
plain pass forward and backward is 3 F. A derivative in forward mode is counted by what torch does for it, 3 F. Sampling
says what the network was trained for: steps of the ODE, jumps to any end, jumps of length 2⁻ʲ, or jumps to the data
with new noise in between (re-noise).
"""

FAMILY = """\
## Who is whose limit, or special case

Most of these statements are tests of the library.

- `flow-matching` is what most methods do on some rows, those with r = t; `edm` is the same on the variance-exploding
  path, in units of its network's output.
  - `reflow` is flow matching on pairs that a teacher has coupled; `live-reflow` couples them itself, on some rows.
- Two finite steps, the first along the velocity of the pair:
  - `ct`: jumps to the data, the two points neighbours on a grid.
    - `ict`: the network itself as its target, other levels and another metric. `ct-linear`: an even grid on the linear
      path. `cd`, `cd-linear`: the first step by a frozen teacher instead of the pair.
    - `ect`: the second point comes closer stage by stage; while it is the data itself, this is denoising, `edm`.
      - `tcm`: a network for high noise only, with a frozen `ect` model below.
  - `imm`: compared in law and not row by row; with one particle in a group it compares rows again.
  - `soflow`: a difference quotient whose step shrinks; its limit is `meanflow`. `rcgm`: a short first step, then
    several jumps of an average.
  - `alphaflow`: from a straight step over the whole jump (α = 1) to `meanflow` (α = 0).
- Two finite steps by the network: `psd`.
  - `shortcut` is `psd` split in the middle, on dyadic lengths, with an average of the weights.
    - `progressive-distillation` is the target of `shortcut` with the frozen network of the stage before.
- The limit s → t, along D_t X:
  - `sct` is the limit of `ct` as the grid becomes fine, on the cosine path. `sct-distilled`: along a teacher's
    velocity.
    - `sct-linear`: on the linear path; without flow-matching rows it is `meanflow` with r = 0.
  - `esd`: along the network's own velocity, with gradient through the derivative.
    - `meanflow` is `esd` along the pair's velocity, without that gradient.
      - `esc` without plug-in velocity, gradual times and learned weight is `meanflow`; `esc-plus` is `esc` for longer.
      - `imf` differentiates along the network's own velocity; along the pair's it is `meanflow`.
      - `ayf-emd` is `meanflow` along a teacher's velocity, normalised.
- The limit s → r, the velocity at the end of a jump: `lsd`.
  - `tvm` is `lsd` with an average of the weights as its target and other times. `ayf-lmd`: with a teacher's velocity,
    without gradient through the derivative.
"""


# ------------------------------------------------------------------------------------------------------- the docstrings


def sections(doc: str) -> dict[str, str]:
    """The parts of a recipe's docstring: title, formula, table, notes, differs, sampling, expected.

    Raises:
        ValueError: if it is not laid out as all of them are.
    """
    title, formula, table, *rest = doc.strip().split("\n\n")
    found = {"title": title, "formula": formula, "table": table}
    if not formula.startswith("    ") or not table.startswith("| symbol in the paper | field |\n|---|---|\n"):
        raise ValueError(f"{title}: expected a formula, indented, and a table 'symbol in the paper | field'")
    starts = [next((head for head in RESULTS if part.startswith(head)), "") for part in rest]
    names = ["differs" if start.startswith("Where") else start.lower() for start in starts]
    if names[-3:] != ["differs", "sampling", "expected"] or any(names[:-3]):
        raise ValueError(f"{title}: expected notes, then 'Where … differs', 'Sampling' and 'Expected', got {starts}")
    found |= dict(zip(names[-3:], rest[-3:], strict=True))
    return {**found, "notes": "\n\n".join(rest[:-3])}


def body(text: str) -> str:
    """A part of a docstring without the words that became its heading."""
    rest = re.sub(r"^(Where .*? differs(, and what is done here)?|Sampling|Expected):\s*", "", text)
    rest = rest[:1].upper() + rest[1:]
    # A list needs an empty line before it.
    return rest if rest.startswith("- ") else re.sub(r"\n(- )", r"\n\n\1", rest, count=1)


def module_of(name: str) -> object:
    return sys.modules[RECIPES[name.partition("/")[0]].__module__]


# ------------------------------------------------------------------------------------------------------------ the pages


def in_a_line(name: str) -> str:
    """What the recipe does: the title of its module, or, where a module has several recipes, its own docstring."""
    shared = sum(module_of(other) is module_of(name) for other in RECIPES) > 1
    title = sections(module_of(name).__doc__ or "")["title"]
    text = (RECIPES[name].__doc__ or "").split("\n\n")[0] if shared else title.partition(": ")[2]
    return f"{text[:1].upper()}{text[1:]}".rstrip(".")


def group_of(recipe: Recipe) -> str:
    if recipe.objective.needs:
        return GROUPS[2]
    return GROUPS[0] if recipe.objective.ends == "diagonal" else GROUPS[1]


def commands(recipe: Recipe) -> str:
    """How to train and sample the recipe on the built-in digits."""
    name, needs = recipe.name, recipe.objective.needs
    lines, options = [], ""
    if needs:
        source = "edm" if isinstance(recipe.path, VarianceExploding) else "flow-matching"
        source = "ect" if recipe.objective.lowest > 0 else source
        lines.append(f"shortflow train {source} --data digits --out out/teacher")
        options = " --init-from out/teacher" if "init" in needs else " --teacher out/teacher"
        options += " --init-from out/teacher" if recipe.objective.lowest > 0 else ""
    steps = 32 if recipe.objective.ends == "diagonal" and "pairs" not in needs else 1
    lines.append(f"shortflow train {name} --data digits{options} --out out/{name}")
    lines.append(f"shortflow sample out/{name} --steps {steps} --out {name}.png")
    lines.append(f"shortflow evaluate out/{name} --steps {'8,32' if steps > 1 else '1,2,4'}")
    return "\n".join(lines)


def settings_of(recipe: Recipe) -> str:
    """Everything but the name and the published run, as it stands in a run file."""
    kept, skipping = [], False
    for line in to_yaml(recipe).splitlines():
        if not line.startswith(" "):
            skipping = line.partition(":")[0] in ("name", "title", "year", "arxiv", "published")
        if not skipping:
            kept.append(line)
    return "\n".join(kept)


def page(name: str) -> str:
    """The page of a recipe."""
    recipe, module = recipe_named(name), module_of(name)
    parts = sections(module.__doc__ or "")
    paper = (
        f"[arXiv:{recipe.arxiv}](https://arxiv.org/abs/{recipe.arxiv})" if recipe.arxiv else "no arXiv number at hand"
    )
    made = (RECIPES[name].__doc__ or "").split("\n\n")[0]
    formula = "\n".join(line.removeprefix("    ") for line in parts["formula"].splitlines())
    text = [
        "<!-- Made by scripts/method_pages.py from the recipe; not to be edited. -->",
        f"# {recipe.title}",
        f"`{name}` · {recipe.year} · {paper} · {group_of(recipe).lower()}",
        f"{parts['title']} {made}",
        f"## Formula\n\n```text\n{formula}\n```",
        f"## Symbols\n\n{parts['table']}",
        parts["notes"],
        "## Published run",
        published(recipe),
        f"## Settings\n\n```yaml\n{settings_of(recipe).rstrip()}\n```",
        *others(name),
        f"## What published code does differently\n\n{body(parts['differs'])}",
        f"## Expected results\n\n{body(parts['expected'])}",
        f"## Cost of a step\n\n{known_costs()[name]:.1f} F, with F one pass of the network over the batch without "
        "gradient; a plain pass forward and\nbackward is 3 F ([how it is counted](README.md)).",
        f"## Train and sample\n\n```sh\n{commands(recipe)}\n```\n\n{body(parts['sampling'])}",
        f"## BibTeX\n\n```bibtex\n{module.BIBTEX.rstrip()}\n```",  # pyright: ignore[reportAttributeAccessIssue]
    ]
    return "\n\n".join(part for part in text if part) + "\n"


def published(recipe: Recipe) -> str:
    """The published run in a line, which says what of it is not established."""
    run = recipe.published
    if run is None:
        return "Not established."
    numbers = {
        "batch": None if run.batch is None else f"batch {run.batch:,}",
        "steps": None if run.steps is None else f"{run.steps:,} steps",
        "dropout": None if run.dropout is None else f"dropout {run.dropout:g}",
    }
    known = "; ".join(part for part in (", ".join(filter(None, numbers.values())), run.network) if part)
    unknown = [name for name, text in numbers.items() if text is None]
    missing = f" Not established: {', '.join(unknown)}." if unknown else ""
    return f"{known[:1].upper()}{known[1:]}.{missing}"


def others(name: str) -> list[str]:
    """What the further settings of a method change, in words."""
    known = [f"{name}/{setting}" for setting in SETTINGS.get(name, ())]
    said = []
    for other in known[1:]:
        words = difference_in_words(recipe_named(name), recipe_named(other), (f"`{name}`", f"`{other}`"))
        changes = "\n".join(f"- {sentence}" for sentence in words)
        said.append(f"The setting `{other}` ({known_costs()[other]:.1f} F a step) differs:\n\n{changes}")
    return said


def overview() -> str:
    """The table of all methods, and the family tree."""
    text = ["<!-- Made by scripts/method_pages.py from the recipes; not to be edited. -->", INTRODUCTION.rstrip()]
    ends = {"diagonal": "ODE steps", "zero": "re-noise", "any": "jumps", "dyadic": "jumps of 2⁻ʲ"}
    for group in GROUPS:
        rows = ["| recipe | year | what it does | cost | sampling |", "|---|---|---|---:|---|"]
        for name in RECIPES:
            recipe = recipe_named(name)
            if group_of(recipe) == group:
                needs = f" Needs: {', '.join(sorted(recipe.objective.needs))}." if recipe.objective.needs else ""
                own = f" Also: {', '.join(f'`{name}/{s}`' for s in SETTINGS[name][1:])}." if name in SETTINGS else ""
                rows.append(
                    f"| [`{name}`]({name}.md) | {recipe.year} | {in_a_line(name)}.{needs}{own} | "
                    f"{known_costs()[name]:.1f} F | {ends[recipe.objective.ends]} |"
                )
        text.append(f"## {group}\n\n" + "\n".join(rows))
    return "\n\n".join([*text, FAMILY.rstrip()]) + "\n"


def pages() -> dict[str, str]:
    """File name → content, of all pages."""
    return {"README.md": overview(), **{f"{name}.md": page(name) for name in RECIPES}}


def measure() -> None:
    """Write the table of costs."""
    names = [each for name in RECIPES for each in (name, *(f"{name}/{one}" for one in SETTINGS.get(name, ())))]
    costs = {name: round(step_cost(recipe_named(name)), 3) for name in names}
    TABLE.write_text(json.dumps(costs, indent=2) + "\n")
    known_costs.cache_clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--costs", action="store_true", help="measure the costs of a step first")
    if parser.parse_args().costs:
        measure()
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for file in FOLDER.glob("*.md"):
        if file.name not in made:
            file.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text)
    print(f"{len(made)} pages → {FOLDER}")


if __name__ == "__main__":
    main()
