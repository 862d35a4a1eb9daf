"""Networks in run files: the U-Net, and one of the user's own, from the settings to a loaded model."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from shortflow import hub, runs
from shortflow.config import dump, load_run, parts, register
from shortflow.errors import CheckpointError, ConfigError
from shortflow.nn import NetworkConfig, UNetConfig


class TwoLayers(nn.Module):
    """A network that knows nothing of this library: times and class enter as numbers beside the point."""

    def __init__(self, d: int, width: int, num_classes: int, null_class: bool, second: bool) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.null_label = num_classes if null_class else None
        self.layers = nn.Sequential(nn.Linear(d + 1 + second, width), nn.Tanh(), nn.Linear(width, d))
        self.table = nn.Embedding(num_classes + null_class, d) if num_classes else None

    def forward(self, x: Tensor, time: Tensor, second: Tensor | None = None, label: Tensor | None = None) -> Tensor:
        if self.table is not None:
            label = torch.full(time.shape, self.num_classes, device=x.device) if label is None else label
            x = x + self.table(label)
        return self.layers(torch.cat([x, *(t[:, None] for t in (time, second) if t is not None)], dim=1))


@dataclass(frozen=True, kw_only=True)
class TwoLayersConfig(NetworkConfig):
    width: int = 8

    def build(
        self,
        shape: tuple[int, ...],
        num_classes: int = 0,
        null_class: bool = False,
        second_time: bool = True,
        log_variance: bool = False,
        guidance: bool = False,
        velocity_head: bool = False,
    ) -> nn.Module:
        return TwoLayers(shape[0], self.width, num_classes, null_class, second_time)


@pytest.fixture
def registered() -> Iterator[None]:
    register(TwoLayersConfig)
    yield
    parts._KINDS.pop("TwoLayersConfig", None)


def trained(directory: Path, recipe: str, data: str, *settings: str) -> hub.Model:
    """The model after two steps, loaded from its file."""
    run, dataset = runs.configure(
        recipe, data, settings=[*settings, "train.batch=8", "train.images=16", "train.group=1", "train.preview_every=0"]
    )
    steps = list(runs.training(run, dataset, directory))
    assert len(steps) == 2
    model = hub.load(directory)
    assert (model.run, load_run(directory / "run.yaml")) == (run, run)
    return model


@pytest.mark.usefixtures("registered")
def test_a_network_of_your_own_from_run_file_to_loaded_model(tmp_path: Path) -> None:
    model = trained(tmp_path / "run", "meanflow", "mixture", "network=TwoLayersConfig", "network.width=5")
    assert model.run.network == TwoLayersConfig(width=5)
    assert isinstance(model.flow.network, TwoLayers)
    points, _ = runs.generate(model.flow, model.spec, 6, seed=1)
    again, _ = runs.generate(hub.load(tmp_path / "run").flow, model.spec, 6, seed=1)
    assert np.array_equal(points, again)

    dump(model.run, tmp_path / "my.yaml")
    assert runs.configure(str(tmp_path / "my.yaml"), settings=["network.width=6"])[0].network == TwoLayersConfig(
        width=6
    )
    with pytest.raises(ConfigError, match="no such setting of TwoLayersConfig, did you mean 'width'"):
        runs.configure("meanflow", "mixture", settings=["network={kind: TwoLayersConfig, wdth: 5}"])


@pytest.mark.usefixtures("registered")
def test_a_network_that_is_not_registered_is_asked_for(tmp_path: Path) -> None:
    trained(tmp_path, "flow-matching", "mixture", "network=TwoLayersConfig")
    del parts._KINDS["TwoLayersConfig"]
    with pytest.raises(CheckpointError, match=r"no such kind 'TwoLayersConfig'.*has to be registered first"):
        hub.load(tmp_path)


def test_a_unet_from_run_file_to_loaded_model(tmp_path: Path) -> None:
    settings = ("network=UNetConfig", "network.size=tiny", "network.multipliers=[1, 1, 2]", "network.dropout=0.1")
    model = trained(tmp_path, "meanflow", "digits", *settings, "network.resample_filter=[1, 3, 3, 1]")
    expected = UNetConfig(size="tiny", multipliers=(1, 1, 2), dropout=0.1, resample_filter=(1.0, 3.0, 3.0, 1.0))
    assert model.run.network == expected
    pixels, _ = runs.generate(model.flow, model.spec, 3)
    assert pixels.shape == (3, 1, 8, 8)


def test_a_unet_that_does_not_fit_is_refused_before_training() -> None:
    with pytest.raises(ConfigError, match=r"network: .*multiples of 16, got 8×8.*\(data: digits"):
        runs.configure("esc", "digits", settings=["network=UNetConfig", "network.multipliers=[1, 1, 1, 1, 1]"])
    with pytest.raises(ConfigError, match=r"network: .*use an MLP for points"):
        runs.configure("esc", "mixture", settings=["network=UNetConfig"])
    with pytest.raises(ConfigError, match=r"unknown size 'cifra10' .did you mean 'cifar10'"):
        runs.configure("esc", "digits", settings=["network={kind: UNetConfig, size: cifra10}"])


def test_a_description_of_many_blocks_is_refused_without_building_them(tmp_path: Path) -> None:
    model = trained(tmp_path, "flow-matching", "digits", "network={kind: UNetConfig, size: tiny}")
    tensors = model.flow.state_dict()
    for lie in (UNetConfig(size="tiny", depth=10**9), UNetConfig(size="tiny", channels=4 * 10**6)):
        run = replace(model.run, network=lie)
        with pytest.raises(CheckpointError, match=r"has \d+ blocks, the file has|has the shape"):
            hub.models._check_weights(run, model.spec, tensors)
