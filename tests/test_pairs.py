"""Pairs that a teacher makes: against the exact map, resumed bit for bit, refused where made otherwise."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from oracles import column, f64
from shortflow import pairs as pairs_module
from shortflow.errors import CheckpointError, IncompatibleParts, SamplerError, ShortflowError
from shortflow.flowmap import AverageVelocity, EDMSkip, FlowMap, LogSigma, StartAndGap, StartOnly
from shortflow.pairs import PairMaker, Pairs, check_pairs, pair_labels
from shortflow.paths import Linear, VarianceExploding
from shortflow.streams import Streams
from shortflow.theory import ExactNetwork, FiniteData, Gaussian
from steps import mlp

GAUSS = Gaussian(path=Linear(), mean=f64(0.3, -0.2), std=f64(0.5, 0.8))


def teacher(flow_matching: bool = True, **others: Any) -> FlowMap:
    network = ExactNetwork(GAUSS, "velocity" if flow_matching else "average_velocity")
    return FlowMap(network, Linear(), AverageVelocity(), StartAndGap(), ends="diagonal" if flow_matching else "any")


def maker(directory: Path, flow: FlowMap | None = None, **others: Any) -> PairMaker:
    settings = others.pop("settings", Pairs(count=10, steps=4, precision="float32"))
    return PairMaker(
        directory=directory, teacher=flow or teacher(), identity="ab" * 32, shape=(2,), settings=settings, **others
    )


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs_module, "ROWS", 4)
    monkeypatch.setattr(pairs_module, "BATCH", 3)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def exact(eps: Tensor) -> Tensor:
    n = len(eps)
    return GAUSS.flow_map(eps.double(), torch.ones(n).double(), torch.zeros(n).double())


def all_of(pairs: PairMaker) -> Any:
    return pairs.batch(np.arange(pairs.settings.count))


# ------------------------------------------------------------------------------------------------------- what is made


def test_a_pair_is_the_exact_map_of_its_noise_to_the_error_of_the_integration(tmp_path: Path) -> None:
    """Euler steps of flow matching are of first order, one jump of an exact flow map is exact."""
    errors = []
    for steps in (8, 16, 32, 64):
        pairs = maker(tmp_path / str(steps), settings=Pairs(count=64, steps=steps, precision="float32"))
        pairs.make()
        batch = all_of(pairs)
        errors.append(float((batch.x - exact(batch.eps)).abs().max()))
    assert errors[-1] < 0.1
    ratios = [a / b for a, b in pairwise(errors)]
    assert ratios == pytest.approx([2, 2, 2], abs=0.25)
    pairs = maker(tmp_path / "jump", teacher(False), settings=Pairs(count=64, steps=1, precision="float32"))
    pairs.make()
    batch = all_of(pairs)
    torch.testing.assert_close(batch.x.double(), exact(batch.eps), rtol=1e-6, atol=1e-6)
    assert (batch.x.dtype, batch.eps.dtype, batch.label) == (torch.float32, torch.float32, None)


def test_half_precision_rounds_the_noise_before_the_teacher_sees_it(tmp_path: Path) -> None:
    pairs = maker(tmp_path, teacher(False), settings=Pairs(count=64, steps=1, precision="float16"))
    pairs.make()
    batch = all_of(pairs)
    assert torch.equal(batch.eps, batch.eps.half().float())
    assert torch.equal(batch.x, exact(batch.eps).half().float())
    stored = load_file(str(pairs.path(0)))
    assert {name: tensor.dtype for name, tensor in stored.items()} == {"eps": torch.float16, "x": torch.float16}


def test_noise_is_standard_normal_and_not_that_of_samples(tmp_path: Path) -> None:
    from shortflow.sample import noise

    pairs = maker(tmp_path, settings=Pairs(count=2000, steps=1, precision="float32"))
    pairs.make()
    eps = all_of(pairs).eps
    assert eps.mean(0).abs().max() < 0.1
    assert (eps.std(0) - 1).abs().max() < 0.06
    assert len(eps.unique(dim=0)) == 2000
    assert not torch.equal(noise(0, 0, 4, (2,))[0], eps[:4])
    assert torch.equal(noise(Streams(seed=0).seed_of("pairs"), 0, 4, (2,))[0], eps[:4])


def test_the_units_are_those_of_the_student(tmp_path: Path) -> None:
    """x_teacher = 2 x + 0.5: the same noise, the data in other units."""
    one, other = maker(tmp_path / "a"), maker(tmp_path / "b", scale=2.0, shift=0.5)
    for pairs in (one, other):
        pairs.make()
    assert torch.equal(all_of(one).eps, all_of(other).eps)
    torch.testing.assert_close(all_of(one).x, 2 * all_of(other).x + 0.5)


def test_classes_are_as_frequent_as_in_the_data_and_stay_with_their_pairs(tmp_path: Path, small_shards: None) -> None:
    """Two classes far apart: an image says which class it was made of."""
    law = FiniteData(path=Linear(), points=column(-3.0, 3.0), labels=torch.tensor([0, 1]))
    flow = FlowMap(ExactNetwork(law, "velocity"), Linear(), AverageVelocity(), StartAndGap(), ends="diagonal")
    data = np.array([0, 0, 0, 1])
    labels = pair_labels(data, 20, 3)
    assert labels is not None
    assert (labels == 0).sum() == 15
    assert labels.tolist() != np.tile(data, 5).tolist()
    assert np.array_equal(labels, pair_labels(data, 20, 3))  # pyright: ignore
    assert pair_labels(None, 20, 3) is None
    pairs = PairMaker(
        directory=tmp_path, teacher=flow, identity="", shape=(1,), settings=Pairs(count=20, steps=8), labels=labels
    )
    pairs.make()
    rows = np.array([17, 3, 3, 0, 11])
    batch = pairs.batch(rows)
    assert batch.label is not None
    assert batch.label.tolist() == labels[rows].tolist()
    assert torch.equal(batch.x[:, 0] > 0, batch.label == 1)
    assert torch.equal(batch.x, all_of(pairs).x[rows])


def test_guidance_acts_on_the_pairs(tmp_path: Path) -> None:
    """With w = 2 the velocity is 2 v_c − v_∅, with w = 1 it is v_c, with w = 0 it is v_∅."""
    law = FiniteData(path=Linear(), points=column(-1.0, 1.0), labels=torch.tensor([0, 1]))
    flow = FlowMap(ExactNetwork(law, "velocity"), Linear(), AverageVelocity(), StartAndGap(), ends="diagonal")
    labels, made = np.array([0, 1, 0, 1]), {}
    for w in (0.0, 1.0, 2.0):
        pairs = PairMaker(
            directory=tmp_path / str(w),
            teacher=flow,
            identity="",
            shape=(1,),
            settings=Pairs(count=4, steps=1, guidance=w, precision="float32"),
            labels=labels,
        )
        pairs.make()
        made[w] = all_of(pairs)
    eps, one = made[1.0].eps, torch.ones(4)
    v = law.velocity(eps, one, torch.from_numpy(labels))
    free = law.velocity(eps, one, torch.full((4,), 2))
    torch.testing.assert_close(made[1.0].x, eps - v)
    torch.testing.assert_close(made[2.0].x, eps - (2 * v - free))
    torch.testing.assert_close(made[0.0].x, eps - free)


# --------------------------------------------------------------------------------------------------------- on the disk


def test_an_interrupted_generation_goes_on_bit_for_bit(tmp_path: Path, small_shards: None) -> None:
    whole, cut = maker(tmp_path / "whole"), maker(tmp_path / "cut")
    said: list[tuple[int, int]] = []
    whole.make(lambda *done: said.append(done))
    assert said == [(4, 10), (8, 10), (10, 10)]

    class Stopped(Exception):
        pass

    def stop(done: int, count: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        cut.make(stop)
    assert [path.name for path in cut.directory.iterdir()] == ["000000.safetensors"]
    before = cut.path(0).stat().st_mtime_ns
    said.clear()
    maker(tmp_path / "cut").make(lambda *done: said.append(done))
    assert said == [(8, 10), (10, 10)]
    assert cut.path(0).stat().st_mtime_ns == before
    assert files(cut.directory) == files(whole.directory)
    maker(tmp_path / "cut").make(lambda *done: pytest.fail("nothing is missing"))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_any_number_of_processes_makes_the_same_pairs(tmp_path: Path, small_shards: None, world: int) -> None:
    """What is missing is shared, whoever made what is there; nobody makes a shard twice."""
    settings = Pairs(count=30, steps=4, precision="float32")
    maker(tmp_path / "one", settings=settings).make()
    several = [maker(tmp_path / "several", settings=settings) for _ in range(world)]
    missing = several[0].missing()
    assert missing == list(range(8))
    for rank, each in enumerate(several):
        said: list[tuple[int, int]] = []
        each.make(lambda *done, said=said: said.append(done), missing=missing, rank=rank, world=world)
        assert len(said) == len(missing[rank::world])
        assert said[0] == (min(4 * world, 30), 30)
    assert files(tmp_path / "several") == files(tmp_path / "one")
    several[0].check_whole()
    several[0].path(3).unlink()
    several[0].path(6).unlink()
    assert several[0].missing() == [3, 6]
    with pytest.raises(CheckpointError, match=r"000003\.safetensors is not there.*must see the same --out"):
        several[1].check_whole()
    for rank in range(2):
        several[rank].make(missing=[3, 6], rank=rank, world=2)
    assert files(tmp_path / "several") == files(tmp_path / "one")


def test_a_shard_that_was_interrupted_is_not_there(tmp_path: Path, small_shards: None) -> None:
    class Dying(nn.Module):
        calls = 0

        def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
            self.calls += 1
            if self.calls > 12:
                raise KeyboardInterrupt
            return x

    pairs = maker(tmp_path, FlowMap(Dying(), Linear(), AverageVelocity(), StartOnly(), ends="diagonal"))
    with pytest.raises(KeyboardInterrupt):
        pairs.make()
    assert list(files(tmp_path)) == ["000000.safetensors"]


def test_the_header_says_how_the_pairs_were_made(tmp_path: Path) -> None:
    pairs = maker(tmp_path, seed=5)
    pairs.make()
    with safe_open(str(pairs.path(0)), "pt") as opened:
        header = json.loads(opened.metadata()["shortflow"])
    known = {"teacher": "ab" * 32, "steps": 4, "guidance": 1.0, "seed": 5, "count": 10, "precision": "float32"}
    assert known.items() <= header.items()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"settings": Pairs(count=10, steps=5, precision="float32")}, "steps was 4, is 5"),
        ({"scale": 2.0}, r"scale was 1\.0, is 2\.0"),
    ],
)
def test_pairs_made_otherwise_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    maker(tmp_path).make()
    with pytest.raises(CheckpointError, match=rf"pairs made otherwise \({message}\); start a new run.*or remove"):
        maker(tmp_path, **changed).make()


def test_pairs_of_another_teacher_are_refused(tmp_path: Path) -> None:
    maker(tmp_path).make()
    other = PairMaker(
        directory=tmp_path,
        teacher=teacher(),
        identity="cd" * 32,
        shape=(2,),
        settings=Pairs(count=10, steps=4, precision="float32"),
    )
    with pytest.raises(CheckpointError, match=r"teacher was abab.*is cdcd"):
        other.make()


def test_damage_is_named(tmp_path: Path) -> None:
    pairs = maker(tmp_path)
    pairs.make()
    pairs.path(0).write_bytes(pairs.path(0).read_bytes()[:60])
    with pytest.raises(CheckpointError, match=r"000000.safetensors is damaged .* remove this file"):
        maker(tmp_path).make()
    with pytest.raises(CheckpointError, match="cannot be read"):
        pairs.batch(np.array([0]))


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("wrong", [{"count": 0}, {"steps": 0}])
def test_impossible_settings_are_refused(wrong: Any) -> None:
    with pytest.raises(ShortflowError, match=f"pairs.{next(iter(wrong))} must be"):
        Pairs(**wrong)


def test_teachers_that_make_no_such_pairs_are_refused(tmp_path: Path) -> None:
    consistency = FlowMap(
        mlp(2, second_time=False), VarianceExploding(sigma_max=80.0), EDMSkip(), LogSigma(), ends="zero"
    )
    with pytest.raises(SamplerError, match=r"a pair needs one noise.*set pairs.steps to 1"):
        check_pairs(consistency, Pairs(steps=2))
    check_pairs(consistency, Pairs(steps=1))
    with pytest.raises(IncompatibleParts, match="null class"):
        check_pairs(teacher(), Pairs(guidance=2.0))
    guided = teacher()
    guided.guided = "guidance of its own"
    with pytest.raises(SamplerError, match="guidance of its own"):
        maker(tmp_path, guided, settings=Pairs(guidance=2.0)).make()
    assert not list(tmp_path.iterdir())


def test_numbers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    class Huge(nn.Module):
        def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
            return 1e6 * x

    flow = FlowMap(Huge(), Linear(), AverageVelocity(), StartOnly(), ends="diagonal")
    with pytest.raises(ShortflowError, match="float16 cannot hold"):
        maker(tmp_path, flow, settings=Pairs(count=2, steps=1)).make()
    maker(tmp_path, flow, settings=Pairs(count=2, steps=1, precision="float32")).make()
