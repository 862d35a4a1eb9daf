"""The results of a study as a page of Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shortflow.studies.metrics import METRICS
from shortflow.studies.statistics import mean_and_error
from shortflow.studies.verdict import figure, primary_rows, steps_in_words, thousands

__all__ = ["table"]


def table(results: Mapping[str, Any]) -> str:
    """Verdict, the figure that decides by steps, other figures, cost, what differs, what failed."""
    study = results["study"]
    lines = [f"# {study['name']}", "", *([study["about"].strip(), ""] if study["about"] else [])]
    lines += [_budget(results), ""]
    lines += [*(f"- {sentence}" for sentence in results["verdict"]), ""]
    for part in (_by_steps, _others, _over_training, _costs, _differences, _failures):
        lines += part(results)
    return "\n".join(lines).rstrip() + "\n"


def _budget(results: Mapping[str, Any]) -> str:
    study = results["study"]
    budget = study["budget"]
    kinds = {"images": "images", "seconds": "seconds of training", "forwards": "F × images", "flops": "FLOP"}
    spent = "the preset's budget" if budget is None else f"{budget['amount']:,.6g} {kinds[budget['kind']]} each"
    if budget is not None and budget["kind"] == "images":
        spent = f"{budget['amount']:,} images each"
    features = "" if study["features"] == "auto" else f"; features {study['features']}"
    seeds = ", ".join(map(str, study["seeds"]))
    what = "samples" if study["kind"] == "points" else "images"
    return (
        f"Data {study['data']}, {spent}; seeds {seeds}; {study['n']:,} {what} scored{features}. Mean ± standard error "
        "over seeds."
    )


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(line)} |" for line in (head, rule, *rows)] + [""]


def _compared(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Variants with figures, the best first."""
    order = [row["variant"] for row in primary_rows(results)]
    known = {row["variant"] for row in results["rows"]}
    found = [variant for variant in results["variants"] if variant["name"] in known]
    return sorted(found, key=lambda v: order.index(v["name"]) if v["name"] in order else len(order))


def _cells(results: Mapping[str, Any], metric: str) -> dict[tuple[str, int], Mapping[str, Any]]:
    return {(row["variant"], row["steps"]): row for row in results["rows"] if row["metric"] == metric}


def _best(rows: Sequence[Mapping[str, Any] | None], metric: str) -> float | None:
    means = [row["mean"] for row in rows if row is not None]
    if len(means) < 2 or not METRICS[metric].ranked:
        return None
    return min(means) if METRICS[metric].smaller else max(means)


def _shown(row: Mapping[str, Any] | None, metric: str, best: float | None, mark: str = "") -> str:
    if row is None:
        return "–"
    text = figure(metric, row["mean"], row["standard_error"]) + mark
    return f"**{text}**" if row["mean"] == best else text


def _by_steps(results: Mapping[str, Any]) -> Iterator[str]:
    study, variants = results["study"], _compared(results)
    metric, counts = study["metric"], study["steps"]
    if not variants:
        return
    cells = _cells(results, metric)
    best = {count: _best([cells.get((v["name"], count)) for v in variants], metric) for count in counts}
    leaders = {row["steps"]: row["variant"] for row in cells.values() if row["mean"] == best[row["steps"]]}
    behind = {(row["steps"], frozenset((row["a"], row["b"]))) for row in results["comparisons"] if row["significant"]}
    against = study["against"]

    def mark(name: str, count: int) -> str:
        other = against or leaders.get(count)
        return " †" if name != other and (count, frozenset((name, other))) in behind else ""

    rows = [
        [v["name"], *(_shown(cells.get((v["name"], n)), metric, best[n], mark(v["name"], n)) for n in counts)]
        for v in variants
    ]
    for name, real in results["reference"].items():
        if real.get(metric) is not None:
            rows.append([f"*{name}*", *([figure(metric, real[metric], None)] + [""] * (len(counts) - 1))])
    yield f"## {metric} by number of steps"
    yield ""
    yield f"{METRICS[metric].words[0].upper()}{METRICS[metric].words[1:]}; {METRICS[metric].better}."
    yield ""
    yield from _markdown(["", *map(steps_in_words, counts)], rows)
    if any(" †" in text for row in rows for text in row):
        other = against or "the best of its column"
        yield f"† differs significantly from {other} ({study['test']}; α = {study['alpha']:g})."
        yield ""


