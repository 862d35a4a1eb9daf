"""What all networks share: inputs that fit what was built, the heads, derivatives, dropout."""

import itertools

import pytest
import torch

from shortflow.dropout import no_dropout, shared_dropout
from shortflow.errors import ShortflowError
from shortflow.nn import MLP, SiT, UNet
from shortflow.nn.embeddings import TimeEmbedding

SHAPES = {"sit": (2, 4, 6), "mlp": (3,), "unet": (2, 4, 6)}


def build(kind, randomized=True, qk_norm=False, **options):
    torch.manual_seed(0)
    if kind == "mlp":
        network = MLP(shape=SHAPES[kind], width=16, depth=2, **options)
    elif kind == "unet":
        network = UNet(shape=SHAPES[kind], channels=8, multipliers=(1, 2), depth=1, attention=(0,), **options)
    else:
        network = SiT(shape=SHAPES[kind], patch=2, width=16, depth=2, heads=2, qk_norm=qk_norm, **options)
    if randomized:  # at the start the output is zero, which hides everything
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    return network.double()


def guidance(rows=4, seed=2):
    """Scales between 1 and 5, intervals around the middle."""
    u = torch.rand(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.stack([1 + 4 * u[:, 0], u[:, 1] / 2, 0.5 + u[:, 2] / 2], dim=1)


def inputs(kind, rows=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, *SHAPES[kind], generator=generator, dtype=torch.float64)
    time, second = torch.rand(2, rows, generator=generator, dtype=torch.float64)
    return x, time, second


kinds = pytest.mark.parametrize("kind", ["sit", "mlp", "unet"])
built = pytest.mark.parametrize(
    ("kind", "options"),
    [("sit", {}), ("sit", {"qk_norm": True}), ("sit", {"modulation_norm": True}), ("mlp", {}), ("unet", {})],
)


@kinds
def test_output_starts_at_zero_and_the_log_variance_too(kind):
    network = build(kind, randomized=False, num_classes=3, log_variance=True, guidance=True, velocity_head=True)
    x, time, second = inputs(kind)
    label = torch.tensor([0, 1, 2, 1])
    for value in network.both(x, time, second, label, guidance()):
        assert torch.equal(value, torch.zeros_like(x))
    assert torch.equal(network.log_variance(time, second, label), torch.zeros_like(time))


@kinds
def test_conditioning_is_the_sum_of_the_embeddings(kind):
    network = build(kind, num_classes=3, null_class=True, guidance=True)
    _, time, second = inputs(kind)
    label, g = torch.tensor([0, 3, 2, 1]), guidance()
    expected = network.t_embedder(time) + network.r_embedder(second) + network.y_embedder.embedding_table.weight[label]
    parts = network.g_embedder
    expected = expected + parts.omega(1 - 1 / g[:, 0]) + parts.low(g[:, 1]) + parts.high(g[:, 2])
    torch.testing.assert_close(network.condition(time, second, label, g), expected, rtol=0, atol=1e-13)


@built
def test_forward_derivative_is_the_limit_of_central_differences(kind, options):
    network = build(kind, **options, num_classes=3).requires_grad_(False)
    x, time, second = inputs(kind)
    dx, dt, ds = (torch.randn_like(value) for value in (x, time, second))
    label = torch.tensor([0, 1, 2, 1])

    def function(x, time, second):
        return network(x, time, second, label)

    value, slope = torch.func.jvp(function, (x, time, second), (dx, dt, ds))
    torch.testing.assert_close(value, function(x, time, second), rtol=0, atol=1e-12)
    size, errors = slope.abs().max(), []
    assert size > 0.1
    for h in (2e-3, 1e-3, 1e-6):
        ends = [function(x + s * dx, time + s * dt, second + s * ds) for s in (h, -h)]
        errors.append(float(((ends[0] - ends[1]) / (2 * h) - slope).abs().max() / size))
    assert 3.9 < errors[0] / errors[1] < 4.1  # second order in h
    assert errors[2] < 1e-7


@built
def test_gradient_of_a_forward_derivative_is_the_limit_of_central_differences(kind, options):
    """Losses on the derivative itself (Lagrangian self-distillation, TVM) differentiate it by the weights."""
    network = build(kind, **options, num_classes=3)
    x, time, second = inputs(kind)
    label, dx, weights = torch.tensor([0, 1, 2, 1]), torch.randn_like(inputs(kind)[0]), list(network.parameters())

    def loss():
        function = lambda x, second: network(x, time, second, label)  # noqa: E731
        return torch.func.jvp(function, (x, second), (dx, torch.ones_like(second)))[1].square().mean()

    ways = [torch.randn_like(weight) for weight in weights]
    # The last bias moves no derivative, so it has no gradient.
    gradients = torch.autograd.grad(loss(), weights, allow_unused=True)
    found = sum((g * way).sum() for g, way in zip(gradients, ways, strict=True) if g is not None)
    values = []
    for h in (1e-6, -1e-6):
        with torch.no_grad():
            torch._foreach_add_(weights, ways, alpha=h)
            values.append(loss())
            torch._foreach_add_(weights, ways, alpha=-h)
    torch.testing.assert_close(found, (values[0] - values[1]) / 2e-6, rtol=1e-5, atol=0)


@kinds
def test_every_input_matters(kind):
    network = build(kind, num_classes=3, guidance=True)
    x, time, second = inputs(kind)
    label, g = torch.tensor([0, 1, 2, 1]), guidance()
    base = network(x, time, second, label, g)
    changed = [
        network(x + 0.1, time, second, label, g),
        network(x, time + 0.1, second, label, g),
        network(x, time, second + 0.1, label, g),
        network(x, time, second, (label + 1) % 3, g),
        *(network(x, time, second, label, g + 0.1 * torch.eye(3, dtype=torch.float64)[i]) for i in range(3)),
    ]
    for other in changed:
        assert bool(((base - other).flatten(1).abs().amax(1) > 1e-4).all())


@kinds
def test_rows_do_not_see_each_other(kind):
    network = build(kind, num_classes=3)
    x, time, second = inputs(kind)
    label = torch.tensor([0, 1, 2, 1])
    together = network(x, time, second, label)
    for i in range(4):
        alone = network(x[i : i + 1], time[i : i + 1], second[i : i + 1], label[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)
    mapped = torch.func.vmap(lambda *row: network(*(value[None] for value in row))[0])(x, time, second, label)
    torch.testing.assert_close(mapped, together, rtol=0, atol=1e-12)


CLASSES = [(0, False), (3, False), (3, True)]
FLAGS = list(itertools.product((False, True), repeat=4))


@kinds
@pytest.mark.parametrize(("classes", "null"), CLASSES)
def test_gradient_reaches_every_weight_for_every_combination_of_parts(kind, classes, null):
    for second_time, log_variance, guided, velocity_head in FLAGS:
        options = {"second_time": second_time, "log_variance": log_variance, "guidance": guided}
        if kind == "sit":
            options |= {"qk_norm": True, "head_depth": 1}
        network = build(kind, num_classes=classes, null_class=null, velocity_head=velocity_head, **options)
        x, time, second = inputs(kind)
        label = None if not classes else torch.tensor([0, 1, 2, 3 if null else 1])
        given = (x, time, second if second_time else None, label, guidance() if guided else None)
        loss = sum(value.square().sum() for value in (network.both(*given) if velocity_head else [network(*given)]))
        if log_variance:
            loss = loss + network.log_variance(*given[1:]).sum()
        loss.backward()
        for name, weight in network.named_parameters():
            assert weight.grad is not None, (name, options)
            assert weight.grad.abs().max() > 1e-6, (name, options)
        if classes:
            assert bool((network.y_embedder.embedding_table.weight.grad.abs().amax(1) > 1e-6).all())


# -------------------------------------------------------------------------------------------------------- velocity head


@kinds
def test_both_returns_the_output_and_a_velocity_of_its_own(kind):
    network = build(kind, velocity_head=True)
    x, time, second = inputs(kind)
    output, velocity = network.both(x, time, second)
    assert torch.equal(output, network(x, time, second))
    assert velocity.shape == x.shape
    assert (velocity - output).abs().max() > 0.1
    heads = [name for name, _ in network.named_parameters() if name.startswith("velocity")]
    with torch.no_grad():
        for name in heads:
            network.get_parameter(name).mul_(1.5)
    again = network.both(x, time, second)
    assert torch.equal(again[0], output)
    assert not torch.allclose(again[1], velocity)
    plain = build(kind)
    assert set(network.state_dict()) == set(plain.state_dict()) | set(heads)
    with pytest.raises(ShortflowError, match="no velocity head: build the network with velocity_head=True"):
        plain.both(x, time, second)


@kinds
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_velocity_alone_is_that_of_both(kind, dropout):
    """To the bit, also under dropout, whose masks the head takes after those of the output."""
    options = {"head_depth": 1} if kind == "sit" else {}
    network = build(kind, velocity_head=True, dropout=dropout, **options)
    x, time, second = inputs(kind)
    with shared_dropout(5, 4):
        both = network.both(x, time, second)[1]
    with shared_dropout(5, 4):
        assert torch.equal(network.velocity_alone(x, time, second), both)
    with no_dropout():
        assert torch.equal(network.velocity_alone(x, time, second), network.both(x, time, second)[1])
    with pytest.raises(ShortflowError, match="no velocity head: build the network with velocity_head=True"):
        build(kind).velocity_alone(x, time, second)


def test_the_velocity_alone_skips_what_only_the_output_needs():
    """Of 4 blocks the heads have 3 of their own each: 4 blocks are run instead of 7."""
    network = SiT(shape=(1, 8, 8), patch=2, width=16, depth=4, heads=2, velocity_head=True, head_depth=3)
    x, time = torch.randn(8, 1, 8, 8), torch.rand(8)
    blocks = []
    for block in (*network.blocks, *network.velocity_blocks):
        block.register_forward_hook(lambda *_: blocks.append(None))
    network.both(x, time, time)
    assert len(blocks) == 7
    network.velocity_alone(x, time, time)
    assert len(blocks) == 7 + 4


@kinds
def test_velocity_is_auxiliary_to_a_forward_derivative(kind):
    network = build(kind, velocity_head=True)
    x, time, second = inputs(kind)
    ways = torch.randn_like(x), torch.ones_like(time)
    output, slope, velocity = torch.func.jvp(lambda x, t: network.both(x, t, second), (x, time), ways, has_aux=True)
    expected = torch.func.jvp(lambda x, t: network(x, t, second), (x, time), ways)
    for value, want in zip((output, slope, velocity), (*expected, network.both(x, time, second)[1]), strict=True):
        torch.testing.assert_close(value, want, rtol=0, atol=1e-12)


@kinds
def test_velocity_has_a_forward_derivative_of_its_own(kind):
    network = build(kind, velocity_head=True).requires_grad_(False)
    x, time, second = inputs(kind)
    dx, h = torch.randn_like(x), 1e-6
    slope = torch.func.jvp(lambda x: network.both(x, time, second)[1], (x,), (dx,))[1]
    ends = [network.both(x + s * dx, time, second)[1] for s in (h, -h)]
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-6)


@kinds
def test_dropout_of_the_output_does_not_know_the_velocity_head(kind):
    options = {"head_depth": 1} if kind == "sit" else {}
    network = build(kind, velocity_head=True, dropout=0.4, **options)
    x, time, second = inputs(kind)
    with shared_dropout(5, 4):
        alone = network(x, time, second)
    with shared_dropout(5, 4):
        assert torch.equal(network.both(x, time, second)[0], alone)


# --------------------------------------------------------------------------------------------------------- second time


@kinds
def test_a_silenced_second_time_has_no_effect_and_learns_to_have_one(kind):
    network = build(kind)
    x, time, second = inputs(kind)
    assert not torch.allclose(network(x, time, second), network(x, time, second / 2))
    network.silence_second()
    assert torch.equal(network(x, time, second), network(x, time, second / 2))
    slope = torch.func.jvp(lambda s: network(x, time, s), (second,), (torch.ones_like(second),))[1]
    assert torch.equal(slope, torch.zeros_like(x))
    one_time = build(kind, second_time=False)
    one_time.load_state_dict({n: w for n, w in network.state_dict().items() if not n.startswith("r_embedder")})
    assert torch.equal(one_time(x, time), network(x, time, second))

    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        (network(x, time, second) - second.reshape(-1, *[1] * (x.ndim - 1))).square().mean().backward()
        last = network.r_embedder.mlp[2]
        assert last.weight.grad.abs().max() > 1e-6
        optimiser.step()
    assert network.r_embedder.mlp[0].weight.grad.abs().max() > 1e-9
    assert not torch.equal(network(x, time, second), network(x, time, second / 2))


def test_there_is_no_second_time_to_silence():
    with pytest.raises(ShortflowError, match="no second time to silence"):
        build("mlp", second_time=False).silence_second()


# -------------------------------------------------------------------------------------------------------- conditioning


@kinds
def test_a_missing_label_means_the_null_class(kind):
    network = build(kind, num_classes=3, null_class=True)
    x, time, second = inputs(kind)
    assert network.null_label == 3
    null = network(x, time, second, torch.full((4,), 3))
    assert torch.equal(network(x, time, second), null)
    network.y_embedder.embedding_table.weight.data[3] += 1
    assert not torch.allclose(network(x, time, second), null)


@kinds
def test_a_part_that_is_not_asked_for_does_not_exist(kind):
    network = build(kind, second_time=False)
    names = " ".join(network.state_dict())
    optional = ("r_embedder", "y_embedder", "g_embedder", "logvar_linear", "velocity", "pos_embed")
    assert not any(part in names for part in optional)
    assert (network.num_classes, network.null_label) == (0, None)
    assert build(kind, num_classes=3).null_label is None


@kinds
def test_log_variance_is_linear_in_the_vector_of_the_first_time(kind):
    network = build(kind, num_classes=3, log_variance=True)
    _, time, second = inputs(kind)
    weights = network.state_dict()
    expected = network.t_embedder(time) @ weights["logvar_linear.weight"][0] + weights["logvar_linear.bias"]
    torch.testing.assert_close(network.log_variance(time), expected, rtol=0, atol=1e-14)
    assert torch.equal(network.log_variance(time, second, torch.tensor([0, 1, 2, 1])), network.log_variance(time))


@kinds
def test_log_variance_stays_in_float32_under_autocast(kind):
    network = build(kind, log_variance=True).float()
    time = inputs(kind)[1].float()
    expected = network.log_variance(time)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.log_variance(time), expected)


