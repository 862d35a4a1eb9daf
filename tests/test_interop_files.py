"""Files of weights: every published form opens, nothing in them is executed, and what is wrong is said key by key."""

import argparse
import pathlib
import shlex
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import published
from published import Sizes
from shortflow.errors import CheckpointError, ConfigError, ShortflowError
from shortflow.hub import interop

TINY = Sizes(width=64, depth=2, heads=1, patch=2, channels=4, side=4, rows=4, hidden=64, frequencies=16)


@pytest.fixture
def model() -> dict[str, Tensor]:
    return published.weights(TINY, second=True, log_variance=True, seed=1)


@pytest.fixture
def ema() -> dict[str, Tensor]:
    return published.weights(TINY, second=True, log_variance=True, seed=2)


def same(kind: str, path: Path, found: dict[str, Tensor], **given: Any) -> interop.Imported:
    """The import, after its first and last weights have been compared with those that were written."""
    imported = interop.read(kind, path, **given)
    got = imported.flow.network.state_dict()
    for name in ("x_embedder.proj.weight", "blocks.1.mlp.fc2.bias", "logvar_linear.weight"):
        assert torch.equal(got[name], found[name])
    return imported


def refusal(kind: str, path: Path, error: type[ShortflowError] = CheckpointError, **given: Any) -> str:
    with pytest.raises(error) as caught:
        interop.read(kind, path, **given)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- forms of files


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".npz"])
def test_every_form_of_file(suffix: str, model: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(model, path)
    elif suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in model.items()})  # pyright: ignore[reportArgumentType]
    else:
        torch.save(model, path)
    imported = same("esc", path, model)
    assert (imported.origin["weights"], imported.origin["file"]) == ("weights", path.name)
    assert any("does not name" in note for note in imported.origin["notes"])


