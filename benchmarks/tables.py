"""Results as Markdown: pure functions of the records that the measurements write."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["caption", "gpu", "loader", "plugin", "recipes", "sampling", "scaling", "step", "table"]

Record = Mapping[str, Any]

MEBI = 2**20


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; heads that begin with ">" are those of columns of numbers, set to the right."""
    lines = [f"| {' | '.join(head.removeprefix('>') for head in heads)} |"]
    lines.append(f"|{'|'.join('---:' if head.startswith('>') else '---' for head in heads)}|")
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def caption(record: Record) -> str:
    """What was measured, where and when, with a warning where the machine was busy with other things."""
    machine = record["machine"]
    where = machine.get("gpu") or f"{machine['processor']}, {_count(machine['threads'], 'thread')}"
    if machine.get("gpu"):
        where += f", driver {machine['driver'] or 'unknown'}, CUDA {machine['cuda']}"
    text = f"`{record['command']}`, {record['date']}, commit {record['commit'] or 'unknown'}: {where}, "
    text += f"torch {machine['torch']}."
    load = record.get("load")
    if load is not None and load > 0.2 and not machine.get("gpu"):
        text += f" Others kept {load:g} of {machine['cores']} cores at work meanwhile: times are to be repeated."
    return text


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' if n != 1 else ''}"


def _ratio(row: Record, digits: int = 2) -> str:
    return f"{row['ratio']:.{digits}f} ({row['low']:.{digits}f}–{row['high']:.{digits}f})"


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _rate(images: float) -> str:
    return f"{images:,.0f}" if images >= 100 else f"{images:.3g}"


def _memory(size: float) -> str:
    return f"{size / MEBI:.0f} MiB" if size < 10 * 1024 * MEBI else f"{size / 1024 / MEBI:.1f} GiB"


# --------------------------------------------------------------------------------------------------- on the processor


def step(record: Record) -> str:
    """One row for each size and step, and how far the gradients of the two ESC steps are apart."""
    rows, notes, first = [], [], "reference"
    for name, size in record["sizes"].items():
        first, base = next((run, row["memory"]) for run, row in size["runs"].items())
        for run, row in size["runs"].items():
            memory = (_memory(row["memory"]), f"{row['memory'] / base:.2f}", _memory(row["step_memory"]))
            rows.append((name, run, f"{row['flops']:.2f}", _ratio(row), *memory))
        notes.append(
            f"{name}: {size['network']}, batches of {size['batch']}; gradients of the ESC steps differ from those of "
            f"the {first} by {size['gradient_difference']:.1e} of their norm.{_compiled(size)}{_shares(size)}"
        )
    heads = ("size", "step", ">operations (F)", f">time / {first}", ">activations", f">/ {first}", ">whole step")
    return "\n\n".join([table(heads, rows), "\n".join(f"- {note}" for note in notes), caption(record)])


def _compiled(size: Record) -> str:
    found = {name: row["plain"] for name, row in size["runs"].items() if "plain" in row}
    words = ", ".join(f"the {name} {_ratio(row, 3)} of the plain one" for name, row in found.items())
    return f" Beside each other in the same round: {words}." if words else ""


def _shares(size: Record) -> str:
    found = " and ".join(f"{name} {share:.0%}" for name, share in size.get("shares", {}).items())
    return f" Of the time of the step {found} (by profile)." if found else ""


def recipes(record: Record) -> str:
    """One row for each recipe."""
    rows = [
        (
            f"`{name}`",
            f"{row['predicted']:.2f}",
            f"{row['measured']:.2f}",
            _ratio(row),
            _time(row["seconds"]),
            _memory(row["memory"]),
        )
        for name, row in record["recipes"].items()
        if name != "forward"
    ]
    heads = ("recipe", ">passes (F)", ">operations (F)", ">time (F)", ">a step", ">memory")
    note = f"{record['network']}, batches of {record['batch']}."
    return "\n\n".join([table(heads, rows), f"- {note}", caption(record)])


def scaling(record: Record) -> str:
    """The exponents along each axis, then one process beside two."""
    rows = []
    for axis, found in record["axes"].items():
        points = ", ".join(str(point) for point in found["points"])
        for name in ("step", "reference"):
            fits = [_exponent(found[name][what]) for what in ("time", "flops", "memory")]
            last = found[name]["time"]["values"][-1]
            rows.append((axis, points, name, *fits, _time(last)))
    parts = []
    if rows:
        heads = ("along", "points", "step", ">time", ">operations", ">activations", ">time at the last point")
        parts.append(table(heads, rows))
        parts.append(f"- Where not varied: {record['network']}, batches of {record['batch']}.")
    if "processes" in record:
        parts.append(_processes(record["processes"]))
    return "\n\n".join([*parts, caption(record)])