@kinds
def test_time_derivative_survives_bfloat16_autocast(kind):
    """Measured over 24 draws of the weights: 0.3 % to 2.2 % for SiT and MLP."""
    network = build(kind)
    for weight in network.parameters():
        weight.data.mul_(0.5)  # at full size the SiT saturates, and amplifies the rounding of its weights
    x, time, second = inputs(kind)

    def slope(network, x, time, second):
        function = lambda time: network(x, time, second)  # noqa: E731
        return torch.func.jvp(function, (time,), (torch.ones_like(time),))[1]

    expected = slope(network, x, time, second)
    with torch.autocast("cpu", torch.bfloat16):
        low = slope(network.float(), x.float(), time.float(), second.float())
    assert (low.double() - expected).norm() / expected.norm() < 0.05


@kinds
def test_dropout_masks_are_a_function_of_seed_and_row(kind):
    network = build(kind, dropout=0.4)
    x, time, second = inputs(kind, rows=6)

    def full(seed):
        with shared_dropout(seed, 6):
            return network(x, time, second)

    base = full(7)
    assert torch.equal(full(7), base)
    assert not torch.allclose(full(8), base)

    rows = torch.tensor([4, 1, 2])
    with shared_dropout(7, 6, rows):
        part = network(x[rows], time[rows], second[rows])
    torch.testing.assert_close(part, base[rows], rtol=0, atol=1e-13)
    with shared_dropout(7, 6):
        value, slope = torch.func.jvp(lambda x: network(x, time, second), (x,), (x,))
    torch.testing.assert_close(value, base, rtol=0, atol=1e-12)
    with shared_dropout(7, 6, rows):
        few = torch.func.jvp(lambda x: network(x, time[rows], second[rows]), (x[rows],), (x[rows],))
    torch.testing.assert_close(few[0], base[rows], rtol=0, atol=1e-12)
    torch.testing.assert_close(few[1], slope[rows], rtol=1e-12, atol=1e-12)

    network.eval()
    assert torch.equal(full(7), full(8))


