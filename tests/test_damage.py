"""Damaged and hostile files: every one is refused with an error that a user can read, and none is loaded wrong.

The cases are drawn with fixed seeds, written in the place of a whole file, and opened as a user would. The process may
not have much more memory meanwhile.
"""

import json
import random
import resource
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from shortflow import hub
from shortflow.config import DataConfig, RunConfig, dump, load_run, recipe_named
from shortflow.data import DataSpec
from shortflow.data.identity import DataIdentity
from shortflow.draw import References
from shortflow.errors import CheckpointError, ConfigError
from shortflow.nn.configs import MLPConfig
from shortflow.train.ema import averages_of
from shortflow.train.log import StatsLog, summary
from shortflow.train.loop import build_optimizer
from shortflow.train.record import BINS, CELLS, Numbers, StepRecord
from shortflow.train.saved import Best, Left, SavedRun, Setback
from shortflow.train.state import DamagedState, _sum, check_state, load_state, save_state
from shortflow.train.step import TrainStep
from shortflow.train.weights import save_model

POINTS = DataSpec(name="mixture", shape=(2,), classes=("a", "b"), shift=0.25, scale=0.5, image=False)
RUN = RunConfig(
    recipe=recipe_named("flow-matching"), network=MLPConfig(width=8, depth=1), data=DataConfig(source="mixture")
)
CUTS, FLIPS, SPLICES = 60, 240, 60  # cases of a kind for every file


