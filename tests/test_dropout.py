import math
import subprocess
import sys

import pytest
import torch

from shortflow.dropout import Dropout, drops, no_dropout, shared_dropout


def ones(b: int = 6, d: int = 2000) -> torch.Tensor:
    return torch.ones(b, d, dtype=torch.float64)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_keeps_the_mean_and_drops_the_share_p(p: float) -> None:
    layer = Dropout(p).train()
    x = ones(50)
    for seed in (0, 1):
        with shared_dropout(seed, 50):
            y = layer(x)
        assert set(y.unique().tolist()) == {0.0, 1 / (1 - p)}
        band = 5 * (p * (1 - p) / y.numel()) ** 0.5
        assert abs((y == 0).double().mean().item() - p) < band


def test_what_drops() -> None:
    inside = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(Dropout(0.5)))
    assert drops(inside.train())
    assert drops(torch.nn.Sequential(torch.nn.Dropout(0.1)))
    with no_dropout():
        assert not drops(inside)
    assert not drops(inside.eval())
    assert not drops(torch.nn.Sequential(Dropout(0.0)).train())


def test_masks_are_a_function_of_seed_layer_and_row() -> None:
    first, second = Dropout(0.5).train(), Dropout(0.5).train()
    with shared_dropout(3, 6):
        a, b = first(ones()), second(ones())
    with shared_dropout(3, 6):
        again = [second(ones()), first(ones())]  # the order of calls counts, not the layer object
    assert torch.equal(again[0], a)
    assert torch.equal(again[1], b)
    with shared_dropout(4, 6):
        other = first(ones())
    for one, two in ((a, b), (a, other), (a[:1], a[1:2])):
        agree = (one == two).double().mean().item()
        assert abs(agree - 0.5) < 5 * (0.25 / one.numel()) ** 0.5  # independent coins


