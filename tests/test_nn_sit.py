"""SiT against a second, plain statement of its formulas, published sizes, and the geometry of patches."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shortflow.dropout import shared_dropout
from shortflow.errors import ShortflowError
from shortflow.nn import SIZES, SiT, parameter_count
from shortflow.nn.attention import Attention
from shortflow.nn.sit import FeedForward, unpatchify

SMALL = {"patch": 2, "width": 16, "depth": 1, "heads": 2}


def randomized(**options):
    torch.manual_seed(0)
    network = SiT(**{"shape": (3, 4, 6), **SMALL, **options})
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return network.double()


def patches(x, p):
    """Tokens by slicing: for each patch, row by row, its pixels in the order (row, column, channel)."""
    c, h, w = x.shape[1:]
    tokens = []
    for i in range(0, h, p):
        for j in range(0, w, p):
            tokens.append(
                torch.stack([x[:, k, i + r, j + s] for r in range(p) for s in range(p) for k in range(c)], dim=1)
            )
    return torch.stack(tokens, dim=1)


@given(c=st.integers(1, 3), rows=st.integers(1, 4), columns=st.integers(1, 4), p=st.integers(1, 3))
def test_unpatchify_inverts_cutting_into_patches(c, rows, columns, p):
    x = torch.randn(2, c, rows * p, columns * p)
    assert torch.equal(unpatchify(patches(x, p), (c, rows * p, columns * p), p), x)


def restated(w, x, time, second, label, position, p, heads, modulation_norm=False):
    """A SiT of one block from its state dict, with nothing but elementary operations."""

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def silu(x):
        return x / (1 + torch.exp(-x))

    def gelu(x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def norm(x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-6)

    def normed(way):
        return way / torch.sqrt((way**2).sum(-1, keepdim=True) / way.shape[-1] + 1e-6) if modulation_norm else way

    def embed(name, time):
        angle = time[:, None] * torch.tensor([10_000 ** (-j / 128) for j in range(128)], dtype=torch.float64)
        return linear(f"{name}.mlp.2", silu(linear(f"{name}.mlp.0", torch.cat([angle.cos(), angle.sin()], 1))))

    def attend(x):
        d = x.shape[-1] // heads
        qkv, mixed = linear("blocks.0.attn.qkv", x), []
        for k in range(heads):
            query, key, value = (qkv[..., part * heads * d + k * d :][..., :d] for part in range(3))
            if "blocks.0.attn.q_norm.weight" in w:
                query = query / (query.pow(2).mean(-1, True) + 1e-6).sqrt() * w["blocks.0.attn.q_norm.weight"]
                key = key / (key.pow(2).mean(-1, True) + 1e-6).sqrt() * w["blocks.0.attn.k_norm.weight"]
            weights = torch.exp(query @ key.mT / math.sqrt(d))
            mixed.append(weights / weights.sum(-1, keepdim=True) @ value)
        return linear("blocks.0.attn.proj", torch.cat(mixed, -1))

    c = embed("t_embedder", time) + embed("r_embedder", second) + w["y_embedder.embedding_table.weight"][label]
    # a convolution's weight is laid out (channel, row, column)
    kernel = w["x_embedder.proj.weight"].permute(2, 3, 1, 0).reshape(-1, position.shape[-1])
    h = patches(x, p) @ kernel + w["x_embedder.proj.bias"] + position
    ways = linear("blocks.0.adaLN_modulation.1", silu(c))[:, None].chunk(6, -1)
    b_1, s_1, g_1, b_2, s_2, g_2 = (normed(way) for way in ways)
    h = h + g_1 * attend(norm(h) * (1 + s_1) + b_1)
    h = h + g_2 * linear("blocks.0.mlp.fc2", gelu(linear("blocks.0.mlp.fc1", norm(h) * (1 + s_2) + b_2)))
    b, s = (normed(way) for way in linear("final_layer.adaLN_modulation.1", silu(c))[:, None].chunk(2, -1))
    return linear("final_layer.linear", norm(h) * (1 + s) + b)


@pytest.mark.parametrize("modulation_norm", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_forward_is_its_formula(qk_norm, modulation_norm):
    options = {"qk_norm": qk_norm, "modulation_norm": modulation_norm, "mlp_ratio": 2.5}
    network = randomized(num_classes=5, null_class=True, **options)
    x, label = torch.randn(4, 3, 4, 6, dtype=torch.float64), torch.tensor([0, 5, 2, 4])
    time, second = torch.rand(2, 4, dtype=torch.float64)
    tokens = restated(network.state_dict(), x, time, second, label, network.pos_embed, 2, 2, modulation_norm)
    output = network(x, time, second, label)
    assert output.std() > 0.5
    torch.testing.assert_close(patches(output, 2), tokens, rtol=0, atol=1e-12)


def test_normalised_modulation_adds_no_weights_and_knows_no_scale():
    """The weights have the same names and the same start; modulations ten times as large change nothing."""
    options = {"velocity_head": True, "head_depth": 1, "num_classes": 5}
    plain, normed = randomized(**options), randomized(**options, modulation_norm=True)
    assert list(plain.state_dict()) == list(normed.state_dict())
    fresh = [SiT(shape=(3, 4, 6), **SMALL, **options, modulation_norm=norm).state_dict() for norm in (False, True)]
    assert all(fresh[1][name].abs().max() == 0 for name in fresh[0] if "adaLN_modulation" in name)
    normed.load_state_dict(plain.state_dict())
    given = torch.randn(4, 3, 4, 6).double(), torch.rand(4).double(), torch.rand(4).double(), torch.arange(4)
    before = [network.both(*given) for network in (plain, normed)]
    assert (before[0][0] - before[1][0]).abs().max() > 0.1
    with torch.no_grad():
        for network in (plain, normed):
            for name, weight in network.named_parameters():
                if "adaLN_modulation" in name:
                    weight.mul_(10)
    after = [network.both(*given) for network in (plain, normed)]
    for value, other in zip(before[1], after[1], strict=True):
        assert ((value - other).abs().max() / value.abs().max()) < 1e-4  # but for ε = 1e-6
    assert (before[0][0] - after[0][0]).abs().max() > 1


def test_without_modulation_norm_outputs_are_what_they_were():
    """The mean of |F| of a network with the weights of this seed, from before there was the option."""
    network = randomized(num_classes=5, null_class=True, qk_norm=True)
    generator = torch.Generator().manual_seed(1)
    x, time = torch.randn(4, 3, 4, 6, generator=generator).double(), torch.rand(4, generator=generator).double()
    assert network(x, time, time / 2, torch.arange(4)).abs().mean().item() == pytest.approx(1.9916848501769, rel=1e-12)


def test_without_positions_shifting_by_patches_shifts_the_output():
    network = randomized(second_time=False)
    x, time = torch.randn(2, 3, 4, 6, dtype=torch.float64), torch.rand(2, dtype=torch.float64)

    def gap():
        return (network(x.roll((2, 4), (2, 3)), time) - network(x, time).roll((2, 4), (2, 3))).abs().max()

    assert gap() > 0.1
    network.pos_embed.zero_()
    assert gap() < 1e-12


@pytest.mark.parametrize(
    "layer",
    [FeedForward(8, 16, dropout=0.75), Attention(width=8, heads=2, dropout=0.75)],
    ids=lambda layer: type(layer).__name__,
)
def test_dropout_acts_on_what_a_branch_adds(layer):
    """Each entry is either dropped or four times what it is without dropout."""
    x = torch.randn(2, 6, 8)
    with shared_dropout(0, 2):
        dropped = layer.train()(x)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 4 * layer.eval()(x)[kept], rtol=0, atol=1e-6)
    assert 12 <= int(kept.sum()) <= 36  # 24 ± 4.2 of 96


def count(shape, p, d, depth, classes, times, log_variance=False):
    """Weights of a SiT in closed form: 18 d² in a block, of which 6 d² in its modulation."""
    pixels = shape[0] * p * p
    embeddings = (pixels * d + d) + times * (256 * d + d + d * d + d) + classes * d
    block = (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + (6 * d * d + 6 * d)
    last = (2 * d * d + 2 * d) + (d * pixels + pixels)
    return embeddings + depth * block + last + (d + 1 if log_variance else 0)


@pytest.mark.parametrize(("name", "millions"), [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
@pytest.mark.parametrize("times", [1, 2])
def test_published_sizes(name, millions, times):
    """DiT, table 4 and figure 2 (millions of weights with patches of 2 on 4 × 32 × 32 latents, one time)."""
    depth, width, heads = SIZES[name]
    with torch.device("meta"):
        network = SiT(
            shape=(4, 32, 32), patch=2, width=width, depth=depth, heads=heads,
            num_classes=1000, null_class=True, second_time=times == 2, log_variance=times == 2,
        )  # fmt: skip
    total = parameter_count(network)
    assert total == count((4, 32, 32), 2, width, depth, 1001, times, log_variance=times == 2)
    if times == 1:
        assert abs(total / 1e6 - millions) < 0.6


def test_the_largest_is_the_published_one_to_the_last_weight():
    """DiT-XL/2 reports 675 129 632, with the fixed positions and a second output (variance) for each pixel."""
    positions, variance = 256 * 1152, 16 * 1152 + 16
    assert count((4, 32, 32), 2, 1152, 28, 1001, 1) + positions + variance == 675_129_632


def test_names_of_the_weights_are_the_published_ones():
    network = SiT(shape=(4, 8, 8), **SMALL, num_classes=3, log_variance=True)
    layers = [
        "t_embedder.mlp.0", "t_embedder.mlp.2", "r_embedder.mlp.0", "r_embedder.mlp.2", "logvar_linear",
        "x_embedder.proj", "blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2",
        "blocks.0.adaLN_modulation.1", "final_layer.linear", "final_layer.adaLN_modulation.1",
    ]  # fmt: skip
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert set(network.state_dict()) == expected | {"y_embedder.embedding_table.weight"}
    assert "pos_embed" in dict(network.named_buffers())


def test_initial_weights():
    torch.manual_seed(0)
    network = SiT(shape=(4, 8, 8), patch=2, width=64, depth=1, heads=4, num_classes=40, log_variance=True)
    weights = network.state_dict()
    zero = ("adaLN_modulation", "final_layer.linear", "logvar_linear")
    for name, weight in weights.items():
        if name.endswith("bias") or any(part in name for part in zero):
            assert torch.equal(weight, torch.zeros_like(weight)), name
        elif "_embedder.mlp" in name or "embedding_table" in name:
            assert abs(weight.std() / 0.02 - 1) < 0.05, name
        else:  # Xavier: uniform within ±√(6/(inputs + outputs)), the patches as a linear layer
            outputs, inputs = weight.flatten(1).shape
            bound = math.sqrt(6 / (inputs + outputs))
            assert weight.abs().max() <= bound, name
            assert abs(weight.std() / (bound / math.sqrt(3)) - 1) < 0.05, name


@given(h=st.integers(1, 12), w=st.integers(1, 12), patch=st.integers(1, 6))
def test_a_patch_fits_if_and_only_if_it_divides_both_sides(h, w, patch):
    options = {**SMALL, "width": 4, "patch": patch}
    if h % patch == 0 and w % patch == 0:
        assert len(SiT(shape=(1, h, w), **options).pos_embed) == (h // patch) * (w // patch)
    else:
        valid = ", ".join(str(p) for p in range(1, 13) if h % p == 0 and w % p == 0)
        with pytest.raises(
            ShortflowError, match=rf"patch={patch} does not divide.*{h}×{w}.*valid patches are {valid}$"
        ):
            SiT(shape=(1, h, w), **options)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"heads": 3}, "heads must divide width, got heads=3, width=16"),
        ({"width": 18}, "multiple of 4.*got 18"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"patch": 0}, "patch must be at least 1, got 0"),
        ({"heads": 0}, "heads must be at least 1, got 0"),
        ({"mlp_ratio": -1.0}, "mlp_ratio must be positive, got -1.0"),
        ({"mlp_ratio": math.nan}, "mlp_ratio must be positive, got nan"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"shape": (0, 4, 4)}, r"all at least 1, got \(0, 4, 4\)"),
        ({"depth": 0, "heads": 3}, "depth must be .*; heads must"),
    ],
)
def test_impossible_settings_are_named(setting, message):
    with pytest.raises(ShortflowError, match=message):
        SiT(**{"shape": (3, 4, 6), **SMALL, **setting})
