import pytest
import torch

from shortflow.dropout import Dropout, no_dropout, shared_dropout


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
