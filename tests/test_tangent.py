from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from oracles import f64, log_slope
from shortflow.dropout import shared_dropout
from shortflow.errors import ShortflowError
from shortflow.flowmap import AverageVelocity, FlowMap, Parameterization, StartAndGap, Transfer, TrigFlow
from shortflow.nn import MLP
from shortflow.paths import Cosine, Linear, Path
from shortflow.tangent import CentralDifference, Derivative, DualPass, ForwardMode, differentiated


def curve(x: Tensor, t: Tensor) -> Tensor:
    """f(x, t) = sin(x₀ x₁) eᵗ and x₀ t³, shape (b, 2)."""
    return torch.stack([torch.sin(x[:, 0] * x[:, 1]) * t.exp(), x[:, 0] * t**3], 1)


def slope(x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """D_t of `curve` by hand."""
    product = x[:, 0] * x[:, 1]
    first = (product.cos() * (v[:, 0] * x[:, 1] + x[:, 0] * v[:, 1]) + product.sin()) * t.exp()
    return torch.stack([first, v[:, 0] * t**3 + 3 * x[:, 0] * t**2], 1)


def network(*, dropout: float = 0.0, classes: int = 0) -> MLP:
    """A small network whose last layer is not zero."""
    torch.manual_seed(0)
    net = MLP(shape=(3,), width=16, depth=2, dropout=dropout, num_classes=classes, null_class=classes > 0).double()
    torch.nn.init.normal_(net.last.weight)
    return net


def point(b: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x, v = torch.randn(2, b, 3, generator=g, dtype=torch.float64)
    r, t = torch.rand(2, b, generator=g, dtype=torch.float64).sort(0).values
    return x, v, t, r


@pytest.mark.parametrize(("rule", "tolerance"), [(ForwardMode(), 1e-14), (CentralDifference(step=1e-4), 1e-7)])
def test_value_and_derivative_of_a_known_function(rule: Derivative, tolerance: float) -> None:
    x = torch.tensor([[0.3, -0.7], [1.2, 0.5]], dtype=torch.float64)
    v = torch.tensor([[1.0, 2.0], [-0.4, 0.8]], dtype=torch.float64)
    t = f64(0.2, 0.9)
    value, derivative = rule(curve, x, t, v)
    assert torch.equal(value, curve(x, t))
    torch.testing.assert_close(derivative, slope(x, t, v), rtol=0, atol=tolerance)


def test_central_difference_has_order_two() -> None:
    flow = FlowMap(network(), Linear(), AverageVelocity())
    x, v, t, r = point()
    exact = flow.tangent(x, t, r, v)[1]
    steps = [0.04, 0.02, 0.01, 0.005]
    errors = [
        float((flow.tangent(x, t, r, v, derivative=CentralDifference(step=h))[1] - exact).abs().max()) for h in steps
    ]
    assert log_slope(steps, errors) == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize("step", [1e-3, 5e-3, 1e-2])
def test_central_difference_in_single_precision_is_good_to_three_digits(step: float) -> None:
    flow = FlowMap(network(), Linear(), AverageVelocity())
    x, v, t, r = point()
    exact = flow.tangent(x, t, r, v)[1]
    rough = flow.float().tangent(x.float(), t.float(), r.float(), v.float(), derivative=CentralDifference(step=step))[1]
    error = (rough.double() - exact).norm() / exact.norm()
    assert float(error) < 2e-3


def test_only_a_positive_step_is_taken() -> None:
    for step in (0.0, -1e-3):
        with pytest.raises(ShortflowError, match="step must be positive"):
            CentralDifference(step=step)


@pytest.mark.parametrize(
    ("path", "parameterization", "sigma_data"),
    [
        (Linear(), AverageVelocity(), 1.0),
        (Linear(noise_scale=0.5), AverageVelocity(normalize=True), 0.5),
        (Cosine(), Transfer(), 1.0),
        (Cosine(noise_scale=0.5), TrigFlow(), 0.5),
    ],
    ids=lambda value: type(value).__name__,
)
def test_fixed_end_and_fixed_gap_are_one_derivative(
    path: Path, parameterization: Parameterization, sigma_data: float
) -> None:
    """(v, 1) in (x, t) at fixed r is (v, 1, 1) in (x, t, h) with h = t − r, for F(c_in(t) x, t, h)."""
    flow = FlowMap(network(), path, parameterization, StartAndGap(), sigma_data=sigma_data)
    x, v, t, r = point()

    def of_gap(x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        scale = parameterization.input_scale(path, sigma_data, t)
        return flow.network(x if scale is None else scale[:, None] * x, t, h, None)

    one = torch.ones_like(t)
    value, want = torch.func.jvp(of_gap, (x, t, t - r), (v, one, one))
    got_value, got = flow.tangent(x, t, r, v)
    torch.testing.assert_close(got_value, value, rtol=0, atol=1e-14)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", [ForwardMode(), CentralDifference()])
def test_value_is_the_prediction(rule: Derivative) -> None:
    flow = FlowMap(network(classes=3), Linear(), AverageVelocity())
    x, v, t, r = point()
    label = torch.tensor([0, 1, 2, 3, 0])
    value, derivative = flow.tangent(x, t, r, v, label, rule)
    torch.testing.assert_close(value, flow.predict(x, t, r, label), rtol=0, atol=1e-14)
    other = flow.tangent(x, t, r, v, label.roll(1), rule)[1]
    assert float((derivative - other).abs().max()) > 1e-4  # the class reaches the derivative


@pytest.mark.parametrize("rule", [ForwardMode(), CentralDifference()])
def test_no_gradient_is_recorded_and_weights_stay_as_they_are(rule: Derivative) -> None:
    flow = FlowMap(network(), Linear(), AverageVelocity())
    flow.network.first.weight.requires_grad_(False)  # type: ignore[union-attr]
    before = {name: weight.requires_grad for name, weight in flow.named_parameters()}
    x, v, t, r = point()
    value, derivative = flow.tangent(x.requires_grad_(), t, r, v, derivative=rule)
    assert not value.requires_grad
    assert not derivative.requires_grad
    assert {name: weight.requires_grad for name, weight in flow.named_parameters()} == before
    assert all(weight.grad is None for weight in flow.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("rule", [ForwardMode(), CentralDifference()])
def test_derivative_is_taken_outside_autocast(rule: Derivative) -> None:
    flow = FlowMap(network(), Linear(), AverageVelocity()).float()
    x, v, t, r = (value.float() for value in point())
    plain = flow.tangent(x, t, r, v, derivative=rule)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = flow.tangent(x, t, r, v, derivative=rule)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


@pytest.mark.parametrize("rule", [ForwardMode(), CentralDifference(step=1e-4)])
@pytest.mark.parametrize("rows", [None, [3, 0, 4]])
def test_prediction_and_derivative_share_their_dropout_masks(rule: Derivative, rows: list[int] | None) -> None:
    """Also where the derivative is taken on a part of the rows, and equal to the derivative of the masked network."""
    flow = FlowMap(network(dropout=0.4), Linear(), AverageVelocity()).train()
    x, v, t, r = point()
    chosen = None if rows is None else torch.tensor(rows)
    some = slice(None) if rows is None else chosen

    def masked(seed: int) -> Callable[[Tensor, Tensor], Tensor]:
        def f(x: Tensor, t: Tensor) -> Tensor:
            with shared_dropout(seed, 5, chosen):
                return flow.predict(x, t, r[some])

        return f

    with shared_dropout(11, 5):
        prediction = flow.predict(x, t, r)
    value, derivative = rule(masked(11), x[some], t[some], v[some])
    torch.testing.assert_close(value, prediction[some], rtol=0, atol=1e-14)
    h = 1e-5
    f = masked(11)
    numeric = (f(x[some] + h * v[some], t[some] + h) - f(x[some] - h * v[some], t[some] - h)) / (2 * h)
    torch.testing.assert_close(derivative, numeric, rtol=1e-4, atol=1e-5)
    assert float((rule(masked(12), x[some], t[some], v[some])[0] - value).abs().max()) > 1e-3


def test_what_has_no_rule_goes_on_in_forward_mode_through_attention() -> None:
    """Fused attention has no forward mode: the fallback of a network that has it writes its products out."""
    heads, t, rate = torch.randn(2, 1, 6, 4).double(), f64(0.2, 0.7), torch.randn(2, 1, 6, 4).double()
    weight = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)

    def attending(x: Tensor, t: Tensor) -> Tensor:
        mixed = torch.nn.functional.scaled_dot_product_attention(x @ weight, x, x)
        return mixed * t[:, None, None, None] + torch.outer(mixed[0, 0, 0], mixed[0, 0, 1]).sum()  # outer has no rule

    def written_out(x: Tensor, t: Tensor) -> Tensor:
        mixed = torch.softmax(x @ weight @ x.mT / 2, -1) @ x
        return mixed * t[:, None, None, None] + mixed[0, 0, 0].sum() * mixed[0, 0, 1].sum()

    expected = torch.func.jvp(written_out, (heads, t), (rate, torch.ones_like(t)))
    with pytest.warns(UserWarning, match="outer.*It is used now"):
        (value,), moved = DualPass().keeping(lambda x, t: (attending(x, t),), heads, t, rate)
    assert value.requires_grad
    torch.testing.assert_close((value, moved), expected, rtol=1e-12, atol=1e-12)
    with pytest.warns(UserWarning, match="outer"):
        found = differentiated(attending, (heads, t), (rate, torch.ones_like(t)))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(found[1].square().sum(), weight), torch.autograd.grad(expected[1].square().sum(), weight)
    )
    torch.testing.assert_close(ForwardMode()(attending, heads, t, rate), expected, rtol=1e-12, atol=1e-12)
