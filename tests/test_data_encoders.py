"""Autoencoders: what they encode, what they are known by, and what is refused, with the remedy."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from autoencoders import saved
from shortflow.data.encoders import NAMES, load_autoencoder, register_autoencoder
from shortflow.errors import DataError

WEIGHTS = "diffusion_pytorch_model.safetensors"
IMAGES = np.random.default_rng(0).integers(256, size=(5, 3, 16, 16), dtype=np.uint8)
diffusers_only = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="needs diffusers")


# ------------------------------------------------------------------------------------------------------------- encoding


def test_moments_and_images_are_those_of_the_module(tmp_path: Path) -> None:
    found = load_autoencoder(str(saved(tmp_path)))
    assert (found.channels, found.factor, found.gaussian, found.name) == ((3, 4), 4, True, str(tmp_path))
    mean, std = found.encode(IMAGES)
    weights = load_file(tmp_path / WEIGHTS)
    x = torch.from_numpy(IMAGES).float() / 127.5 - 1
    moments = torch.nn.functional.conv2d(x, weights["encoder.weight"], weights["encoder.bias"], stride=4)
    torch.testing.assert_close(mean, moments[:, :4])
    torch.testing.assert_close(std, torch.exp(0.5 * moments[:, 4:] - 2))
    back = torch.nn.functional.conv_transpose2d(mean, weights["decoder.weight"], weights["decoder.bias"], stride=4)
    pixels = ((back + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    np.testing.assert_array_equal(found.decode(mean.numpy(), batch=2), pixels)
    assert not any(weight.requires_grad for weight in found.module.parameters())


def test_an_autoencoder_without_spread_gives_the_mean_alone(tmp_path: Path) -> None:
    found = load_autoencoder(str(saved(tmp_path, gaussian=False, latent_channels=6)))
    assert (found.gaussian, found.channels, len(found.encode(IMAGES))) == (False, (3, 6), 1)


@pytest.mark.parametrize(
    ("config", "scale", "shift"),
    [
        ({}, [0.5] * 4, [0.0] * 4),
        ({"scaling_factor": None}, [1.0] * 4, [0.0] * 4),
        ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, [0.3611] * 4, [0.1159] * 4),
        (
            {"latents_mean": [1, 2, 3, 4], "latents_std": [1, 2, 4, 8]},  # as diffusers uses them: (z − m)·factor/s
            [0.5, 0.25, 0.125, 0.0625],
            [1.0, 2.0, 3.0, 4.0],
        ),
    ],
)
def test_scale_and_shift_are_those_of_the_config(
    tmp_path: Path, config: dict[str, Any], scale: list[float], shift: list[float]
) -> None:
    found = load_autoencoder(str(saved(tmp_path, **config)))
    spec = found.spec(64)
    assert (list(spec.scale), list(spec.shift), spec.pixels) == (scale, shift, (3, 64, 64))
    given = found.spec(64, scale=[0.18215], shift=[1.0, 2.0, 3.0, 4.0])
    assert (given.scale, given.shift) == ((0.18215,) * 4, (1.0, 2.0, 3.0, 4.0))
    with pytest.raises(DataError, match="expected one number or 4, one for each channel, got 3"):
        found.spec(64, scale=[1.0, 2.0, 3.0])


def test_images_must_have_whole_latents(tmp_path: Path) -> None:
    found = load_autoencoder(str(saved(tmp_path)))
    found.check(16)
    with pytest.raises(
        DataError, match="one latent of 4×4 pixels, which do not divide images of side 30; take 28 or 32"
    ):
        found.check(30)


# ------------------------------------------------------------------------------------------------------------- identity


def test_identity_is_that_of_weights_and_config_and_not_of_the_copy(tmp_path: Path) -> None:
    first = load_autoencoder(str(saved(tmp_path / "a"))).sha256
    copy = tmp_path / "b"
    shutil.copytree(tmp_path / "a", copy)
    config = json.loads((copy / "config.json").read_text())
    other_copy = dict(reversed(config.items())) | {"_name_or_path": "elsewhere", "shift_factor": None}
    (copy / "config.json").write_text(json.dumps(other_copy, indent=2))
    weights = load_file(copy / WEIGHTS)
    save_file(weights, copy / WEIGHTS, {"format": "pt"})  # another header
    half = {name: value.half() for name, value in weights.items()}
    save_file(half, copy / "diffusion_pytorch_model.fp16.safetensors")  # beside it, and not read
    assert load_autoencoder(str(copy)).sha256 == first

    parts = tmp_path / "parts"
    parts.mkdir()
    shutil.copy(copy / "config.json", parts)
    for number, names in ((1, ["encoder.weight", "decoder.bias"]), (2, ["encoder.bias", "decoder.weight"])):
        save_file(
            {name: weights[name] for name in names},
            parts / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors",
        )
    assert load_autoencoder(str(parts)).sha256 == first

    seen = {first, load_autoencoder(str(saved(tmp_path / "seed", seed=1))).sha256}
    seen.add(load_autoencoder(str(saved(tmp_path / "config", scaling_factor=0.4))).sha256)
    weights["encoder.bias"][0] += 1e-6
    save_file(weights, copy / WEIGHTS)
    seen.add(load_autoencoder(str(copy)).sha256)
    save_file(half, copy / WEIGHTS)
    seen.add(load_autoencoder(str(copy)).sha256)
    assert len(seen) == 5


# -------------------------------------------------------------------------------------------------------------- refused


def test_folders_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    folder = saved(tmp_path / "vae")
    (tmp_path / "empty").mkdir()
    cases = {
        str(tmp_path / "nowhere"): "no autoencoder at .*nowhere.*: expected a folder with config.json",
        "nonsense": "one of sd-vae-ft-ema, sd-vae-ft-mse, or OWNER/REPOSITORY",
        str(tmp_path / "empty"): "no config.json; give the folder of an autoencoder",
    }
    for name, message in cases.items():
        with pytest.raises(DataError, match=message):
            load_autoencoder(name)
    shutil.move(folder / WEIGHTS, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(DataError, match=r"\.bin, \.ckpt\) can execute code .* are refused"):
        load_autoencoder(str(folder))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "config.json cannot be read"),
        ("[" * 100_000, "config.json cannot be read"),
        ("[]", "names no class"),
        ('{"in_channels": 3}', "names no class"),
        (" " * (2**20 + 1), "1048577 bytes"),
    ],
)
def test_configs_that_are_none_are_refused(tmp_path: Path, content: str, message: str) -> None:
    folder = saved(tmp_path)
    (folder / "config.json").write_text(content)
    with pytest.raises(DataError, match=message):
        load_autoencoder(str(folder))


def test_damaged_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-10])
    with pytest.raises(DataError, match="weights are damaged"):
        load_autoencoder(str(folder))
    (folder / WEIGHTS).write_bytes((2**60).to_bytes(8, "little") + whole[8:])
    with pytest.raises(DataError, match="weights are damaged"):
        load_autoencoder(str(folder))
    save_file({"encoder.weight": torch.zeros(2)}, folder / WEIGHTS)
    with pytest.raises(DataError, match="SmallAutoencoder cannot be made of its config and weights"):
        load_autoencoder(str(folder))


def test_what_does_not_encode_and_decode_images_is_refused(tmp_path: Path) -> None:
    @register_autoencoder
    class Video(torch.nn.Module):
        def __init__(self, **_: Any) -> None:
            super().__init__()
            self.conv = torch.nn.Conv3d(3, 4, 2)

        def encode(self, x: torch.Tensor) -> Any:
            return self.conv(x)

        def decode(self, z: torch.Tensor) -> Any:
            return z

    folder = saved(tmp_path, _class_name="Video")
    save_file({"conv.weight": torch.zeros(4, 3, 2, 2, 2), "conv.bias": torch.zeros(4)}, folder / WEIGHTS)
    with pytest.raises(DataError, match=r"does not encode and decode images of 3 channels .* videos, sounds"):
        load_autoencoder(str(folder))


def test_a_class_of_diffusers_says_so_where_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, _class_name="AutoencoderKL")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "diffusers" else find(name, *rest)
    )
    with pytest.raises(DataError, match=r"pip install 'shortflow\[latents\]'"):
        load_autoencoder(str(folder))


# ------------------------------------------------------------------------------------------------------------------ hub


def test_names_are_looked_for_in_the_cache_before_the_hub_is_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, asked, said = saved(tmp_path / "vae"), [], []

    def snapshot(repo_id: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        asked.append((repo_id, local_files_only))
        if local_files_only and not cached:
            raise FileNotFoundError("not in the cache")
        return str(there.parent if "vae/config.json" in allow_patterns else there)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    cached = True
    assert load_autoencoder("sd-vae-ft-ema", say=said.append).name == "sd-vae-ft-ema"
    assert (asked, said) == ([(NAMES["sd-vae-ft-ema"], True)], [])
    cached = False
    load_autoencoder("owner/repository/vae", say=said.append)
    assert asked[1:] == [("owner/repository", True), ("owner/repository", False)]
    assert said == ["fetching the autoencoder owner/repository/vae from the Hugging Face hub"]
    with pytest.raises(DataError, match="nothing is fetched unasked: fetch it where there is a network"):
        load_autoencoder("sd-vae-ft-mse", download=False)
    assert asked[-1] == (NAMES["sd-vae-ft-mse"], True)


def test_without_a_network_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(**_: Any) -> str:
        raise ConnectionError("no route to host\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(DataError) as caught:
        load_autoencoder("sd-vae-ft-ema")
    assert str(caught.value) == (
        "there is no folder sd-vae-ft-ema, and the autoencoder stabilityai/sd-vae-ft-ema is not in the cache of the "
        "hub on this disk, and the hub did not give it (no route to host); fetch it where there is a network (hf "
        "download stabilityai/sd-vae-ft-ema), and give the folder that it is in"
    )


# ------------------------------------------------------------------------------------------------------------ diffusers


def made(kind: str, folder: Path) -> Any:
    """A tiny autoencoder of a class of diffusers with random weights, saved."""
    import diffusers

    torch.manual_seed(0)
    sides = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    plain = {"encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock"}
    no_attention = {"encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ())}
    settings: dict[str, Any] = {
        "AutoencoderKL": sides | blocks,
        "AsymmetricAutoencoderKL": blocks
        | {"down_block_out_channels": (8, 16), "up_block_out_channels": (8, 16), "norm_num_groups": 4},
        "AutoencoderDC": plain
        | no_attention
        | {
            "latent_channels": 8,
            "encoder_block_out_channels": (8, 16),
            "decoder_block_out_channels": (8, 16),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "scaling_factor": 0.41407,
        },
        "AutoencoderTiny": {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
        | {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)},
    }[kind]
    module = getattr(diffusers, kind)(**settings).eval()
    module.save_pretrained(folder)
    return module


@diffusers_only
@pytest.mark.parametrize("kind", ["AutoencoderKL", "AsymmetricAutoencoderKL", "AutoencoderDC", "AutoencoderTiny"])
def test_the_classes_of_diffusers_are_opened_as_they_were_saved(kind: str, tmp_path: Path) -> None:
    module = made(kind, tmp_path)
    found = load_autoencoder(str(tmp_path))
    x = torch.from_numpy(IMAGES).float() / 127.5 - 1
    with torch.no_grad():
        answer = module.encode(x)
        mean, *std = found.encode(IMAGES)
        back = ((module.decode(mean).sample + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    if "KL" in kind:
        torch.testing.assert_close(mean, answer.latent_dist.mean, rtol=0, atol=0)
        torch.testing.assert_close(std[0], answer.latent_dist.std, rtol=0, atol=0)
    else:
        torch.testing.assert_close(mean, getattr(answer, "latent", getattr(answer, "latents", None)), rtol=0, atol=0)
    assert found.gaussian == ("KL" in kind)
    np.testing.assert_array_equal(found.decode(mean.numpy()), back.numpy())
    scale = {
        "AutoencoderKL": 0.18215,
        "AsymmetricAutoencoderKL": 0.18215,
        "AutoencoderDC": 0.41407,
        "AutoencoderTiny": 1.0,
    }
    assert found.spec(16).scale == (scale[kind],) * found.channels[1]


@diffusers_only
def test_names_of_other_things_in_diffusers_are_refused(tmp_path: Path) -> None:
    for name in ("UNet2DModel", "DDPMPipeline", "__version__", "utils", "os.system"):
        with pytest.raises(DataError, match="is no autoencoder of diffusers"):
            load_autoencoder(str(saved(tmp_path, _class_name=name)))