def cases(seed: int, whole: bytes, few: int = 1) -> Iterator[bytes]:
    """Files that are cut, have flipped bits, lost, doubled, moved, zeroed or foreign pieces: `whole` itself never."""
    rng = random.Random(seed)
    for _ in range(CUTS // few):
        yield whole[: rng.randrange(len(whole))]
    for _ in range(FLIPS // few):
        content = bytearray(whole)
        # The start of a file says what follows, so half of the flips go there.
        reach = min(len(whole), 2048) if rng.random() < 0.5 else len(whole)
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            content[rng.randrange(reach)] ^= 1 << rng.randrange(8)
        if content != whole:
            yield bytes(content)
    for _ in range(SPLICES // few):
        a, b = sorted(rng.randrange(len(whole)) for _ in range(2))
        length = rng.randrange(1, 64)
        piece = rng.choice(
            (whole[a : a + length] * 2, bytes(length), rng.randbytes(length), whole[b : b + length], b"")
        )
        content = whole[:a] + piece + whole[a + length :]
        if content != whole:
            yield content


def headers(whole: bytes) -> Iterator[bytes]:
    """safetensors files whose header lies: about its own length, offsets, shapes, types and names."""
    (length,) = struct.unpack("<Q", whole[:8])
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    for size in (
        0,
        1,
        7,
        length - 1,
        length + 1,
        len(whole),
        10**8,
        10**8 + 1,
        2**31,
        2**32 + 8,
        2**62,
        2**63,
        2**64 - 1,
    ):
        yield struct.pack("<Q", size) + whole[8:]

    def written(changed: Any) -> bytes:
        text = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + data

    yield written(b"[" * 100_000)
    yield written(b'{"a":' * 50_000)
    yield written(b" " * 10**6)
    yield written({})
    yield written([])
    for name in [name for name in header if name != "__metadata__"]:
        entry = header[name]
        for change in (
            {"data_offsets": [0, 2**63]},
            {"data_offsets": [2**64 - 1, 2]},
            {"data_offsets": [-1, 4]},
            {"data_offsets": entry["data_offsets"][::-1]},
            {"shape": [2**40, 2**40]},
            {"shape": [2**62]},
            {"shape": []},
            {"shape": [0, *entry["shape"]]},
            {"shape": [-1]},
            {"dtype": "I32"},
            {"dtype": "F16"},
            {"dtype": "PICKLE"},
            {"dtype": None},
        ):
            yield written({**header, name: {**entry, **change}})
        for other in ("../../escaped", "/etc/passwd", "network.__class__", "", "\0", "a" * 10**5):
            yield written({(other if each == name else each): value for each, value in header.items()})
        yield written({each: value for each, value in header.items() if each != name})
    names = [name for name in header if name != "__metadata__"]
    for a in names:  # weights that have changed places, of which the shapes do not tell
        for b in names:
            if a < b and header[a]["shape"] == header[b]["shape"]:
                yield written({**header, a: header[b], b: header[a]})


@contextmanager
def little_memory(more: int = 2**30) -> Iterator[None]:
    """Within the context the process may not have more than `more` bytes beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    if not Path("/proc/self/statm").exists():
        yield
        return
    with little_memory():
        yield


def everything(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


# --------------------------------------------------------------------------------------------------------------- models


def model_file(directory: Path) -> Path:
    flow = hub.build_flow(RUN, POINTS)
    save_model(flow, directory / "model.safetensors", {**hub.describe(RUN, POINTS), "images": 640, "step": 5})
    return directory / "model.safetensors"


def test_every_damaged_model_is_refused(tmp_path: Path) -> None:
    file = model_file(tmp_path)
    whole = file.read_bytes()
    hub.load(file)
    before, count = everything(tmp_path.parent), 0
    for content in (*cases(1, whole), *headers(whole)):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            hub.load(file)
        count += 1
    assert count > 420
    assert everything(tmp_path.parent) == before


def test_a_single_bit_anywhere_in_the_weights_or_the_description_is_found(tmp_path: Path) -> None:
    file = model_file(tmp_path)
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    where = whole.index(b"scale", 8, 8 + length)  # a number that samples are made with
    for place in (where + 9, 8 + length, len(whole) - 1):
        content = bytearray(whole)
        content[place] ^= 1
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged: its weights or its description are not those"):
            hub.load(file)


def test_a_model_without_a_sum_loads_as_before(tmp_path: Path) -> None:
    file = model_file(tmp_path)
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    said = json.loads(header["__metadata__"]["shortflow"])
    del said["sha256"]
    text = json.dumps({**header, "__metadata__": {"shortflow": json.dumps(said)}}).encode()
    want = hub.load(file)
    file.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    got = hub.load(file)
    assert got.run == want.run
    assert all(torch.equal(value, got.flow.state_dict()[name]) for name, value in want.flow.state_dict().items())


# --------------------------------------------------------------------------------------------------------------- states


def test_two_thousand_damaged_and_hostile_states_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    """Whoever can write a state can write its sum, so what it says is looked at as well."""
    damaged, hostile = damaged_states(tmp_path / "damaged"), hostile_states(tmp_path / "hostile")
    assert (damaged > 2500, hostile > 850, damaged + hostile >= 2000) == (True, True, True), (damaged, hostile)


def damaged_states(tmp_path: Path) -> int:
    """How many states that are not what was written were refused."""
    tmp_path.mkdir()
    flow = hub.build_flow(RUN, POINTS)
    adamw = torch.optim.AdamW(flow.parameters())
    flow.network.float()
    for weight in flow.parameters():
        weight.grad = torch.randn_like(weight)
    adamw.step()
    pending = [{"step": 1, "loss": 0.5, "logs": {"velocity_error": 0.25}}]
    state = save_state(tmp_path, 7, {"network": flow}, adamw, {"images": 56, "pending": pending, "best": None}, 2)
    before: dict[str, Tensor] = {name: value.clone() for name, value in flow.state_dict().items()}
    names, count = everything(tmp_path.parent), 0
    for seed, name in enumerate(("network.safetensors", "optimizer.safetensors", "state.json")):
        whole = (state / name).read_bytes()
        others = () if name == "state.json" else headers(whole)
        for content in (*cases(10 + seed, whole), *others):
            if name == "state.json" and _same_json(content, whole):
                continue  # a space more or less
            (state / name).write_bytes(content)
            with pytest.raises(DamagedState, match=r"00000007 is damaged"):
                load_state(state, {"network": flow}, adamw)
            count += 1
        (state / name).write_bytes(whole)
    assert everything(tmp_path.parent) == names
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())
    assert load_state(state, {"network": flow}, adamw)["pending"] == pending
    return count


HOSTILE = ("x", "", None, True, -1, 0.5, 10**400, float("nan"), float("-inf"), [], [1], {}, {"a": 1}, [[None]] * 16)
OWN = ("format", "step", "files", "sha256")  # what has its own checks


def hostile_states(tmp_path: Path) -> int:
    """How many states with right sums say something else, each of which is refused or can be gone on from."""
    run = saved_run(tmp_path)
    pending = [numbers(step).as_json() for step in (6, 7)]
    best, setback = Best(name="loss", figure=0.5, step=7), Setback(failed=9, back_to=7)
    tmp_path.mkdir()
    (tmp_path / "stats.jsonl").touch()
    run.save(Left(step=7, pending=pending, best=best, skipped=(3,), setback=setback))
    state = run.states / "00000007"
    content = json.loads((state / "state.json").read_text())
    names, refused, others = everything(tmp_path), 0, 0
    for changed in hostile(content):
        text = json.dumps({**changed, "sha256": _sum(changed)})
        (state / "state.json").write_text(text)
        try:
            run.check(state, check_state(state))  # which loading begins with
        except CheckpointError:
            refused += 1
            if refused % 20 == 1:
                with pytest.raises(CheckpointError, match="00000007"):
                    run.load(say=False)
            continue
        others += 1
        left = run.load(say=False)
        assert 0 < (left.setback.slowed if left.setback else 1) <= 1
        if records := [StepRecord.from_json(each) for each in left.pending]:
            summary(records)
            Numbers.merged([each.numbers for each in records])
    assert refused > 5 * others
    assert everything(tmp_path) == names
    return refused + others


def hostile(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A state's information with something else in the place of every value, or nothing, or more."""
    content = {name: value for name, value in content.items() if name != "sha256"}
    for path in places(content):
        for value in HOSTILE:
            changed = json.loads(json.dumps(content))
            inside = changed
            for name in path[:-1]:
                inside = inside[name]
            if value == inside[path[-1]] and type(value) is type(inside[path[-1]]):
                continue
            inside[path[-1]] = value
            yield changed
        changed = json.loads(json.dumps(content))
        inside = changed
        for name in path[:-1]:
            inside = inside[name]
        del inside[path[-1]]
        yield changed


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there are values in a JSON value; of the first record, which stands for all, and without what is OWN."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inside:
        here = (*path, name)
        if here[0] in OWN or here[:2] == ("pending", 1) or (len(here) > 3 and isinstance(name, int) and name > 1):
            continue
        yield here
        yield from places(each, here)


def numbers(step: int) -> StepRecord:
    measured = Numbers(
        loss=0.5,
        grad_norm=1.5,
        logs={"error": 0.25, "tangent": 2.0},
        by_time=(0.5, None, *[1.0] * (BINS - 2)),
        rows={"error": 8, "tangent": 8},
        rows_by_time=(1, 0, *[1] * (BINS - 2)),
        cells=((1.0, 2.0, 3), None, *[None] * (CELLS**2 - 2)),
    )
    return StepRecord(step=step, images=8 * step, batch=8, lr=0.1, seconds=0.5, measured=measured)


def saved_run(directory: Path) -> SavedRun:
    module = TrainStep(hub.build_flow(RUN, POINTS), RUN.recipe.objective, References())
    reference = {"run": "runs/teacher", "sha256": "0" * 64}
    return SavedRun(
        directory=directory,
        settings=replace(RUN.train, keep_best="loss", batch=8),
        metadata={"run": {"recipe": "flow-matching"}, "references": {"teacher": reference}},
        module=module,
        averages=averages_of(module.flow, RUN.recipe.optimizer),
        adamw=build_optimizer(module, RUN.recipe.optimizer),
        data=DataIdentity(count=60, looked_at=60, samples="1" * 64, labels="2" * 64, decoder="Pillow 11"),
    )


# -------------------------------------------------------------------------------------------------------------- records


def test_a_damaged_record_is_mended_or_kept_aside_and_never_in_the_way(tmp_path: Path) -> None:
    """Whatever is left of stats.jsonl, the run goes on with lines that can be read, and nothing is lost for good."""
    path, aside = tmp_path / "stats.jsonl", tmp_path / "stats.jsonl.damaged"
    log = StatsLog(path, 1)
    for step in range(1, 9):
        log.add(numbers(step))
    whole, mended, kept, count = path.read_bytes(), 0, 0, 0
    for content in (*cases(20, whole, few=2), b"", bytes(4096), b"[" * 10**5 + b"\n", whole + b"\xff\n"):
        path.write_bytes(content)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            again = StatsLog(path, 1, start=3)
        again.add(numbers(4))  # with the spikes of the lines before
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert found[-1]["step"] == 4
        assert all(line["step"] <= 3 for line in found[:-1])
        if aside.exists():
            assert aside.read_bytes() == content
            assert len(said) == 1
            kept += 1
            aside.unlink()
        else:
            mended += bool(said)
        count += 1
    assert (count > 170, mended > 15, kept > 30) == (True, True, True), (count, mended, kept)


def _same_json(content: bytes, whole: bytes) -> bool:
    try:
        return json.loads(content) == json.loads(whole)
    except ValueError:
        return False


# ------------------------------------------------------------------------------------------------------------ run files

MALICIOUS = (
    "!!python/object/apply:os.system ['touch {proof}']",
    "recipe: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{proof}']]",
    "recipe: !!python/name:os.system",
    "recipe: !!python/module:antigravity",
    "!!python/object/new:subprocess.Popen [['touch', '{proof}']]",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nrecipe: [*c, *c]",
    "recipe: &r\n  again: *r",
    "recipe: {open}",
    "{open}",
    "{flow}",
    "recipe: {long}",
    "? {open}\n: x",
    "<<: {{recipe: esc}}\nrecipe: esc\nrecipe: imm",
    "recipe: 2024-13-45",
    "recipe: 0o9999\nnetwork: 1e999999999",
    "recipe: esc\nnetwork: {{kind: MLPConfig, width: {digits}}}",
    "recipe: esc\nnetwork: {{kind: MLPConfig, width: .inf}}",
    "recipe: esc\nnetwork: {{kind: os.system}}",
    "recipe: esc\nnetwork: {{kind: __class__}}",
    "recipe: esc\nnetwork: {{kind: ../../model}}",
    "recipe: esc\nnetwork: {{kind: MLPConfig, __init__: 1}}",
    "recipe: ../../../etc/passwd\nnetwork: MLPConfig",
    "recipe: !!binary aGVsbG8=\nnetwork: MLPConfig",
    "recipe: !!set {{esc, imm}}",
    "\x00\x01\x02",
    "\ufeff\ufeff",
    "%YAML 9.9\n---\nrecipe: esc",
    "--- 1\n--- 2\n",
    "@",
    "'",
    "- " * 50_000,
    "recipe: " + "'" * 100_000,
    "[" * 100_000,
    "? " * 50_000,
    "#" * 10**6,
)


def test_malicious_run_files_are_refused(tmp_path: Path) -> None:
    proof, file = tmp_path / "proof", tmp_path / "run.yaml"
    filled = {"proof": proof, "open": "[" * 5000 + "]" * 5000, "flow": "{" * 5000, "long": "a" * 150_000}
    for text in MALICIOUS:
        braces = "{{" in text or any(f"{{{name}}}" in text for name in (*filled, "digits"))
        file.write_text(text.format(**filled, digits="9" * 5000) if braces else text, encoding="utf-8")
        with pytest.raises(ConfigError):
            load_run(file)
    assert not proof.exists()
    file.write_bytes(b"#" * 10**7)
    with pytest.raises(ConfigError, match=r"is no run file: it has more than 800,000 bytes"):
        load_run(file)
    with pytest.raises(ConfigError, match="is no run file: it has more than"):
        load_run(Path("/dev/zero"))


def test_damaged_run_files_are_refused_or_say_something_else(tmp_path: Path) -> None:
    """A run file is a text that users edit, and has no sum: what still is one is another run, or the same."""
    file = tmp_path / "run.yaml"
    dump(RUN, file)
    whole, refused, others = file.read_bytes(), 0, 0
    for content in cases(3, whole, few=2):
        file.write_bytes(content)
        try:
            found = load_run(file)
        except ConfigError:
            refused += 1
            continue
        others += 1
        assert isinstance(found, RunConfig)
        dump(found, file)
        assert load_run(file) == found
    assert refused > 2 * others
    assert refused + others > 170