def _others(results: Mapping[str, Any]) -> Iterator[str]:
    study, variants = results["study"], _compared(results)
    count = study["metric_steps"]
    cells = {metric: _cells(results, metric) for metric in METRICS if metric != study["metric"]}
    cells = {metric: rows for metric, rows in cells.items() if any((v["name"], count) in rows for v in variants)}
    if not cells:
        return
    best = {metric: _best([rows.get((v["name"], count)) for v in variants], metric) for metric, rows in cells.items()}
    rows = [
        [v["name"], *(_shown(each.get((v["name"], count)), metric, best[metric]) for metric, each in cells.items())]
        for v in variants
    ]
    for name, real in results["reference"].items():
        shown = ["–" if real.get(metric) is None else figure(metric, real[metric], None) for metric in cells]
        rows.append([f"*{name}*", *shown])
    yield f"## Other figures in {steps_in_words(count)}"
    yield ""
    yield "Not tested for significance; nothing here decides."
    yield ""
    yield from _markdown(["", *cells], rows)


def _over_training(results: Mapping[str, Any]) -> Iterator[str]:
    study, curves = results["study"], {curve["variant"]: curve for curve in results["curves"]}
    shares = study["at"]
    if not curves:
        return
    rows = []
    for variant in _compared(results):
        points = {point["share"]: point for point in curves.get(variant["name"], {}).get("points", ())}
        shown = ["–"] * len(shares)
        for i, share in enumerate(shares):
            if share in points:
                point = points[share]
                value = figure(study["metric"], point["mean"], point["standard_error"])
                shown[i] = f"{value} ({thousands(point['images'])}; {thousands(point['forwards'])} F)"
        rows.append([variant["name"], *shown])
    yield f"## {study['metric']} in {steps_in_words(study['metric_steps'])} over training"
    yield ""
    yield "In brackets: images seen, and the cost of that in passes of the network on one image (F)."
    yield ""
    yield from _markdown(["", *(f"{share:.0%} of the budget" for share in shares)], rows)


def _costs(results: Mapping[str, Any]) -> Iterator[str]:
    variants = _compared(results)
    if not variants:
        return
    study, rows = results["study"], []
    cells = _cells(results, study["metric"])
    for v in variants:
        seconds = [c["seconds"] for c in results["cells"] if c["variant"] == v["name"] and c["seconds"] is not None]
        mean, error = mean_and_error(seconds)
        time = f"{mean:,.0f}" if error is None else f"{mean:,.0f} ± {error:,.0f}"
        value = _shown(cells.get((v["name"], study["metric_steps"])), study["metric"], None)
        budget = [f"{v['images']:,}", f"{v['cost_F']:.2f}", thousands(v["images"] * v["cost_F"]), time, value]
        rows.append([v["name"], *budget])
    yield "## Cost"
    yield ""
    yield "F is a pass of the network without gradient; a plain training step costs 3. Models that a variant follows or"
    yield "starts from are not counted."
    yield ""
    head = [
        "",
        "images",
        "F a step",
        "F × images",
        "seconds",
        f"{study['metric']}, {steps_in_words(study['metric_steps'])}",
    ]
    yield from _markdown(head, rows)


def _differences(results: Mapping[str, Any]) -> Iterator[str]:
    variants = [v for v in results["variants"] if not v["support"]]
    base = results["study"]["against"] or variants[0]["name"]
    said = []
    for v in variants:
        if v["differences"]:
            said += [f"- {v['name']}", *(f"  - {each}" for each in v["differences"])]
    for v in results["variants"]:
        needs = [f"{role} {v[role]}" for role in ("teacher", "start", "weak") if v[role] is not None]
        if needs:
            said.append(f"- {v['name']} has other models of the same seed: {', '.join(needs)}")
    if said:
        yield f"## What differs from {base}"
        yield ""
        yield from said
        yield ""


def _failures(results: Mapping[str, Any]) -> Iterator[str]:
    failed = [cell for cell in results["cells"] if cell["status"] == "failed"]
    if not failed:
        return
    yield "## Cells that failed"
    yield ""
    for cell in failed:
        log = f" (log: {cell['log']})" if cell["log"] else ""
        yield f"- {cell['variant']} seed {cell['seed']}: {(cell['error'] or '').splitlines()[0]}{log}"
    yield ""
