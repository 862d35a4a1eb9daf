"""Configs: what they build, and every bad setting named when the config is made."""

import dataclasses

import pytest
import torch

from shortflow.errors import ConfigError, ShortflowError
from shortflow.nn import MLP, SIZES, MLPConfig, NetworkConfig, SiT, SiTConfig, UNet, UNetConfig, parameter_count
from shortflow.nn.unet import SIZES as UNET_SIZES


def test_sizes():
    assert dict(SIZES) == {
        "tiny": (2, 64, 4), "digits": (4, 96, 4), "mnist": (6, 192, 6),
        "S": (12, 384, 6), "B": (12, 768, 12), "M": (16, 1024, 16), "L": (24, 1024, 16), "XL": (28, 1152, 16),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(SIZES))
def test_a_size_builds_its_dimensions(name):
    with torch.device("meta"):
        network = SiTConfig(size=name, patch=4, mlp_ratio=2.0).build((3, 8, 12))
    assert isinstance(network, SiT)
    depth, width, heads = SIZES[name]
    assert (len(network.blocks), network.blocks[0].attn.heads) == (depth, heads)
    assert network.x_embedder.proj.weight.shape == (width, 3, 4, 4)
    assert network.blocks[0].mlp.fc1.weight.shape == (2 * width, width)
    assert network.pos_embed.shape == (6, width)


def test_given_dimensions_replace_those_of_the_size():
    assert SiTConfig(size="S", depth=3).dimensions == (3, 384, 6)
    assert SiTConfig(size="S", width=48, depth=1, heads=3).dimensions == (1, 48, 3)
    assert SiTConfig().dimensions == SIZES["digits"]


def test_settings_reach_the_network():
    options = {"num_classes": 10, "null_class": True, "second_time": False, "log_variance": True}
    options |= {"guidance": True, "velocity_head": True}
    own = {"qk_norm": True, "modulation_norm": True, "dropout": 0.3, "head_depth": 1, "frequencies": 6}
    built = SiTConfig(size="tiny", patch=4, **own).build((1, 8, 8), **options)
    direct = SiT(shape=(1, 8, 8), patch=4, width=64, depth=2, heads=4, **own, **options)
    assert (len(built.blocks), len(built.velocity_blocks)) == (2, 1)
    assert str(built) == str(direct)
    assert (built.num_classes, built.null_label, built.second_time) == (10, 10, False)
    assert built.blocks[1].attn.dropout.p == built.blocks[1].mlp.dropout.p == 0.3
    assert built.t_embedder.frequencies == 6

    config = UNetConfig(size="tiny", depth=2, dropout=0.3, resample_filter=(1.0, 1.0), embedding="fourier", scale=0.5)
    built = config.build((1, 8, 8), **options)
    own = {"dropout": 0.3, "resample_filter": (1.0, 1.0), "embedding": "fourier", "scale": 0.5}
    assert isinstance(built, UNet)
    shape = {"channels": 8, "multipliers": (1, 2), "depth": 2, "attention": (1,)}
    assert str(built) == str(UNet(shape=(1, 8, 8), **shape, **own, **options))
    assert (built.t_embedder.spectrum, built.t_embedder.scale, built.t_embedder.frequencies) == ("fourier", 0.5, 8)
    assert built.encoder[0].dropout.p == 0.3

    built = MLPConfig(width=20, depth=3, dropout=0.1).build((2,), **options)
    assert isinstance(built, MLP)
    assert str(built) == str(MLP(shape=(2,), width=20, depth=3, dropout=0.1, **options))
    assert (built.num_classes, built.null_label, built.second_time) == (10, 10, False)


def test_positions_are_kept_with_the_weights_where_that_is_asked_for():
    fixed, stored = (SiTConfig(size="tiny", positions=each).build((1, 8, 8)) for each in ("fixed", "stored"))
    assert set(stored.state_dict()) - set(fixed.state_dict()) == {"pos_embed"}
    assert torch.equal(stored.pos_embed, fixed.pos_embed)
    assert parameter_count(stored) == parameter_count(fixed)  # they are not trained
    stored.load_state_dict(stored.state_dict() | {"pos_embed": torch.full((16, 64), 0.5)})
    assert bool((stored.pos_embed == 0.5).all())


def test_parameter_count_leaves_out_buffers():
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5))
    assert parameter_count(network) == 3 * 5 + 5 + 2 * 5


