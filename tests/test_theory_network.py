import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from oracles import column, f64, finite, gaussian, mixture
from shortflow.errors import ShortflowError
from shortflow.paths import Cosine, Linear
from shortflow.theory import ExactNetwork, FiniteData

X, T, GAP = column(1.1, 0.25, -0.6), f64(0.7, 0.9, 0.5), f64(0.5, 0.0, 0.2)


def close(got: Tensor, want: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("path", [Linear(), Cosine()])
def test_each_output_is_the_one_it_names(path: Linear | Cosine) -> None:
    law = gaussian(path)
    r, end = T - GAP, law.flow_map(X, T, T - GAP)
    u, v, f = (ExactNetwork(law, output)(X, T, GAP) for output in ("average_velocity", "velocity", "transfer"))
    close(X - GAP[:, None] * u, end)
    close(v, law.velocity(X, T))
    a, b = path.transfer(T, r)
    close(a[:, None] * X + b[:, None] * f, end)


@pytest.mark.parametrize("output", ["average_velocity", "velocity", "transfer"])
def test_without_a_gap_all_outputs_are_the_velocity(output: str) -> None:
    law = gaussian(Cosine())
    close(ExactNetwork(law, output)(X, T), law.velocity(X, T))
    close(ExactNetwork(law, output)(X, T, torch.zeros_like(T)), law.velocity(X, T))


@pytest.mark.parametrize("output", ["average_velocity", "transfer"])
@pytest.mark.parametrize("build", [gaussian, lambda path: mixture(path, 10), lambda path: finite(path, 10)])
def test_mixed_rows_differentiate_to_their_limits(build, output: str) -> None:
    """Rows with and without a gap in one batch: tangents (v, 1, 1) on (x, t, t − r) agree with a tiny gap."""
    law = build(Cosine())
    network, v, one = ExactNetwork(law, output), law.velocity(X, T), torch.ones_like(T)
    value, slope = torch.func.jvp(network, (X, T, GAP), (v, one, one))
    near, near_slope = torch.func.jvp(network, (X, T, GAP + 1e-7), (v, one, one))
    close(value, near, 1e-5)
    close(slope, near_slope, 1e-5)
    if output == "average_velocity":
        close(slope[1], 0.5 * law.acceleration(X, T)[1], 1e-10)


def test_meanflow_residual_of_the_exact_network_is_zero() -> None:
    network = ExactNetwork(gaussian(Linear()))
    v, one = network(X, T), torch.ones_like(T)
    u, slope = torch.func.jvp(network, (X, T, GAP), (v, one, one))
    close(v - GAP[:, None] * slope, u)


def test_gradients_reach_every_input_of_every_row() -> None:
    inputs = [value.clone().requires_grad_() for value in (X, T, GAP)]
    gradients = torch.autograd.grad(ExactNetwork(gaussian(Linear()))(*inputs).sum(), inputs)
    h = 1e-6
    for i, gradient in enumerate(gradients):
        above, below = (
            [value + (sign * h if i == j else 0) for j, value in enumerate((X, T, GAP))] for sign in (1, -1)
        )
        network = ExactNetwork(gaussian(Linear()))
        close(gradient.flatten(), ((network(*above) - network(*below)) / (2 * h)).flatten(), 1e-7)


def test_labels_select_the_class_and_the_null_label_none() -> None:
    labels = torch.tensor([0, 1, 0])
    law = FiniteData(path=Linear(), points=column(-1.0, 0.2, 1.5), labels=labels, steps=5)
    network = ExactNetwork(law)
    assert (network.num_classes, network.null_label) == (2, 2)
    got = network(X, T, GAP, torch.tensor([0, 1, 2]))
    alone = [column(-1.0, 1.5), column(0.2), column(-1.0, 0.2, 1.5)]
    for row, points in enumerate(alone):
        want = FiniteData(path=Linear(), points=points, steps=5)
        rows = slice(row, row + 1)
        close(got[rows], want.average_velocity(X[rows], T[rows], (T - GAP)[rows]))


def test_a_law_without_classes_is_an_unconditional_network() -> None:
    network = ExactNetwork(gaussian(Linear()))
    assert (network.num_classes, network.null_label) == (0, None)
    close(network(X, T, GAP, torch.tensor([0, 1, 2])), network(X, T, GAP))
    assert list(network.parameters()) == []


def test_unknown_output_is_refused() -> None:
    # The shape checker of the tests reads the annotation and may be first.
    with pytest.raises((ShortflowError, TypeCheckError), match="output"):
        ExactNetwork(gaussian(Linear()), "score")  # pyright: ignore[reportArgumentType]