def _exponent(fit: Record) -> str:
    return f"{fit['exponent']:.2f}" + ("" if fit["error"] is None else f" ± {fit['error']:.2f}")


def _processes(record: Record) -> str:
    words = {
        "alone": "one process, the other waits",
        "together": f"{record['count']} processes, gradients not exchanged",
        "exchanging": f"{record['count']} processes, gradients averaged",
        "fit": f"{record['count']} processes, whole steps of a run",
    }
    rows = []
    for name, row in record["runs"].items():
        count = 1 if name == "alone" else record["count"]
        memory = record["memory"].get(name)
        rate = count * record["rows"] / row["seconds"]
        rows.append(
            (words[name], _ratio(row), _time(row["seconds"]), _rate(rate), "" if memory is None else _memory(memory))
        )
    note = (
        f"- {record['rows']} rows in each process, one thread each, gloo; the averaged gradients differ from the mean "
        f"of those of the processes alone by {record['gradient_difference']:.1e} of its norm (the gradient of one "
        f"process does by {record['single_difference']:.1e})."
    )
    heads = ("processes", ">time / one", ">a step", ">images / s", ">memory of one")
    return "\n\n".join([table(heads, rows), note])


def plugin(record: Record) -> str:
    """One row for each way to compute the plug-in velocity."""
    rows = [
        (
            name,
            str(row["rows"]),
            _ratio(row),
            _time(row["seconds"]),
            _memory(row["memory"]),
            f"{row['difference']:.1e}",
        )
        for name, row in record["runs"].items()
    ]
    heads = ("plug-in velocity", ">rows", ">time / all pairs", ">time", ">memory", ">error")
    note = f"- {record['batch']} images of {_shape(record['shape'])}; the error is that of float32 against float64."
    return "\n\n".join([table(heads, rows), note, caption(record)])


def kept(record: Record) -> str:
    """One row for each network and way to have memory."""
    rows = [
        (name, way, _ratio(row), _time(row["seconds"]), f"{row['faults']:,.0f}", _memory(row["largest"]))
        for name, found in record["sizes"].items()
        for way, row in found.items()
    ]
    heads = ("step", "memory", ">time / as PyTorch has it", ">time", ">page faults", ">process")
    return "\n\n".join([table(heads, rows), caption(record)])


def kernels(record: Record) -> str:
    """One row for each kernel: ratios to PyTorch's and times, by the number of threads."""
    names = {"forward": "forward", "both": "forward and backward"}
    rows = [
        (
            name,
            threads,
            *(f"{_ratio(row[passes]['ours'])}, {_time(row[passes]['ours']['seconds'])}" for passes in names),
        )
        for name, found in record["kernels"].items()
        for threads, row in found.items()
    ]
    heads = ("kernel", ">threads", *(f">{words} / PyTorch's, time" for words in names.values()))
    return "\n\n".join([table(heads, rows), caption(record)])


def sampling(record: Record) -> str:
    """One row for each network and way to sample."""
    rows = [
        (name, run, str(found["batch"]), _ratio(row, 3), _time(row["seconds"] / found["batches"]))
        for name, found in record["networks"].items()
        for run, row in found["runs"].items()
    ]
    return "\n\n".join([table(("network", "run", ">batch", ">time / passes", ">a batch"), rows), caption(record)])


def loader(record: Record) -> str:
    """One row for each data set."""
    rows = [
        (
            name,
            _shape(found["shape"]),
            f"`{found['recipe']}`",
            str(found["batch"]),
            _rate(found["delivered"]),
            _rate(found["consumed"]),
            f"{found['delivered_over_consumed']:,.0f}",
            f"{found['trained_over_consumed']:.2f}",
        )
        for name, found in record["data"].items()
    ]
    heads = ("data", "shape", "recipe", ">batch", ">images / s delivered", ">consumed", ">delivered / consumed")
    return "\n\n".join([table((*heads, ">training / batches at hand"), rows), caption(record)])


def checks(record: Record) -> str:
    """One row for each thing that a run does to trust itself."""
    words = {
        "start": "at the start: weights, gradients, derivative",
        "note": "every step: its numbers",
        "save": "every {save_every} steps: a state with its sums, on disk",
    }
    rows = [
        (
            f"`{run['recipe']}` on {run['data']}, {run['steps']:,} steps",
            text.format(**run),
            f"{1000 * run['seconds'][name]:.3g} ms",
            f"{run['seconds'][name] / run['seconds']['step']:.3g}",
            f"{run['shares'][name]:.2%}",
        )
        for run in record["runs"]
        for name, text in words.items()
    ]
    return "\n\n".join([table(("run", "what", ">once", ">in steps", ">of the run"), rows), caption(record)])


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


# -------------------------------------------------------------------------------------------------------------- a GPU


