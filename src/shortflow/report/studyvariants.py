"""Sections of a study: samples, what was compared, every run, how to make it again."""

import json
from collections.abc import Mapping

from shortflow.config import RunConfig, difference
from shortflow.config.words import described
from shortflow.report.blocks import Block, Code, Row, Section, Sentences, Table, number
from shortflow.report.metrics import measured
from shortflow.report.reading import is_map, listed
from shortflow.report.recipes import NAMES, base_of, plain_value
from shortflow.report.runcost import duration, sums_table
from shortflow.report.samples import drawn_samples, real_data
from shortflow.report.seen import MANY, Seen, words

__all__ = ["again_section", "cells_section", "samples_section", "variants_section"]


def samples_section(seen: Seen, name: str) -> Section:
    """Samples by variant, the best first: few steps beside many, from the same noise everywhere."""
    drawn = [variant for variant in seen.order if variant in seen.study.pictures]
    if not drawn:
        text = (
            f"No samples are drawn yet: `shortflow report {seen.study.directory} --draw` draws some of every variant."
        )
        return Section(title="Samples", blocks=[Sentences(texts=[text])] if seen.order else [])
    real = next((found for v in drawn if (found := real_data(seen.study.pictures[v], f"{name}-s"))), [])
    parts = [Section(title="Real data", blocks=[Row(blocks=real, narrow=True)] if real else [])]
    for k, variant in enumerate(drawn):
        blocks = drawn_samples(seen.study.pictures[variant], f"{name}-s{k}", most=3)
        parts.append(Section(title=f"Samples of {variant}", blocks=[Row(blocks=blocks, narrow=True)] if blocks else []))
    said = ["Of one run of each variant, the best variant first; the same noise for all of them."]
    left = [variant for variant in seen.order if variant not in drawn]
    if left:
        said.append(f"Not drawn: {', '.join(left)}.")
    return Section(title="Samples", blocks=[Sentences(texts=said)], parts=[part for part in parts if part])


def variants_section(seen: Seen) -> Section:
    """What was compared: settings, methods in words where they differ, what they change in published recipes, run
    files."""
    rows = []
    for each in seen.study.rows("variants"):
        settings, recipe = each.get("settings"), each.get("recipe")
        said = [f"{path} = {plain_value(value)}" for path, value in settings.items()] if is_map(settings) else []
        needs = [f"{role} {each[role]}" for role in ("teacher", "start", "weak") if each.get(role) is not None]
        needs += ["made for others only"] * (each.get("support") is True)
        line = [str(each.get("name")), recipe if isinstance(recipe, str) else "–", "; ".join(said) or "–"]
        rows.append([*line, "; ".join(needs) or "–"])
    if not rows:
        return Section(title="Variants")
    bare = all(row[3] == "–" for row in rows)
    head = ["", "recipe", "settings", "other models"]
    blocks: list[Block] = [
        Table(
            caption="What was compared",
            head=head[:-1] if bare else head,
            rows=[row[:-1] for row in rows] if bare else rows,
            words=frozenset({1, 2, 3}),
        )
    ]
    known = {name: seen.study.runs[name] for name in (row[0] for row in rows) if name in seen.study.runs}
    few = 1 < len(known) <= MANY
    blocks += _in_words({name: run for name, (_, run) in known.items()}) if few else _differences(seen)
    blocks += _published({name: run for name, (_, run) in known.items()})
    if len(known) <= MANY:
        for name, (text, _) in known.items():
            blocks.append(Code(text=text.rstrip() + "\n", label=f"run.yaml of {name}", folded=True))
    elif known:
        blocks.append(Sentences(texts=["Every setting of a run is in run.yaml in its folder."]))
    return Section(title="Variants", blocks=blocks)


