"""Every rule of the dual pass against torch.func.jvp in float64, in every spelling that PyTorch has for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from shortflow.activations import gelu
from shortflow.dual import Dual, NoRule, dual, push_forward
from shortflow.dual.pairs import _RULES, known, values
from shortflow.fewtokens import attention

Arguments = Callable[[Tensor, Tensor], tuple[Any, ...]]

MASK = torch.tensor([[True, False, True, True], [False, True, True, False], [True, True, False, True]])
INDEX = torch.tensor([2, 0, 1])
HOLES = torch.where(MASK, 0.0, torch.nan)
WIDE = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(5, 4).sin()
KERNEL = torch.linspace(-1, 2, 24, dtype=torch.float64).cos()


def image(x: Tensor) -> Tensor:
    """(3, 4) numbers as two images of one colour, (2, 2, 3, 4)."""
    return torch.stack([x, x * x, x.sin(), 1 - x]).unflatten(0, (2, 2))


def heads(x: Tensor) -> Tensor:
    return image(x) * 3


def one(x: Tensor, z: Tensor) -> tuple[Any, ...]:
    return (x,)


def standardised(x: Tensor, shape: Any, weight: Any = 1.0, bias: Any = 0.0, eps: float = 1e-5) -> Tensor:
    """Layer normalisation written out: the forward derivative of the kernel has wrong gradients."""
    axes = tuple(range(-len(shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + eps) * weight + bias


def both(x: Tensor, z: Tensor) -> tuple[Any, ...]:
    return x, z


# (names, positional arguments, keywords): x and z have shape (3, 4) and entries in (0.1, 0.9).
CASES: list[tuple[str | list[Any], Arguments, dict[str, Any]]] = [
    (
        "exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal square abs absolute __abs__ sin cos tan asin arcsin",
        one,
        {},
    ),
    (
        "acos arccos atan arctan sinh cosh tanh sigmoid expit logsigmoid erf erfc logit sinc mish relu silu gelu",
        one,
        {},
    ),
    ("softplus leaky_relu elu nan_to_num neg negative __neg__ positive __pos__ clone contiguous ravel", one, {}),
    ("relu6 hardtanh relu leaky_relu elu softplus", lambda x, z: (5 * (x - 0.5),), {}),
    ("gelu", one, {"approximate": "tanh"}),
    ([gelu], one, {}),
    ("softplus", one, {"beta": 4.0, "threshold": 1.5}),
    ("clamp clip", lambda x, z: (x, 0.3, 0.7), {}),
    ("clamp_min", lambda x, z: (x, 0.4), {}),
    ("clamp_max", lambda x, z: (x, 0.4), {}),
    ("logit", lambda x, z: (x, 0.3), {}),
    ([F.relu, F.silu, F.leaky_relu, F.elu, F.relu6, F.hardtanh, F.mish], one, {"inplace": False}),
    (
        "add __add__ __radd__ sub subtract __sub__ mul multiply __mul__ __rmul__ div divide true_divide __truediv__",
        both,
        {},
    ),
    (
        "add __add__ sub subtract __sub__ mul multiply __mul__ div divide __truediv__ __rsub__ __rtruediv__ rsub",
        lambda x, z: (x, 2.5),
        {},
    ),
    ("add sub mul div maximum minimum atan2 arctan2", lambda x, z: (WIDE[:3], x), {}),
    ("add sub mul div", lambda x, z: (x, z[0]), {}),
    ("add sub subtract rsub", both, {"alpha": 3}),
    ("__rsub__ __rtruediv__ __rdiv__ atan2 arctan2 maximum minimum max min", both, {}),
    ("maximum minimum", lambda x, z: (x, torch.full_like(x, 0.5)), {}),
    ("pow __pow__ float_power __rpow__", both, {}),
    ("pow __pow__", lambda x, z: (x, 3), {}),
    ("pow __pow__", lambda x, z: (x, 0), {}),
    ("pow", lambda x, z: (WIDE[:3].abs(), x), {}),
    ([torch.pow], lambda x, z: (2.0, x), {}),
    ("__rpow__", lambda x, z: (x, 2.0), {}),
    ([torch.where], lambda x, z: (MASK, x, z), {}),
    ([torch.where], lambda x, z: (x > 0.5, x, 2.0), {}),
    ([Tensor.where], lambda x, z: (x, MASK, z), {}),
    ("masked_fill", lambda x, z: (x, MASK, 2.0), {}),
    ("lerp", lambda x, z: (x, z, 0.3), {}),
    ("lerp", lambda x, z: (x, z, x * z), {}),
    ("lerp", lambda x, z: (WIDE[:3], WIDE[1:4], x), {}),
    ("lerp", lambda x, z: (WIDE[:3], x, WIDE[1:4]), {}),
    ("addcmul", lambda x, z: (x, z, x), {"value": 2.0}),
    ("addcmul", lambda x, z: (WIDE[:3], WIDE[1:4], x), {"value": 2.0}),
    ("addcmul", lambda x, z: (x, WIDE[:3], WIDE[1:4]), {}),
    ("matmul __matmul__ mm", lambda x, z: (x, z.mT), {}),
    ("matmul mm", lambda x, z: (WIDE, x.mT), {}),
    ("matmul mm", lambda x, z: (x, WIDE.mT), {}),
    ("__rmatmul__", lambda x, z: (x.mT, z), {}),
    ("bmm", lambda x, z: (image(x)[0], image(z)[0].mT), {}),
    ("mv", lambda x, z: (x, z[0]), {}),
    ("dot", lambda x, z: (x[0], z[1]), {}),
    ("addmm", lambda x, z: (z @ x.mT, x, z.mT), {"beta": 2.0, "alpha": 3.0}),
    ("addmm", lambda x, z: (x @ z.mT, WIDE[:3], WIDE[:3].mT), {}),
    ("addmm", lambda x, z: (WIDE[:3, :3], WIDE[:3], x.mT), {}),
    ("addmm", lambda x, z: (x @ z.mT, x, z.mT), {"beta": 0}),
    ("baddbmm", lambda x, z: (x @ z.mT, image(x)[0], image(z)[0].mT), {}),
    ("einsum", lambda x, z: ("ij,kj,j->ik", x, z, x[0]), {}),
    ("einsum", lambda x, z: ("ij,kj->ik", [x, WIDE]), {}),
    ("var std", lambda x, z: (x,), {}),
    ("var std", lambda x, z: (x, 1), {"correction": 0, "keepdim": True}),
    ("var std", lambda x, z: (x, (0, 1), True), {}),
    ("var std", lambda x, z: (x, 1, False, True), {}),
    ("var std", lambda x, z: (x, False), {}),
    ("norm vector_norm", lambda x, z: (x,), {}),
    ([torch.norm, Tensor.norm], lambda x, z: (x, 2, 1), {"keepdim": True}),
    ([torch.linalg.norm, torch.linalg.vector_norm], lambda x, z: (x, 2, 1), {}),
    ([torch.linalg.norm], lambda x, z: (x, "fro"), {}),
    ([torch.linalg.norm], lambda x, z: (image(x), None, (0, 1)), {}),
    ([torch.norm, Tensor.norm], lambda x, z: (x, 2), {}),
    ([torch.norm], lambda x, z: (x,), {"p": "fro", "dim": 1}),
    ([torch.linalg.vector_norm], lambda x, z: (x,), {"ord": 2, "dim": 0}),
    ("prod", one, {}),
    ("prod", lambda x, z: (torch.where(MASK, x, 0.0), 1), {"keepdim": True}),
    ("logsumexp", lambda x, z: (x, 1), {}),
    ("logsumexp", lambda x, z: (x, 0, True), {}),
    ("softmax log_softmax", lambda x, z: (x, 1), {}),
    ("linear", lambda x, z: (x, WIDE, WIDE[:, 0]), {}),
    ("conv1d", lambda x, z: (image(x)[0], KERNEL.reshape(4, 3, 2)[:, :3]), {"padding": 1}),
    ("conv2d", lambda x, z: (image(x), KERNEL.reshape(3, 2, 2, 2)), {"stride": 2, "padding": 1}),
    ("conv3d", lambda x, z: (image(x)[None], KERNEL[:8].reshape(1, 2, 1, 2, 2)), {}),
    ("conv_transpose1d", lambda x, z: (image(x)[0], KERNEL.reshape(3, 4, 2)), {}),
    ("conv_transpose2d", lambda x, z: (image(x), KERNEL.reshape(2, 3, 2, 2), KERNEL[:3]), {"stride": 2}),
    ("conv_transpose3d", lambda x, z: (image(x)[None], KERNEL[:8].reshape(2, 1, 1, 2, 2)), {}),
    ("layer_norm", lambda x, z: (x, (4,)), {}),
    ("layer_norm", lambda x, z: (image(x), (3, 4), KERNEL[:12].reshape(3, 4), KERNEL[12:].reshape(3, 4), 1e-2), {}),
    ([F.group_norm], lambda x, z: (image(x), 2, KERNEL[:2], KERNEL[2:4], 1e-3), {}),
    ("group_norm", lambda x, z: (image(x), 1), {}),
    ("rms_norm", lambda x, z: (x, (4,), KERNEL[:4]), {}),
    ("rms_norm", lambda x, z: (x, (3, 4)), {"eps": 1e-2}),
    ("normalize", lambda x, z: (x,), {}),
    ("normalize", lambda x, z: (x,), {"dim": 0, "eps": 2.0}),
    ("scaled_dot_product_attention", lambda x, z: (heads(x), heads(z), heads(x * z)), {}),
    ("scaled_dot_product_attention", lambda x, z: (heads(WIDE[:3]), heads(z), heads(x)), {"is_causal": True}),
    (
        "scaled_dot_product_attention",
        lambda x, z: (heads(x), heads(WIDE[:3]), heads(z), MASK[:, :3] | MASK[:, 1:]),
        {"scale": 0.7},
    ),
    (
        "scaled_dot_product_attention",
        lambda x, z: (heads(WIDE[:3]), heads(WIDE[:3]), heads(x)),
        {"attn_mask": WIDE[:3, :3]},
    ),
    ([attention], lambda x, z: (heads(x), heads(z), heads(x * z)), {}),
    ([attention], lambda x, z: (heads(WIDE[:3]), heads(z), heads(x)), {}),
    ("dropout feature_dropout alpha_dropout", lambda x, z: (x, 0.5, False), {}),
    ("dropout", lambda x, z: (x, 0.0, True), {}),
    ("reshape view", lambda x, z: (x, (2, 6)), {}),
    ("broadcast_to expand", lambda x, z: (x, (2, 3, 4)), {}),
    ("view_as reshape_as expand_as", both, {}),
    ("view_as reshape_as", lambda x, z: (x, WIDE[:3].reshape(2, 6)), {}),
    ("expand_as", lambda x, z: (x, torch.ones(2, 3, 4)), {}),
    ("flatten", one, {}),
    ("unflatten", lambda x, z: (x, 1, (2, 2)), {}),
    ("transpose swapaxes swapdims movedim moveaxis", lambda x, z: (x, 0, 1), {}),
    ("permute", lambda x, z: (x, (1, 0)), {}),
    ("t adjoint trace", lambda x, z: (x[:, :3],), {}),
    ("squeeze", lambda x, z: (x[None],), {}),
    ("unsqueeze", lambda x, z: (x, 1), {}),
    ("repeat tile", lambda x, z: (x, (2, 3)), {}),
    ("repeat_interleave roll", lambda x, z: (x, 2, 1), {}),
    ("flip", lambda x, z: (x, (0,)), {}),
    ("rot90", lambda x, z: (x, 1, (0, 1)), {}),
    ("chunk split tensor_split", lambda x, z: (x, 2, 1), {}),
    ("hsplit vsplit", lambda x, z: (x[:2], 2), {}),
    ("dsplit", lambda x, z: (x.reshape(1, 3, 4), 2), {}),
    ("unbind diff", one, {}),
    ("diff", lambda x, z: (x,), {"prepend": WIDE[:3, :1], "append": WIDE[:3, 1:2]}),
    ("diff", lambda x, z: (WIDE[:3], 1, -1, x[:, :1]), {}),
    ("select", lambda x, z: (x, 0, 1), {}),
    ("narrow", lambda x, z: (x, 1, 1, 2), {}),
    ("index_select", lambda x, z: (x, 0, INDEX), {}),
    ("take_along_dim", lambda x, z: (x, INDEX[:, None], 1), {}),
    ("gather", lambda x, z: (x, 0, INDEX[None]), {}),
    ("diagonal tril triu atleast_1d atleast_2d", one, {}),
    ("sum mean nansum", lambda x, z: (x, 1), {}),
    ("nansum", lambda x, z: (x + HOLES,), {}),
    ("nansum", lambda x, z: (x + HOLES, 0, True), {}),
    ("sum mean", one, {}),
    ("cumsum", lambda x, z: (x, 0), {}),
    ("cat concat concatenate stack hstack vstack", lambda x, z: ([x, WIDE[:3], z],), {}),
    ("cat stack hstack", lambda x, z: ((WIDE[:3], x),), {}),
    ("pixel_shuffle", lambda x, z: (image(x).reshape(1, 4, 6, 2), 2), {}),
    ("pixel_unshuffle", lambda x, z: (image(x)[:, :, :2], 2), {}),
    ("channel_shuffle", lambda x, z: (image(x), 2), {}),
    ("interpolate", lambda x, z: (image(x),), {"scale_factor": 2, "mode": "bilinear"}),
    ("avg_pool1d", lambda x, z: (x[None], 2), {}),
    ("avg_pool2d", lambda x, z: (image(x), 2), {}),
    ("avg_pool3d", lambda x, z: (image(x)[None], (1, 2, 2)), {}),
    ("adaptive_avg_pool1d", lambda x, z: (x[None], 2), {}),
    ("adaptive_avg_pool2d", lambda x, z: (image(x), 1), {}),
    ([Tensor.unfold], lambda x, z: (x, 1, 2, 1), {}),
    ([F.unfold], lambda x, z: (image(x), 2), {}),
    ([F.fold], lambda x, z: (x.reshape(1, 4, 3), (2, 4), 2), {}),
    ("__getitem__", lambda x, z: (x, (slice(None), None, INDEX)), {}),
    ("pad", lambda x, z: (x, (1, 2)), {"value": 5.0}),
    ("pad", lambda x, z: (image(x), (1, 2, 0, 1)), {"mode": "reflect"}),
    ("to type", lambda x, z: (x * z, torch.float64), {}),
    ("double cpu", lambda x, z: (x * z,), {}),
    ("type_as", both, {}),
    ([getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH")], one, {}),
]
# An attribute or a result that depends on the value alone: plain, and equal to that of the plain tensor.
PLAIN = (
    "size dim numel stride is_floating_point is_contiguous tolist eq lt sign floor argmax zeros_like ones_like detach "
    "isnan any all round long __len__"
)


def spelled() -> list[Any]:
    """(name, function, arguments, keywords) for every spelling of every case."""
    found = []
    for names, arguments, keywords in CASES:
        for name in names.split() if isinstance(names, str) else names:
            for i, function in enumerate(known([name])):
                label = name if isinstance(name, str) else getattr(name, "__qualname__", "attribute")
                found.append(pytest.param(function, arguments, keywords, id=f"{len(found)}-{label}-{i}"))
    return found


def inputs() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    x, z = 0.1 + 0.8 * torch.rand(2, 3, 4, generator=g, dtype=torch.float64)
    dx, dz = torch.randn(2, 3, 4, generator=g, dtype=torch.float64)
    return (x, z), (dx, dz)


def explicit(q: Tensor, k: Tensor, v: Tensor, mask: Any = None, **keywords: Any) -> Tensor:
    """Attention written out: the fused kernels have no forward mode."""
    mask = keywords.get("attn_mask", mask)
    scores = q @ k.mT * (keywords.get("scale") or q.shape[-1] ** -0.5)
    if keywords.get("is_causal"):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return torch.softmax(scores, -1) @ v


@pytest.mark.parametrize(("function", "arguments", "keywords"), spelled())
def test_a_rule_is_the_forward_derivative(function: Any, arguments: Arguments, keywords: dict[str, Any]) -> None:
    primals, tangents = inputs()

    def run(f: Any) -> Any:
        return lambda x, z: f(*arguments(x, z), **keywords)

    written_out = {F.scaled_dot_product_attention: explicit, attention: explicit}
    written_out |= {F.layer_norm: standardised, torch.layer_norm: standardised}
    reference = written_out.get(function, function)
    expected = torch.func.jvp(run(reference), primals, tangents)
    found = push_forward(run(function), primals, tangents)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    # The same rule where gradients of the tangent are wanted: equal, and with a gradient where there is one.
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    again = push_forward(lambda x, z: run(function)(x * weight, z), primals, tangents, graph=True)
    torch.testing.assert_close(again, expected, rtol=1e-12, atol=1e-12)

    def total(tangent: Any) -> Any:
        return sum(part.square().sum() for part in (tangent if isinstance(tangent, (tuple, list)) else [tangent]))

    scaled = total(torch.func.jvp(lambda x, z: run(reference)(x * weight, z), primals, tangents)[1])
    if scaled.requires_grad:
        torch.testing.assert_close(
            torch.autograd.grad(total(again[1]), weight), torch.autograd.grad(scaled, weight), rtol=1e-9, atol=1e-10
        )


def test_every_rule_has_a_case() -> None:
    tested = {function for names, _, _ in CASES for function in known(names)}
    plain = {handler for handler in _RULES.values() if handler.__name__ in ("_of_values", "_never")}
    missing = [key for key, handler in _RULES.items() if key not in tested and handler not in plain]
    refusing = {"embedding", "amax", "amin", "half", "bfloat16", "float", "cuda"}  # below
    assert {getattr(key, "__name__", str(key)) for key in missing} <= refusing


@pytest.mark.parametrize("name", PLAIN.split())
def test_what_depends_on_the_value_alone_is_plain(name: str) -> None:
    (x, _), (dx, _) = inputs()
    function = getattr(Tensor, name, None) or getattr(torch, name)
    more = (0.5,) if name in ("eq", "lt") else ()
    found, expected = function(dual(x, dx), *more), function(x, *more)
    assert not isinstance(found, Dual)
    assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


@pytest.mark.parametrize("cast", [lambda x: x.to(torch.int64), lambda x: x.type(torch.int32), Tensor.bool])
def test_a_step_function_has_no_tangent(cast: Callable[[Tensor], Tensor]) -> None:
    (x, _), (dx, _) = inputs()
    found = cast(3 * dual(x, dx))
    assert not isinstance(found, Dual)
    assert torch.equal(found, cast(3 * x))


def test_what_is_seen_for_its_shape_alone_moves_nothing() -> None:
    """A plain tensor that is brought to the shape of a pair stays plain: x + p.expand_as(x) has the tangent of x."""
    (x, _), (dx, _) = inputs()
    for function in (Tensor.expand_as, Tensor.view_as, Tensor.reshape_as):
        found = function(WIDE[:3], dual(x, dx))
        assert not isinstance(found, Dual)
        assert torch.equal(found, WIDE[:3])
    value, rate = push_forward(lambda x: x * WIDE[0].expand_as(x), (x,), (dx,))
    torch.testing.assert_close((value, rate), (x * WIDE[0], dx * WIDE[0]), rtol=0, atol=0)


def test_values_are_those_of_the_operation() -> None:
    """In the types that it gives, and where entries are NaN or there are none."""
    x = torch.rand(3, 4)
    pair: Any = dual(x, torch.ones_like(x))
    power: Any = torch.float_power(pair, 2)
    assert power.value.dtype == torch.float_power(x, 2).dtype == torch.float64
    nothing = torch.full((3, 3), torch.nan)
    found: Any = torch.addmm(nothing, pair, x.mT, beta=0)
    torch.testing.assert_close((found.value, found.tangent), (x @ x.mT, torch.ones_like(x) @ x.mT))
    unmoved: Any = torch.addmm(dual(nothing, nothing), x, x.mT, beta=0)
    torch.testing.assert_close((unmoved.value, unmoved.tangent), (x @ x.mT, torch.zeros(3, 3)))
    empty: Any = F.group_norm(dual(torch.rand(0, 4, 2), torch.rand(0, 4, 2)), 2)
    assert empty.value.shape == empty.tangent.shape == (0, 4, 2)
    assert pair.type() == x.type()


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        (lambda x: torch.linalg.inv(x[:, :3]), "inv"),
        (lambda x: x.add_(1), "add_"),
        (lambda x: torch.amax(x), "amax"),
        (lambda x: x.max(1), "max"),
        (lambda x: F.embedding(torch.tensor([0]), x), "embedding"),
        (lambda x: F.dropout(x, 0.5), "dropout"),
        (lambda x: F.linear(torch.ones(4, dtype=torch.float64), x), "linear"),
        (lambda x: torch.clamp(x, x, x), "clamp"),
        (lambda x: torch.clamp_min(torch.zeros(3, 4, dtype=torch.float64), x), "clamp"),
        (lambda x: torch.clamp_max(x, x), "clamp"),
        (lambda x: torch.linalg.norm(x, 2), "p=2"),
        (lambda x: torch.linalg.norm(x, ord=2, dim=(0, 1)), "p=2"),
        *[
            (lambda x, f=f: f(x, inplace=True), "inplace")
            for f in (F.relu, F.silu, F.leaky_relu, F.elu, F.relu6, F.hardtanh, F.mish)
        ],
        (lambda x: torch.div(x, 2, rounding_mode="floor"), "div"),
        (lambda x: x.norm(p=1), "p=1"),
        (lambda x: F.normalize(x, p=1.0), "p=1"),
        (lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1), "attention"),
    ],
)
def test_an_operation_without_a_rule_is_named(operation: Callable[[Tensor], Tensor], named: str) -> None:
    (x, _), (dx, _) = inputs()
    with pytest.raises(NoRule, match=named):
        push_forward(operation, (x,), (dx,))


def test_values_takes_duals_out_of_nested_arguments() -> None:
    (x, z), (dx, _) = inputs()
    pair = dual(x, dx)
    assert values(([pair, z], {"a": pair}, 3)) == ([x, z], {"a": x}, 3) or values(([pair], 3))[0][0] is x