def gpu(record: Record) -> str:
    """All parts of a run on a GPU: steps, checks, attention, waiting, samples, and what was not measured."""
    done = {name: each["result"] for name, each in record["parts"].items() if each["state"] == "done"}
    parts = [caption(record), *_ceiling(done), *_steps(done), *_attention(done), *_waiting(done), *_samples(done)]
    parts += [*_plug_in(done), *_checks(done)]
    for state, words in (("failed", "Failed"), ("stopped", "Not finished"), ("skipped", "Not reached")):
        names = {name: each["reason"] for name, each in record["parts"].items() if each["state"] == state}
        if names and state == "failed":
            parts.append("\n".join(f"- {words}: {name}: {_line(reason)}" for name, reason in names.items()))
        elif names:
            parts.append(f"- {words} within {record['budget']:g} s: {', '.join(names)}.")
    return "\n\n".join(parts)


def _line(text: str) -> str:
    return " ".join(text.split())[:200]


def _ceiling(done: Record) -> list[str]:
    if "ceiling" not in done:
        return []
    found = done["ceiling"]
    rates = ", ".join(f"{each / 1e12:.3g} in {mode}" for mode, each in found["per_second"].items() if "+" not in mode)
    return [f"Products of square matrices of {found['size']} rows reach {rates}, in 10¹² operations a second."]


def _steps(done: Record) -> list[str]:
    rows = []
    for name, result in done.items():
        runs = result.get("runs", {})
        if "mode" not in result:
            continue
        reference = runs.get("reference")
        for run, row in runs.items():
            own = "" if reference is None else f"{row['seconds'] / reference['seconds']:.2f}"
            held = "" if reference is None else f"{row['memory'] / reference['memory']:.2f}"
            share = "" if row["share"] is None else f"{row['share']:.0%}"
            figures = (f"{row['flops']:.2f}", _ratio(row), own, _time(row["seconds"]), _rate(row["images"]), share)
            rows.append((name, str(result["batch"]), run, *figures, _memory(row["memory"]), held))
        rows += [(name, str(result["batch"]), run, *[""] * 6, "too large", "") for run in result["out_of_memory"]]
    heads = ("part", ">batch", "step", ">operations (F)", ">time (F)", ">/ reference", ">a step", ">images / s")
    heads += (">of the ceiling", ">activations", ">/ reference")
    return [table(heads, rows)] if rows else []


def _attention(done: Record) -> list[str]:
    if "attention" not in done:
        return []
    rows = []
    for mode, passes in done["attention"]["modes"].items():
        for name, found in passes.items():
            calls = ", ".join(f"{kind} × {n}" for kind, n in found["operations"].items())
            rows.append((mode, name, calls, ", ".join(f"`{kernel[:60]}`" for kernel in list(found["kernels"])[:2])))
    return [table(("mode", "pass", "attention", "kernels"), rows)]


def _waiting(done: Record) -> list[str]:
    if "waiting" not in done:
        return []
    rows = [
        (name, str(found["asked"]), "–" if found["warned"] is None else str(found["warned"]), _places(found["places"]))
        for name, found in done["waiting"]["of"].items()
    ]
    heads = ("of one step", ">asks for values", ">waits of the device", "most often in")
    return [table(heads, rows)]


def _places(places: Mapping[str, int]) -> str:
    return ", ".join(f"{place} × {n}" for place, n in list(places.items())[:3])


def _samples(done: Record) -> list[str]:
    rows = []
    if "sampling" in done:
        found = done["sampling"]
        for name, row in found["runs"].items():
            over = f"{row['ratio'] - 1:+.1%}"
            rows.append((f"sampling, {name}", str(found["batch"]), _time(row["seconds"]), _rate(row["images"]), over))
    if "loop" in done:
        found = done["loop"]
        rows.append(("training loop, bf16", str(found["batch"]), _time(found["seconds"]), _rate(found["images"]), ""))
    heads = ("of B/2", ">batch", ">time", ">images / s", ">above the bare passes")
    return [table(heads, rows)] if rows else []


def _plug_in(done: Record) -> list[str]:
    if "plug-in" not in done:
        return []
    found = done["plug-in"]
    rows = [
        (f"{name}, {found['rows']} images", _time(row["seconds"]), _memory(row["memory"]))
        for name, row in found["runs"].items()
        if "seconds" in row
    ]
    return [table(("plug-in velocity", ">time", ">memory"), rows)]


def _checks(done: Record) -> list[str]:
    rows = [
        (check["what"], f"{check['value']:.1e}", f"{check['bound']:.0e}", "yes" if check["good"] else "**no**")
        for result in done.values()
        for check in result.get("checks", [])
    ]
    return [table(("check", ">found", ">bound", "kept"), rows)] if rows else []
