"""The commands of docs/published-weights.md, one after the other, on files of its names with small networks in them."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import published
from published import Sizes
from shortflow.cli import main
from shortflow.hub.interop import KINDS
from shortflow.nn import SIZES

PAGE = (Path(__file__).parents[1] / "docs/published-weights.md").read_text()
LATENTS = Sizes(width=64, depth=1, heads=1, side=4, rows=4, hidden=64, frequencies=16, outputs=2)
FILES = {
    "SiT-XL-2-256x256.pt": published.weights(LATENTS),
    "1200000.pt": {"ema": published.weights(Sizes(**{**vars(LATENTS), "outputs": 1}), second=True, log_variance=True)},
    "small.pt": published.weights(Sizes(width=64, depth=1, heads=1, patch=4, channels=1, hidden=64, frequencies=16)),
}


def test_the_commands_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(**asked: Any) -> str:
        raise OSError(f"{asked['repo_id']} is not here")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", nothing)
    for name, found in FILES.items():
        torch.save(found, name)
    lines = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).splitlines()
    assert len(lines) == 8
    for line in lines:
        words = shlex.split(line)
        small = ["--set", "images=16", "--set", "batch=8", "--set", "preview_every=0"] if words[1] == "train" else []
        with pytest.raises(SystemExit) as ended:
            main([*words[1:], *small])
        assert not ended.value.code, line
    found = np.load("esc.npz")
    assert (found["latents"].shape, str(found["encoder"])) == ((64, 4, 4, 4), "sd-vae-ft-ema")
    assert np.load("latents-sit.npy").shape == (64, 4, 4, 4)
    assert Path("fewer.png").is_file()


def test_the_tables_hold_what_the_kinds_say() -> None:
    rows = {
        row[0]: row for row in (line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("|"))
    }
    assert [name for name in KINDS if KINDS[name].project in rows[f"`{name}`"][1]] == list(KINDS)
    autoencoders = [f"sd-vae-ft-{cell.strip('* ')}" for cell in rows["latents of sd-vae-ft-"][1:6]]
    assert autoencoders == [kind.autoencoder for kind in KINDS.values()]
    scales = [float(cell.strip("* ")) for cell in rows["latents ×"][1:6]]
    assert scales == [kind.latent_scale for kind in KINDS.values()]
    doubled = ["2C" in cell for cell in rows["channels of the output"][1:6]]
    assert doubled == [kind.doubled for kind in KINDS.values()]
    turned = [cell == "**1**" for cell in rows["time of the data"][1:6]]
    assert turned == [kind.reversed for kind in KINDS.values()]
    heads = {int(width): int(count) for width, count in re.findall(r"(\d{3,4}): (\d+)[,)]", PAGE)}
    assert heads == {SIZES[name].width: SIZES[name].heads for name in ("S", "B", "L", "XL")}