@pytest.mark.parametrize(
    ("size", "nearest"), [("xl", "XL"), ("digit", "digits"), ("MNIST", "mnist"), ("XL/2", "XL"), ("b", "B")]
)
def test_unknown_size_names_the_nearest(size, nearest):
    with pytest.raises(ConfigError, match=f"unknown size '{size}' .did you mean '{nearest}'.*; sizes are tiny, digits"):
        SiTConfig(size=size)


@pytest.mark.parametrize(("size", "nearest"), [("cifar", "cifar10"), ("CIFAR10", "cifar10"), ("digit", "digits")])
def test_unknown_size_of_a_unet_names_the_nearest(size, nearest):
    with pytest.raises(ConfigError, match=f"unknown size '{size}' .did you mean '{nearest}'.*; sizes are tiny, digits"):
        UNetConfig(size=size)


def test_given_dimensions_of_a_unet_replace_those_of_the_size():
    assert UNetConfig(size="cifar10").dimensions == (128, (2, 2, 2), 4, (1,), 1)
    assert UNetConfig(size="cifar10", depth=2, attention=()).dimensions == (128, (2, 2, 2), 2, (), 1)
    assert UNetConfig(size="cifar10", channels=64, multipliers=(1, 2), heads=2).dimensions == (64, (1, 2), 4, (1,), 2)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (SiTConfig(), (1, 8, 8)),
        (SiTConfig(size="S"), (3, 32, 32)),
        (MLPConfig(depth=7), (2,)),
        *((UNetConfig(size=name), (1, 32, 32)) for name in UNET_SIZES),
        (UNetConfig(size="tiny", multipliers=(1,), attention=()), (1, 8, 8)),
    ],
)
def test_a_network_has_more_tensors_than_blocks(config, shape):
    with torch.device("meta"):
        tensors = config.build(shape, second_time=False).state_dict()
    assert 1 <= config.blocks <= len(tensors)


def test_a_config_of_your_own_need_not_count_its_blocks():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(NetworkConfig):
        def build(self, shape, num_classes=0, null_class=False, second_time=True, log_variance=False, **parts):
            return torch.nn.Identity()

    assert Own().blocks == 0
    with pytest.raises(TypeError, match="abstract"):
        NetworkConfig()


def test_unknown_size_without_a_neighbour():
    with pytest.raises(ConfigError, match="unknown size 'qqqqq'; sizes are"):
        SiTConfig(size="qqqqq")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SiTConfig(heads=5), "heads=5, width=96"),
        (lambda: SiTConfig(patch=0), "patch must be at least 1, got 0"),
        (lambda: SiTConfig(dropout=1.5), "dropout must be .* got 1.5"),
        (lambda: SiTConfig(mlp_ratio=0.0), "mlp_ratio must be positive, got 0.0"),
        (lambda: SiTConfig(head_depth=5), "head_depth must be between 0 and the depth of 4, got 5"),
        (lambda: SiTConfig(head_depth=-1), "head_depth must be .* got -1"),
        (lambda: SiTConfig(frequencies=5), "frequencies must be a positive even number .* got 5"),
        (lambda: UNetConfig(channels=6, depth=0), "channels must be .* got 6; depth must be at least 1, got 0"),
        (lambda: UNetConfig(attention=(3,)), "attention names the levels 0 to 1 .* got 3"),
        (lambda: SiTConfig(depth=0, dropout=-1.0), "depth must be at least 1, got 0; dropout must be"),
        (lambda: MLPConfig(width=0, depth=0), "width must be at least 1, got 0; depth must be at least 1, got 0"),
    ],
)
def test_every_bad_setting_is_named_at_construction(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_shape_that_does_not_fit_is_refused():
    with pytest.raises(ShortflowError, match=r"got \(2,\); use an MLP"):
        SiTConfig().build((2,))
    with pytest.raises(ShortflowError, match="valid patches are 1, 7"):
        SiTConfig().build((1, 7, 7))
    with pytest.raises(ShortflowError, match=r"got \(2,\); use an MLP"):
        UNetConfig().build((2,))
    with pytest.raises(ShortflowError, match=r"multiples of 4, got 30×28; .* at most 2 levels"):
        UNetConfig(size="mnist").build((1, 30, 28))
    with pytest.raises(ShortflowError, match=r"got \(1, 8, 8\); use a SiT"):
        MLPConfig().build((1, 8, 8))


def test_configs_are_values():
    config = SiTConfig(size="tiny")
    assert config == SiTConfig(size="tiny")
    assert dataclasses.replace(config, patch=4).patch == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.patch = 4