@pytest.mark.parametrize("rows", [[2], [5, 0, 3], [1, 1, 4, 4]])
def test_a_pass_over_some_rows_sees_the_masks_of_those_rows(rows: list[int]) -> None:
    net = torch.nn.Sequential(Dropout(0.3), torch.nn.ReLU(), Dropout(0.6)).train()
    x = torch.rand(6, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with shared_dropout(9, 6):
        whole = net(x)
    index = torch.tensor(rows)
    with shared_dropout(9, 6, index):
        part = net(x[index])
    assert torch.equal(part, whole[index])


def test_no_dropout_is_the_identity_also_inside_a_shared_pass() -> None:
    layer = Dropout(0.5).train()
    with shared_dropout(1, 6), no_dropout():
        assert torch.equal(layer(ones()), ones())
    with no_dropout():
        assert torch.equal(layer(ones()), ones())
    with shared_dropout(1, 6):
        assert not torch.equal(layer(ones()), ones())


def test_an_undropped_pass_does_not_shift_the_masks_after_it() -> None:
    layer = Dropout(0.5).train()
    with shared_dropout(1, 6):
        want = layer(ones())
    with shared_dropout(1, 6):
        with no_dropout():
            layer(ones())
        assert torch.equal(layer(ones()), want)


def test_contexts_nest_and_close_after_errors() -> None:
    layer = Dropout(0.5).train()
    with shared_dropout(1, 6):
        first, second = layer(ones()), layer(ones())
    with shared_dropout(1, 6):
        assert torch.equal(layer(ones()), first)
        with pytest.raises(RuntimeError, match="stop"), shared_dropout(2, 6), no_dropout():
            raise RuntimeError("stop")
        assert torch.equal(layer(ones()), second)


def test_masks_do_not_touch_the_global_generator() -> None:
    layer = Dropout(0.5).train()
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    with shared_dropout(1, 6):
        layer(ones())
    assert torch.equal(torch.rand(3), want)


def test_identity_in_evaluation_and_for_probability_zero() -> None:
    with shared_dropout(1, 6):
        assert Dropout(0.5).eval()(ones()).equal(ones())
        assert Dropout(0.0).train()(ones()).equal(ones())


def test_without_a_context_masks_come_from_the_global_generator() -> None:
    layer = Dropout(0.25).train()
    torch.manual_seed(4)
    got = layer(ones())
    torch.manual_seed(4)
    assert torch.equal(got, torch.nn.functional.dropout(ones(), 0.25))


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_impossible_probabilities_are_refused(p: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        Dropout(p)


# ----------------------------------------------------------------------------------------------------- numbers by count


def mixed_32(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def split_mix(seed: int, count: int) -> int:
    """The count-th number of SplitMix64 (its first of seed 1234567 is published as 6457827717110365317)."""
    x = (seed + count * 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def test_masks_are_those_of_their_formula() -> None:
    """Restated in whole numbers of any size, so that no sign and no overflow hides."""
    assert split_mix(1234567, 1) == 6457827717110365317
    layer = Dropout(0.3).train()
    for seed in (0, 7, 2**63 - 1):
        with shared_dropout(seed, 4, torch.tensor([3, 0])):
            for count in (1, 2, 3):
                key = split_mix(seed, count)
                row = [mixed_32(mixed_32(i ^ (key % 2**32)) ^ (key >> 32)) for i in (3, 0)]
                words = torch.tensor([[mixed_32(mixed_32(place) ^ word) for place in range(6)] for word in row])
                expected = ((words + 2**31) % 2**32 < round(0.7 * 2**32)).double() / 0.7  # compared with their sign
                got = layer(torch.ones(2, 2, 3, dtype=torch.float64))
                torch.testing.assert_close(got.reshape(2, 6), expected, rtol=0, atol=1e-15)


def test_masks_have_no_structure() -> None:
    """Coins of neighbours, of rows, of layers and of seeds agree half of the time, and counts have the right spread."""
    layer, n = Dropout(0.5).train(), 256

    def coins(seed: int) -> torch.Tensor:
        with shared_dropout(seed, n):
            return torch.stack([layer(torch.ones(n, n)) for _ in range(4)]) > 0

    a, b = coins(0), coins(1)
    band = 5 * math.sqrt(0.25 / (4 * n * n))
    pairs = [(a[:, :, 1:], a[:, :, :-1]), (a[:, :, 2:], a[:, :, :-2]), (a[:, 1:], a[:, :-1]), (a[1:], a[:-1]), (a, b)]
    pairs += [(a[:, :, 2**k :], a[:, :, : -(2**k)]) for k in range(2, 8)]
    for one, two in pairs:
        assert abs((one == two).double().mean().item() - 0.5) < 1.3 * band
    for axis in (1, 2):  # the sum of n coins has the variance n/4
        assert abs(a.double().sum(axis).var().item() / (n / 4) - 1) < 5 * math.sqrt(2 / (4 * n))


def test_a_seed_may_be_a_tensor() -> None:
    layer, masks = Dropout(0.5).train(), []
    for seed in (2**62 + 5, torch.tensor(2**62 + 5)):
        with shared_dropout(seed, 6):
            masks.append(layer(ones()))
    assert torch.equal(*masks)


COMPILED = """
import torch
from shortflow.dropout import Dropout, no_dropout, shared_dropout

net = torch.nn.Sequential(Dropout(0.3), torch.nn.Linear(3, 3), torch.nn.SiLU(), Dropout(0.6)).double()
x, rows = torch.randn(6, 3).double(), torch.tensor([4, 1])

def step(x, seed):
    with shared_dropout(seed, 6):
        whole = net(x)
    with shared_dropout(seed, 6, rows):
        part = torch.func.jvp(net, (x[rows].clone(),), (x[rows].clone(),))
    with no_dropout():
        plain = net(x)
    return whole, *part, plain

compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
with torch.no_grad():
    for seed in (3, 99, 2**62 + 5):
        values, expected = compiled(x, torch.tensor(seed)), step(x, torch.tensor(seed))
        assert torch.allclose(values[0][rows], values[1], rtol=0, atol=1e-14)
        for value, want in zip(values, expected):
            assert torch.allclose(value, want, rtol=0, atol=1e-14)
print(torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


@pytest.mark.slow
def test_a_step_with_dropout_compiles_once_for_all_seeds() -> None:
    """In a process of its own, because functions that check their types cannot be compiled."""
    result = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == "1"