def test_files_of_old_versions_of_torch(model: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(model, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    same("esc", tmp_path / "old.pt", model)


def checkpoint(model: dict[str, Tensor], ema: dict[str, Tensor], **more: Any) -> dict[str, Any]:
    """As training scripts save it: both sets, the optimiser, the settings, the step."""
    state = {"state": {0: {"step": torch.tensor(5.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
    settings = argparse.Namespace(model="SiT-B/2", batch_size=256, cfg_omega=1.0, ckpt=None)
    return {"model": OrderedDict(model), "ema": OrderedDict(ema), "opt": state, "args": settings, "steps": 1200, **more}


def test_the_average_is_taken_unless_told_otherwise(
    model: dict[str, Tensor], ema: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "0001200.pt"
    torch.save(checkpoint(model, ema), path)
    for average, found, which in ((None, ema, "ema"), (True, ema, "ema"), (False, model, "model")):
        imported = same("esc", path, found, average=average)
        assert (imported.origin["weights"], imported.step, imported.origin["notes"]) == (which, 1200, [])


def test_a_set_that_is_not_there(model: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": model}, tmp_path / "a.pt")
    assert "has no 'ema' weights, it holds model only; leave out --ema" in refusal(
        "esc", tmp_path / "a.pt", ConfigError, average=True
    )
    notes = same("esc", tmp_path / "a.pt", model).origin["notes"]
    assert notes == ["the file holds the trained weights, and no average beside them"]
    torch.save(model, tmp_path / "b.pt")
    assert "has no 'model' weights, it holds one set, which it does not name; leave out --model" in refusal(
        "esc", tmp_path / "b.pt", ConfigError, average=False
    )


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers(prefix: str, model: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"model": {f"{prefix}{name}": value for name, value in model.items()}}, tmp_path / "w.pt")
    same("esc", tmp_path / "w.pt", model)


# ------------------------------------------------------------------------------------------------- what is not executed


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.proof,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["beside", "inside", "settings"])
def test_a_hostile_file_does_nothing(zipped: bool, where: str, model: dict[str, Tensor], tmp_path: Path) -> None:
    proof, path = tmp_path / "proof", tmp_path / "hostile.pt"
    bomb: Any = Bomb(proof)
    content = {
        "beside": {"ema": model, "extra": bomb},
        "inside": {"ema": {**model, "x": bomb}},
        "settings": {"ema": model, "args": argparse.Namespace(path=bomb)},
    }[where]
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = refusal("esc", path)
    assert "holds objects beside its tensors" in message
    assert "would execute code of the file, so it is not read" in message
    assert not proof.exists()
    torch.load(path, weights_only=False)  # what others do with it
    assert proof.exists()


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    path, proof = tmp_path / "hostile.npz", tmp_path / "proof"
    np.savez(path, weights=np.array([Bomb(proof)], dtype=object))
    assert "is no npz file of numbers" in refusal("esc", path)
    assert not proof.exists()


def test_a_file_that_needs_unpickling_can_be_converted(
    model: dict[str, Tensor], ema: dict[str, Tensor], tmp_path: Path
) -> None:
    """The command of the message, run as it stands, makes a file that opens."""
    path = tmp_path / "with o'paths.pt"
    torch.save(checkpoint(model, ema, folder=pathlib.PurePosixPath("data")), path)
    message = refusal("esc", path)
    assert "(pathlib" in message
    command = shlex.split(next(line for line in message.splitlines() if "python -c" in line))
    assert command[:2] == ["python", "-c"]
    subprocess.run([sys.executable, *command[1:]], check=True)
    converted = tmp_path / "with o'paths-weights.pt"
    assert message.endswith(f"and import {converted}")
    same("esc", converted, ema)
    same("esc", converted, model, average=False)


# ------------------------------------------------------------------------------------------------------ what is damaged


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz"])
def test_damaged_files(suffix: str, model: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(model, path)
    elif suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in model.items()})  # pyright: ignore[reportArgumentType]
    else:
        torch.save(model, path)
    whole = path.read_bytes()
    for part in (b"", b"no weights at all", whole[:10], whole[: len(whole) // 2], whole[:-20]):
        path.write_bytes(part)
        assert "copy or download it again" in refusal("esc", path)


def test_an_old_file_that_is_cut(model: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    torch.save(model, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for part in (whole[:10], whole[:300], whole[: len(whole) // 2]):
        path.write_bytes(part)
        assert "copy or download it again" in refusal("esc", path)


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        ("esc", [1, 2], "holds a list, not weights by name"),
        ("esc", torch.zeros(3), "holds a Tensor, not weights by name"),
        (
            "esc",
            {},
            "holds no weights: expected tensors by name, or sets of them under ema or model or state_dict; it has",
        ),
        ("esc", {"epoch": 3, "loss": 0.1}, "it has epoch, loss"),
        ("esc", {"ema": {"decay": 0.9999, "a": torch.zeros(1)}}, "decay among the weights are no tensors"),
        (
            "repa",
            {"ema": {}},
            "these are no weights of a DiT or SiT: x_embedder.proj.weight, which tells sizes, is missing",
        ),
        ("esc", {"conv.weight": torch.zeros(1)}, "have an r_embedder, the embedding of t − r, and these have none"),
    ],
)
def test_files_of_something_else(kind: str, content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert message in refusal(kind, tmp_path / "w.pt")


def test_where_there_is_no_file(tmp_path: Path) -> None:
    assert "is not there; give a file of weights: .pt" in refusal("esc", tmp_path / "none.pt")
    assert "is a folder" in refusal("esc", tmp_path)
    (tmp_path / "w.pkl").write_bytes(b"")
    assert "files of weights end in .pt, .pth, .bin, .ckpt, .safetensors, .npz" in refusal("esc", tmp_path / "w.pkl")


# ------------------------------------------------------------------------------------------------ what does not belong


def written(found: dict[str, Tensor], folder: Path) -> Path:
    torch.save(found, folder / "w.pt")
    return folder / "w.pt"


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("meanflow", {"second": True, "log_variance": True}, "they have a log-variance head; choose --from esc"),
        ("sit", {"second": True}, "they have a second time; choose --from esc or --from meanflow"),
        ("sit", {"projectors": True}, "they have projectors; choose --from repa"),
        ("dit", {"projectors": True}, "they have projectors; choose --from repa"),
        ("esc", {}, "have an r_embedder, the embedding of t − r, and these have none; choose one of --from sit"),
        ("meanflow", {"projectors": True}, "they have projectors; choose --from repa"),
    ],
)
def test_another_kind_is_named(kind: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in refusal(kind, written(published.weights(TINY, **options), tmp_path))


def test_twice_the_channels_are_those_of_sit_or_dit(tmp_path: Path) -> None:
    message = refusal("repa", written(published.weights(Sizes(**{**vars(TINY), "outputs": 2})), tmp_path))
    assert "final_layer.linear.weight: (32, 64), expected (16, 64)" in message
    assert "the output has twice the channels of the input, as that of --from sit or --from dit may have" in message


def test_what_is_wrong_is_said_key_by_key(model: dict[str, Tensor], tmp_path: Path) -> None:
    del model["blocks.0.attn.proj.bias"], model["blocks.1.attn.proj.bias"], model["final_layer.linear.bias"]
    model |= {"blocks.1.attn.q_norm.weight": torch.ones(64), "head.weight": torch.zeros(2, 3)}
    model["blocks.1.mlp.fc1.weight"] = torch.zeros(32, 64)
    message = refusal("esc", written(model, tmp_path))
    assert message.startswith(f"{tmp_path / 'w.pt'} (esc, weights): the weights are not those of a network of 2 blocks")
    assert message.split("\n", 1)[1] == "\n".join(
        [
            "missing (3):",
            "  blocks.N.attn.proj.bias (N = 0, 1)",
            "  final_layer.linear.bias",
            "unexpected (2):",
            "  blocks.N.attn.q_norm.weight (64,) (N = 1)",
            "  head.weight (2, 3)",
            "another shape (1):",
            "  blocks.N.mlp.fc1.weight: (32, 64), expected (64, 64) (N = 1)",
            "queries and keys are normalised (qk_norm) with weights of their own, which cannot be read",
        ]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"x_embedder.proj.weight": torch.zeros(64, 4)},
            "x_embedder.proj.weight, which tells sizes, has the shape (64, 4)",
        ),
        ({"x_embedder.proj.weight": torch.zeros(64, 4, 2, 1)}, "has patches of 2×1; only square ones can be read"),
        ({"pos_embed": torch.zeros(1, 5, 64)}, "pos_embed has the shape (1, 5, 64); expected (1, n, width)"),
        ({"pos_embed": torch.zeros(5)}, "pos_embed has the shape (5,); expected (1, n, width)"),
        ({"pos_embed": torch.zeros(1, 4, 32)}, "pos_embed: (1, 4, 32), expected (1, 4, 64)"),
        ({"blocks.7000000.a": torch.zeros(1)}, "blocks.7000000 is the last of the blocks, but there are"),
        ({"blocks.2.attn.proj.bias": torch.zeros(64)}, "missing (9):"),
        (
            {"y_embedder.embedding_table.weight": torch.zeros(4)},
            "embedding_table.weight, which tells sizes, has the shape (4,)",
        ),
    ],
)
def test_sizes_that_make_no_sense(
    change: dict[str, Tensor], message: str, model: dict[str, Tensor], tmp_path: Path
) -> None:
    assert message in refusal("esc", written(model | change, tmp_path))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"classes": 7},
            "--classes 7: y_embedder.embedding_table.weight has 4 rows, which is 4 classes, or 3 and one for",
        ),
        ({"classes": 0}, "--classes must be at least 1, got 0"),
        (
            {"resolution": 64},
            "--resolution gives a side of 8, but pos_embed has 2×2 positions, patches of 2, which is a side of 4",
        ),
        ({"resolution": 30}, "latents have an eighth of the side of an image; give a multiple of 8, or --pixels"),
        ({"latent_scale": -1.0}, "--latent-scale must be positive and finite, got -1.0"),
        ({"latent_scale": (0.2, 0.0, 0.3, 0.3)}, "--latent-scale must be positive and finite, got 0.2,0.0,0.3,0.3"),
        ({"latent_shift": float("nan")}, "--latent-shift must be finite, got nan"),
        ({"latent_scale": (0.2, 0.3)}, "--latent-scale: expected one number or 4, one for each channel, got 2"),
        ({"latent_shift": (0.2, 0.3)}, "--latent-shift: expected one number or 4, one for each channel, got 2"),
        ({"latent_scale": 1.0, "pixels": True}, "--pixels and --latent-scale contradict each other"),
        ({"latent_shift": 1.0, "pixels": True}, "--pixels and --latent-shift contradict each other"),
        ({"encoder": "sd-vae-ft-mse", "pixels": True}, "--pixels and --encoder contradict each other"),
        ({"heads": 7}, "heads must divide width, got heads=7, width=64"),
        ({"settings": ["recipe.nme=1"]}, "recipe.nme"),
    ],
)
def test_options_that_contradict_the_file(
    given: dict[str, Any], message: str, model: dict[str, Tensor], tmp_path: Path
) -> None:
    assert message in refusal("esc", written(model, tmp_path), ConfigError, **given)


def test_a_kind_that_is_not_known(tmp_path: Path) -> None:
    assert "there are no weights of kind 'meanflw', did you mean 'meanflow'?" in refusal(
        "meanflw", tmp_path / "w.pt", ConfigError
    )


def test_heads_of_an_odd_width_are_asked_for(tmp_path: Path) -> None:
    sizes = Sizes(**{**vars(TINY), "width": 148, "heads": 4})
    path = written(published.weights(sizes), tmp_path)
    assert interop.read("repa", path).run.network.dimensions.heads == 2  # pyright: ignore[reportAttributeAccessIssue]
    odd = Sizes(**{**vars(TINY), "width": 260, "heads": 5})
    message = refusal("repa", written(published.weights(Sizes(**{**vars(odd), "width": 212})), tmp_path), ConfigError)
    assert "leaves no trace in the weights, and a width of 212 is none of the published ones; give --heads" in message


def test_weights_without_positions_or_resolution(tmp_path: Path) -> None:
    found = published.weights(TINY)
    del found["pos_embed"]
    path = written(found, tmp_path)
    assert "there is no pos_embed that would tell the side of the images; give --resolution" in refusal(
        "repa", path, ConfigError
    )
    assert "a side of 3 is no multiple of the patch of 2" in refusal("repa", path, ConfigError, resolution=24)
