"""Feature networks as files: the same features, their choices, and nothing that executes."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from extractors import pictures
from shortflow.errors import MetricError
from shortflow.evaluate import load_program, save_program
from shortflow.evaluate.program import IMAGENET_MEAN, IMAGENET_STD


def network(features: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1),
        nn.BatchNorm2d(4),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, features),
    ).eval()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "f.pt2"
    save_program(path, network(), name="mine", size=14)
    return path


def test_features_are_those_of_the_network(program: Path) -> None:
    extractor, images = load_program(program), pictures(70, side=20)
    assert (extractor.name, extractor.dimension, extractor.size) == ("mine", 5, 14)
    assert (extractor.resize, extractor.published) == ("bicubic-antialias", False)
    x = torch.nn.functional.interpolate(
        torch.from_numpy(images).float(), (14, 14), mode="bicubic", antialias=True, align_corners=False
    )
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        wanted = network()((x - mean) / std)
    torch.testing.assert_close(extractor.run(images).features, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(extractor.run(images[:1]).features, wanted[:1], rtol=1e-5, atol=1e-5)
    assert extractor.run(images).logits is None


def test_the_normalisation_is_that_of_imagenet_in_levels() -> None:
    np.testing.assert_allclose(IMAGENET_MEAN, (123.675, 116.28, 103.53))
    np.testing.assert_allclose(IMAGENET_STD, (58.395, 57.12, 57.375))


def test_other_weights_are_another_extractor(program: Path, tmp_path: Path) -> None:
    other = network()
    nn.init.zeros_(other[0].bias)  # type: ignore[arg-type, union-attr]
    save_program(tmp_path / "g.pt2", other, name="mine", size=14)
    assert load_program(tmp_path / "g.pt2").weights != load_program(program).weights
    assert load_program(program).record() == load_program(program).record()


class Maps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_impossible_programs_are_refused(tmp_path: Path) -> None:
    def refused(message: str, name: str = "f.pt2", module: nn.Module | None = None, **settings: Any) -> None:
        with pytest.raises(MetricError, match=message):
            save_program(tmp_path / name, module or network(), **{"name": "mine", "size": 14, **settings})
        assert not list(tmp_path.iterdir())

    refused("has the ending .pt2", name="f.pt")
    refused(r"features must be an array \(n, d\), the network gave \(2, 3, 14, 14\)", module=Maps())
    refused("no resize called 'best'", resize="best")
    refused("std above 0", std=(0.0, 1.0, 1.0))
    refused("mean and std are one number or 3", mean=(1.0, 2.0))


def rewritten(program: Path, out: Path, change: Any) -> Path:
    """The archive with every entry through `change` (name, content) → (name, content)."""
    with zipfile.ZipFile(program) as archive, zipfile.ZipFile(out, "w") as new:
        for entry in archive.namelist():
            new.writestr(*change(entry, archive.read(entry)))
    return out


def test_what_may_execute_is_refused_before_it_is_loaded(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("was loaded")

    def pickled(name: str, content: bytes) -> tuple[str, bytes]:
        if name.endswith("_weights_config.json"):
            config = json.loads(content)
            next(iter(config["config"].values()))["use_pickle"] = True
            content = json.dumps(config).encode()
        return name, content

    def object_inputs(name: str, content: bytes) -> tuple[str, bytes]:
        return (name, b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00trueR.") if name.endswith(".pt") else (name, content)

    def extra(entry: str) -> Path:
        path = rewritten(program, tmp_path / "x.pt2", lambda name, content: (name, content))
        with zipfile.ZipFile(path, "a") as archive:
            root = archive.namelist()[0].split("/")[0]
            archive.writestr(f"{root}/{entry}", b"x")
        return path

    files = [
        rewritten(program, tmp_path / "a.pt2", pickled),
        rewritten(program, tmp_path / "b.pt2", object_inputs),
        extra("data/constants/custom_obj_0"),
    ]
    monkeypatch.setattr(torch.export, "load", loaded)
    for file in files:
        with pytest.raises(MetricError, match="may execute code when it is read"):
            load_program(file)
    for entry in ("data/constants/opaque_obj_0", "data/aotinductor/model/w.so"):
        with pytest.raises(MetricError, match="may execute code when it is read"):
            load_program(extra(entry))


def test_damaged_and_foreign_files(program: Path, tmp_path: Path) -> None:
    with pytest.raises(MetricError, match="there is no file"):
        load_program(tmp_path / "none.pt2")
    (tmp_path / "f.pt2").write_bytes(program.read_bytes()[:-100])
    with pytest.raises(MetricError, match="is no program of features"):
        load_program(tmp_path / "f.pt2")
    torch.export.save(torch.export.export(network(), (torch.zeros(2, 3, 14, 14),)), tmp_path / "plain.pt2")
    with pytest.raises(MetricError, match=r"is no program of features.*save_program"):
        load_program(tmp_path / "plain.pt2")