@kinds
def test_weights_in_bfloat16_take_times_in_float32(kind):
    network = build(kind).bfloat16()
    x, time, second = inputs(kind)
    output = network(x.bfloat16(), time.float(), second.float())
    exact = network.double()(x.bfloat16().double(), time.float().double(), second.float().double())
    assert output.dtype == torch.bfloat16
    assert (output.double() - exact).norm() / exact.norm() < 0.03


@kinds
def test_missing_and_unexpected_inputs_are_refused(kind):
    x, time, second = inputs(kind)
    label = torch.tensor([0, 1, 2, 1])
    with pytest.raises(ShortflowError, match="takes a second time: pass second="):
        build(kind)(x, time)
    with pytest.raises(ShortflowError, match="takes one time only: build it with second_time=True"):
        build(kind, second_time=False)(x, time, second)
    with pytest.raises(ShortflowError, match=r"unconditional.*pass label=None"):
        build(kind)(x, time, second, label)
    with pytest.raises(ShortflowError, match="3 classes and no null class: pass label="):
        build(kind, num_classes=3)(x, time, second)
    with pytest.raises(ShortflowError, match="label 3 is out of range: valid labels are 0 to 2"):
        build(kind, num_classes=3)(x, time, second, label + 1)
    with pytest.raises(ShortflowError, match="label -1 is out of range"):
        build(kind, num_classes=3, null_class=True)(x, time, second, label - 1)
    with pytest.raises(ShortflowError, match="log_variance=True"):
        build(kind).log_variance(time)
    with pytest.raises(ShortflowError, match="float32 or float64"):
        build(kind)(x, time.half(), second)
    with pytest.raises(ShortflowError, match=r"takes a guidance: pass guidance= .scale, low, high."):
        build(kind, guidance=True)(x, time, second)
    with pytest.raises(ShortflowError, match="takes no guidance: build it with guidance=True"):
        build(kind)(x, time, second, None, guidance())
    with pytest.raises(ShortflowError, match="built for points of shape"):
        build(kind)(x[..., :-1], time, second)


@kinds
def test_impossible_classes_are_refused(kind):
    with pytest.raises(ShortflowError, match="null_class=True needs classes"):
        build(kind, null_class=True)
    with pytest.raises(ShortflowError, match="got -1"):
        build(kind, num_classes=-1)


def test_the_two_times_are_told_apart():
    network = build("mlp")
    assert isinstance(network.r_embedder, TimeEmbedding)
    x, time, second = inputs("mlp")
    assert not torch.allclose(network(x, time, second), network(x, second, time))