def _in_words(runs: Mapping[str, RunConfig]) -> list[Block]:
    """The methods beside each other, in the aspects in which they differ."""
    phrases = {name: described(run.recipe) for name, run in runs.items()}
    first = next(iter(phrases.values()))
    rows = []
    for aspect in first:
        said = [each[aspect] for each in phrases.values()]
        if len(set(said)) > 1:
            rows.append([aspect, *said])
    same = [aspect for aspect in first if aspect not in {row[0] for row in rows}]
    if not rows:
        return []
    table = Table(
        caption="The methods in words, where they differ",
        head=["", *runs],
        rows=rows,
        words=frozenset(range(1, len(runs) + 1)),
        note=f"The same in all: {', '.join(same)}." if same else "",
    )
    return [table]


def _differences(seen: Seen) -> list[Block]:
    """What sets each variant apart from the one that they are set against, as the plan has it."""
    variants = [each for each in seen.study.rows("variants") if not each.get("support")]
    rows = []
    for each in variants:
        said = [str(text) for text in listed(each.get("differences"))] or [str(each.get("difference") or "")]
        rows += [[str(each.get("name")), text] for text in said if text]
    if not rows:
        return []
    base = seen.settings.get("against") or variants[0].get("name")
    return [Table(caption=f"What differs from {base}", head=["", "difference"], rows=rows, words=frozenset({1}))]


def _published(runs: Mapping[str, RunConfig]) -> list[Block]:
    """What each variant changes in the published recipe, or setting of it, that is nearest."""
    rows = []
    for name, run in runs.items():
        base = base_of(run.recipe)
        if base is None:
            rows.append([name, "none: a method of one's own", "–"])
            continue
        changed = [row for row in difference(base[1], run.recipe) if row[0] not in NAMES]
        said = "; ".join(f"{path}: {plain_value(left)} → {plain_value(right)}" for path, left, right in changed)
        rows.append([name, base[0], said or "nothing"])
    caption, head = "What they change in the published recipes", ["", "nearest recipe", "changed in the method"]
    return [Table(caption=caption, head=head, rows=rows, words=frozenset({1, 2}))] if rows else []


def cells_section(seen: Seen) -> Section:
    """Every run with its state, its figure and what it is made of."""
    key = words(seen.steps)
    rows = []
    for cell in seen.study.rows("cells"):
        record = cell.get("record")
        scores = record.get("rows") if isinstance(record, Mapping) else None
        row = scores.get(key) if isinstance(scores, Mapping) else None
        value = measured(row.get(seen.metric.key)) if isinstance(row, Mapping) else None
        seconds = measured(cell.get("seconds"))
        error = str(cell.get("error") or "").strip().splitlines()
        rows.append(
            [
                f"{cell.get('variant')}, seed {cell.get('seed')}",
                str(cell.get("status")),
                number(value),
                number(cell.get("images")) if cell.get("images") else "–",
                "–" if seconds is None else duration(seconds),
                error[-1] if error else str(cell.get("path") or ""),
                seen.study.totals.get(str(cell.get("path")), "–")[:12],
            ]
        )
    table = Table(
        caption="Every run",
        head=[
            "",
            "status",
            f"{seen.metric.label}, {key}",
            "images",
            "time",
            "folder, or what went wrong",
            "SHA-256",
        ],
        rows=rows,
        words=frozenset({1, 5, 6}),
        note="SHA-256 over weights and description, as the model says it itself: the first 12 digits.",
    )
    return Section(title="Runs", blocks=[table] if rows else [])


def again_section(seen: Seen) -> Section:
    """Commands that go on with the study, and that make it anew from the file in the page."""
    directory, asked = seen.study.directory, seen.study.asked
    commands = [f"shortflow compare --out {directory}", f"shortflow report {directory} --out page.html"]
    said = "The first command makes the cells that are missing, if there are any."
    if asked is not None:
        commands.append("shortflow compare study.yaml --out out/again")
        said += " The last one makes the whole study anew, from the file below saved as study.yaml."
    settings = json.dumps(seen.settings, indent=2, ensure_ascii=False) + "\n"
    blocks: list[Block] = [
        Sentences(texts=[said]),
        Code(text="\n".join(commands) + "\n", label="Commands"),
        Code(text=asked or settings, label="study.yaml" if asked else "Settings of the study", folded=True),
        sums_table(seen.study.sums),
    ]
    return Section(title="Make it again", blocks=blocks)
