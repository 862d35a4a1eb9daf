"""What goes wrong in commands, and what they say: `bad_inputs.yaml` as cases, the folder they are given in, the page.

    python tests/bad_inputs.py        renew docs/bad-inputs.md
"""

import json
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from torch import nn

import published
from autoencoders import saved
from shortflow import hub, runs
from shortflow.data.encoders import load_autoencoder
from shortflow.data.sources import open_source
from shortflow.evaluate import save_program

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "bad-inputs.md"
ANYTHING = "…"  # in a message: text that is not the same everywhere

TINY = (
    "network={kind: SiTConfig, size: tiny, depth: 1, width: 16, heads: 2}",
    "train.batch=32",
    "train.images=64",
    "train.preview_every=0",
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command that cannot be done.

    Attributes:
        section: of the page.
        what: is wrong.
        command: as it is typed.
        says: all that it says, after "error: "; `ANYTHING` stands for any text.
        world: "full disk", "locked" or "no network": what is the matter around it.
        leaves: what it may leave behind.
    """

    section: str
    what: str
    command: str
    says: str
    world: str = ""
    leaves: tuple[str, ...] = ()


def cases() -> list[Case]:
    """All of them, in the order of the page."""
    sections = yaml.safe_load((HERE / "bad_inputs.yaml").read_text(encoding="utf-8"))
    return [
        Case(
            section=section,
            what=each["what"],
            command=each["command"],
            says=each["says"].rstrip("\n"),
            world=each.get("world", ""),
            leaves=tuple(each.get("leaves", ())),
        )
        for section, rows in sections.items()
        for each in rows
    ]


# -------------------------------------------------------------------------------------------------- what they are given


def furnish(folder: Path) -> None:
    """Fill the folder with what the commands are given."""
    _images(folder)
    _run_files(folder)
    _weights(folder)
    for name, recipe, data, settings in (
        ("run", "esc", "digits", TINY),
        ("flow", "flow-matching", "digits", TINY),
        ("toy", "sct", "mixture", ("train.images=64", "train.batch=32")),
    ):
        for _ in runs.training(*runs.configure(recipe, data, settings=settings), folder / name):
            pass
    for name, seed in (("vae", 0), ("other-vae", 1)):
        saved(folder / name, seed=seed)
    autoencoder = load_autoencoder("vae")
    source = runs.Images(open_source("photos", "train", 16), autoencoder)
    runs.encode(source, autoencoder, folder / "latents")
    small = (*TINY[:1], "train.batch=8", "train.group=4", "train.images=16", "train.preview_every=0")
    for _ in runs.training(*runs.configure("esc", "latents", settings=small), folder / "latent-run"):
        pass


def _images(folder: Path) -> None:
    random = np.random.default_rng(0)

    def image(name: str, width: int = 16, height: int = 16) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(256, size=(height, width, 3), dtype=np.uint8)).save(path)

    for name in ("cats", "dogs"):
        for k in range(4):
            image(f"photos/{name}/{k}.png")
    for name in ("flat/0.png", "mixed/0.png", "mixed/cats/0.png", "nested/animals/cats/0.png", "Case/Cats/0.png"):
        image(name)
    image("Case/cats/0.png")
    image("wide/0.png", width=24)
    image("uneven/0.png")
    image("uneven/1.png", width=20, height=20)
    image("broken/0.png")
    (folder / "broken/1.png").write_text("no picture at all\n")
    image("a-class-too-many/cats/0.png")
    (folder / "a-class-too-many/dogs").mkdir()
    (folder / "empty").mkdir()
    image("with-notes/0.png")
    (folder / "with-notes/notes.txt").write_text("remember the milk\n")
    with zipfile.ZipFile(folder / "whole.zip", "w") as archive:
        archive.write(folder / "photos/cats/0.png", "cats/0.png")
    (folder / "cut.zip").write_bytes((folder / "whole.zip").read_bytes()[:200])
    np.savez(folder / "floats.npz", random.normal(size=(8, 16, 16, 3)))
    np.savez(folder / "labelled.npz", images=random.integers(256, size=(4, 8, 8, 3), dtype=np.uint8), labels=[0, 1, -1, 0])
    np.save(folder / "images.npy", random.integers(256, size=(40, 3, 8, 8), dtype=np.uint8))
    np.save(folder / "large.npy", random.integers(256, size=(40, 3, 16, 16), dtype=np.uint8))


def _run_files(folder: Path) -> None:
    texts = {
        "twice.yaml": "recipe: esc\nrecipe: meanflow\n",
        "tabs.yaml": "train:\n\tbatch: 64\n",
        "python.yaml": "recipe: !!python/object/apply:os.system ['true']\n",
        "list.yaml": "- esc\n- meanflow\n",
        "empty.yaml": "",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "picture.yaml").write_bytes((folder / "flat/0.png").read_bytes())


def _weights(folder: Path) -> None:
    tiny = published.Sizes(width=64, depth=1, heads=1, patch=2, channels=4, side=4, rows=4, hidden=64, frequencies=16)
    torch.save(published.weights(tiny), folder / "sit.pt")
    torch.save({"ema": nn.Linear(2, 2)}, folder / "pickled.pt")
    (folder / "text.pt").write_text("404: Not Found\n")
    (folder / "cut.pt").write_bytes((folder / "sit.pt").read_bytes()[:5000])
    torch.save({"weight": torch.zeros(2, 2)}, folder / "linear.pt")
    torch.manual_seed(0)
    for name in ("four", "other-four"):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        save_program(folder / f"{name}.pt2", network, name=name, size=8)
    np.savez(folder / "stats.npz", mu=np.zeros(4), sigma=np.eye(4))
    np.savez(folder / "nan.npz", mu=np.full(2048, np.nan), sigma=np.eye(2048))
    (folder / "stats.pkl").write_bytes(pickle.dumps({"mu": np.zeros(4)}))
    (folder / "cut.npz").write_bytes((folder / "stats.npz").read_bytes()[:300])
