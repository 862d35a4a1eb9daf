"""Statistics in chunks: the same for any number of processes, gone on with after an interruption, never mixed."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import gathered
from extractors import pictures, small
from launcher import launched
from shortflow.cli import main
from shortflow.data.stored import Stored, open_images
from shortflow.errors import MetricError, ShortflowError
from shortflow.evaluate import Plan, Tally, tally
from shortflow.runs import World, gather, gathering
from shortflow.runs.gathering import done_with

N = 70


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stored:
    """Images that make seven chunks of up to eleven, in passes of four."""
    monkeypatch.setattr(tally, "_ROWS", gathered.ROWS)
    monkeypatch.setattr(tally, "_UNIT", gathered.UNIT)
    np.save(tmp_path / "images.npy", pictures(N))
    return open_images(tmp_path / "images.npy")


def same(a: Tally | None, b: Tally | None) -> bool:
    """To the last bit."""
    assert a is not None
    assert b is not None
    ours, theirs = a.tensors(), b.tensors()
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def folders(path: Path) -> list[Path]:
    return sorted(path.glob(".e.json-*"))


def counted(monkeypatch: pytest.MonkeyPatch, stop: int | None = None) -> list[int]:
    """The first samples of the chunks that are computed from now on; an interruption before number `stop`."""
    done: list[int] = []
    real = Tally.of

    def of(batches: Any, extractor: Any, plan: Any, first: int, last: int) -> Tally:
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(first)
        return real(batches, extractor, plan, first, last)

    monkeypatch.setattr(Tally, "of", of)
    return done


def test_chunks_on_the_disk_and_in_memory_give_the_same(images: Stored, tmp_path: Path) -> None:
    plan, extractor = Plan(n=N, keep=20), small()
    whole = gather(images, extractor, plan)
    assert same(whole, gather(images, extractor, plan, beside=tmp_path / "e.json"))
    assert len(list(folders(tmp_path)[0].glob("*.safetensors"))) == 7
    assert json.loads((folders(tmp_path)[0] / "choices.json").read_text())["extractor"] == extractor.record()
    done_with(tmp_path / "e.json", images, extractor, plan)
    assert folders(tmp_path) == []


def test_any_number_of_processes_gives_the_same_bits(
    images: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in its turn here; the barrier is the launcher's (below)."""
    plan, extractor = Plan(n=N, keep=20), small()
    whole = gather(images, extractor, plan)
    monkeypatch.setattr(World, "wait", lambda self: None)
    for size in (2, 3, 9):
        out = tmp_path / str(size) / "e.json"
        others = [gather(images, extractor, plan, beside=out, world=World(rank=r, size=size)) for r in range(1, size)]
        assert others == [None] * (size - 1)
        assert same(gather(images, extractor, plan, beside=out, world=World(rank=0, size=size)), whole)


def test_an_interrupted_work_is_gone_on_with(images: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, extractor, out = Plan(n=N), small(), tmp_path / "e.json"
    whole = gather(images, extractor, plan)
    with monkeypatch.context() as interrupted:
        counted(interrupted, stop=3)
        with pytest.raises(KeyboardInterrupt):
            gather(images, extractor, plan, beside=out)
    done = counted(monkeypatch)
    said: list[tuple[int, int]] = []
    assert same(gather(images, extractor, plan, beside=out, report=lambda *now: said.append(now)), whole)
    assert done == [33, 44, 55, 66]
    assert said[0] == (11, N)  # what was there counts at once
    assert said[-1] == (N, N)
    assert same(gather(images, extractor, plan, beside=out), whole)
    assert len(done) == 4


def test_a_damaged_chunk_is_computed_anew(images: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, extractor, out = Plan(n=N), small(), tmp_path / "e.json"
    whole = gather(images, extractor, plan, beside=out)
    chunk = sorted(folders(tmp_path)[0].glob("*.safetensors"))[2]
    chunk.write_bytes(chunk.read_bytes()[:-40])
    done = counted(monkeypatch)
    assert same(gather(images, extractor, plan, beside=out), whole)
    assert done == [22]


def test_what_was_made_otherwise_is_never_mixed_in(
    images: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = Plan(n=N), tmp_path / "e.json"
    gather(images, small(), plan, beside=out)
    done = counted(monkeypatch)
    gather(images, small(seed=1), plan, beside=out)
    gather(images, small(), Plan(n=N, keep=3), beside=out)
    np.save(tmp_path / "images.npy", pictures(N, seed=1))
    os.utime(tmp_path / "images.npy", (1, 1))
    gather(open_images(tmp_path / "images.npy"), small(), plan, beside=out)
    assert len(done) == 21
    assert len(folders(tmp_path)) == 4


def test_what_is_refused(images: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MetricError, match="a plan for 9 images does not go with 70"):
        gather(images, small(), Plan(n=9))
    with pytest.raises(MetricError, match="several processes meet in a folder"):
        gather(images, small(), Plan(n=N), world=World(size=2))
    monkeypatch.setattr(World, "wait", lambda self: None)
    with pytest.raises(MetricError, match="samples 11…21 are not there; all processes must see the same folder"):
        gather(images, small(), Plan(n=N), beside=tmp_path / "e.json", world=World(size=2))

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gathering, "save_file", full)
    with pytest.raises(ShortflowError, match=r"No space left on device; make space, .* finished chunks are kept"):
        gather(images, small(seed=2), Plan(n=N), beside=tmp_path / "e.json")


# ------------------------------------------------------------------------------------------------------------ launchers


def test_two_processes_gather_the_statistics_of_one(images: Stored, tmp_path: Path) -> None:
    """To the last bit; of the whole set, though each has seen half of the chunks."""
    out = tmp_path / "two.safetensors"
    assert launched(2, tmp_path / "images.npy", out, script=Path(gathered.__file__)) == ["", ""]
    chunks = sorted((tmp_path / next(tmp_path.glob(".two*"))).glob("*.safetensors"))
    assert len(chunks) == 7
    assert same(Tally.from_tensors(load_file(out)), gather(images, small(), Plan(n=N)))


@pytest.mark.slow
def test_two_processes_of_a_launcher_write_the_record_of_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", np.random.default_rng(0).integers(0, 256, (2100, 8, 8), dtype=np.uint8))
    shared = ("--reference", "digits:all", "--features", "classifier:digits", "--neighbours", 300)
    with pytest.raises(SystemExit, match="0"):
        main([*map(str, ("evaluate", tmp_path / "samples.npz", *shared, "--out", tmp_path / "1" / "e.json"))])
    said = launched(2, "evaluate", tmp_path / "samples.npz", *shared, "--out", tmp_path / "2" / "e.json")
    assert said[1] == ""
    records = {world: json.loads((tmp_path / str(world) / "e.json").read_text()) for world in (1, 2)}
    assert records[1] == records[2]
    assert records[1]["rows"]["samples.npz"]["n"] == 2100
    assert [path.name for path in (tmp_path / "2").iterdir()] == ["e.json"]
