"""What goes wrong in commands, and what they say: `bad_inputs.yaml` as cases, the folder they are given in, the page.

python tests/bad_inputs.py        renew docs/bad-inputs.md
"""

import pickle
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from torch import nn

import published
from autoencoders import saved
from shortflow import runs
from shortflow.data.encoders import load_autoencoder
from shortflow.data.sources import open_source
from shortflow.evaluate import load_program, save_program

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "bad-inputs.md"
ANYTHING = "…"  # in a message: text that is not the same everywhere

_NETWORK = "network={kind: SiTConfig, size: tiny, depth: 1, width: 16, heads: 2}"
_TINY = (_NETWORK, "train.batch=32", "train.images=64", "train.preview_every=0")
_LATENT = (_NETWORK, "train.batch=8", "train.group=4", "train.images=16", "train.preview_every=0")
_GUIDED = (*_TINY, "objective.label_dropout=0.1", "objective.target.velocity={kind: Guided, omega: 1.0, kappa: 0.5}")
_RUNS = {
    "run": ("esc", "digits", _TINY),
    "guided": ("meanflow", "digits", _GUIDED),
    "flow": ("flow-matching", "digits", (*_TINY, "objective.label_dropout=0.1")),
    "toy": ("sct", "mixture", ("train.images=64", "train.batch=32")),
}
_HEAD = """# What goes wrong, and what it says

Every command below has something wrong. It ends with exit code 2 and with the lines under it, without a traceback, and
leaves no file behind but what is named; {anything} stands for text that differs from machine to machine. A test runs
all {count} in a folder of small runs, images and files (`pytest tests/test_bad_inputs.py`). This page is made of the
same list by `python tests/bad_inputs.py`.
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command that cannot be done.

    Attributes:
        section: of the page.
        what: is wrong.
        command: as it is typed.
        says: all that it says; `ANYTHING` stands for any text.
        world: what is the matter around it: "full disk", "locked", "no network", or nothing.
        leaves: what it may leave behind.
    """

    section: str
    what: str
    command: str
    says: str
    world: str = ""
    leaves: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """What stands on the terminal, below the usage where the words of the command cannot be taken apart."""
        return self.says if self.says.startswith("Error: ") else f"error: {self.says}"

    def fits(self, text: str) -> bool:
        """Whether that is what it says."""
        pattern = ".*?".join(map(re.escape, self.shown.split(ANYTHING)))
        return re.fullmatch(pattern, re.sub(r"^Usage:.*\n\n", "", text.strip(), flags=re.DOTALL), re.DOTALL) is not None


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


def page() -> str:
    """The page about them."""
    everything = cases()
    lines = [_HEAD.format(anything=ANYTHING, count=len(everything))]
    for section in dict.fromkeys(case.section for case in everything):
        lines.append(f"## {section}\n\n```console")
        for case in (case for case in everything if case.section == section):
            around = f" ({case.world})" if case.world else ""
            kept = f"; leaves {', '.join(case.leaves)}" if case.leaves else ""
            lines.append(f"# {case.what}{around}{kept}\n$ {case.command}\n{case.shown}\n")
        lines[-1] = lines[-1].rstrip("\n") + "\n```\n"
    return "\n".join(lines)


# -------------------------------------------------------------------------------------------------- what they are given


def furnish(folder: Path) -> None:
    """Fill the folder, which is the current one, with what the commands are given."""
    _images(folder)
    _texts(folder)
    _weights(folder)
    _references(folder)
    for name, (recipe, data, settings) in _RUNS.items():
        _trained(folder / name, recipe, data, settings)
    (folder / "cut.safetensors").write_bytes((folder / "run/model.safetensors").read_bytes()[:-100])
    for name, seed in (("vae", 0), ("other-vae", 1)):
        saved(folder / name, seed=seed, scaling_factor=0.18125)
    autoencoder = load_autoencoder("vae")
    source = runs.Images(open_source("photos", "train", 16), autoencoder)
    runs.encode(source, autoencoder, folder / "latents")
    _trained(folder / "latent-run", "esc", "latents", _LATENT)
    for name in ("other-scale", "cut-latents"):
        shutil.copytree(folder / "latents", folder / name)
    runs.rescaled(folder / "other-scale", [0.18215])
    shard = folder / "cut-latents/000000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])


def _trained(out: Path, recipe: str, data: str, settings: tuple[str, ...]) -> None:
    for _ in runs.training(*runs.configure(recipe, data, settings=settings), out):
        pass


def _images(folder: Path) -> None:
    random = np.random.default_rng(0)

    def image(name: str, width: int = 16, height: int = 16) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(256, size=(height, width, 3), dtype=np.uint8)).save(path)

    for name in ("cats/0", "cats/1", "cats/2", "cats/3", "dogs/0", "dogs/1", "dogs/2", "dogs/3"):
        image(f"photos/{name}.png")
    for name in ("flat/0", "mixed/0", "mixed/cats/0", "nested/animals/cats/0", "capitals/Cats/0", "capitals/cats/1"):
        image(f"{name}.png")
    image("wide/0.png", width=24)
    image("uneven/0.png")
    image("uneven/1.png", width=20, height=20)
    image("broken/0.png")
    (folder / "broken/1.png").write_text("no picture at all\n")
    for name in ("ends/0", "ends/1"):
        image(f"{name}.png")
    (folder / "ends/1.png").write_bytes((folder / "ends/1.png").read_bytes()[:-300])
    image("no-dogs/cats/0.png")
    (folder / "no-dogs/dogs").mkdir()
    (folder / "empty").mkdir()
    for name in ("camera/0", "backup/0", "backup/1"):
        image(f"{name}.png")
    (folder / "camera/1.nef").write_bytes(b"what only its maker knows")
    (folder / "backup/old.tar").write_bytes(bytes(10240))
    (folder / "notes").mkdir()
    (folder / "notes/notes.txt").write_text("remember the milk\n")
    with zipfile.ZipFile(folder / "cut.zip", "w") as archive:
        archive.write(folder / "photos/cats/0.png", "cats/0.png")
    (folder / "cut.zip").write_bytes((folder / "cut.zip").read_bytes()[:200])
    np.savez(folder / "floats.npz", random.normal(size=(8, 16, 16, 3)))
    few = random.integers(256, size=(4, 8, 8, 3), dtype=np.uint8)
    np.savez(folder / "labelled.npz", images=few, labels=[0, 1, -1, 0])
    for name, side in (("images", 8), ("large", 16)):
        np.save(folder / f"{name}.npy", random.integers(256, size=(40, 3, side, side), dtype=np.uint8))


def _texts(folder: Path) -> None:
    texts = {
        "twice.yaml": "recipe: esc\nrecipe: meanflow\n",
        "tabs.yaml": "train:\n\tbatch: 64\n",
        "python.yaml": "recipe: !!python/object/apply:os.system ['true']\n",
        "list.yaml": "- esc\n- meanflow\n",
        "empty.yaml": "",
        "fails.py": "import shortflow\nshortfow.register(int)\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "picture.yaml").write_bytes((folder / "flat/0.png").read_bytes())


def _weights(folder: Path) -> None:
    tiny = published.Sizes(width=64, depth=1, heads=1, patch=2, channels=4, side=4, rows=4, hidden=64, frequencies=16)
    torch.save(published.weights(tiny), folder / "sit.pt")
    (folder / "cut.pt").write_bytes((folder / "sit.pt").read_bytes()[:5000])
    torch.save({"ema": nn.Linear(2, 2)}, folder / "pickled.pt")
    torch.save({"weight": torch.zeros(2, 2)}, folder / "linear.pt")
    (folder / "text.pt").write_text("404: Not Found\n")


def _references(folder: Path) -> None:
    """Features, and statistics of images by them."""
    torch.manual_seed(0)
    for name in ("four", "other-four"):
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        save_program(folder / f"{name}.pt2", network, name=name, size=8)
        extractor = load_program(folder / f"{name}.pt2")
        runs.statistics_of(runs.open_images("images.npy"), extractor, out=folder / f"{name}.npz")
    padded = runs.open_images("uneven", resolution=8, crop="pad")
    runs.statistics_of(padded, load_program(folder / "four.pt2"), out=folder / "padded.npz")
    np.savez(folder / "stats.npz", mu=np.zeros(4), sigma=np.eye(4))
    np.savez(folder / "nan.npz", mu=np.full(2048, np.nan), sigma=np.eye(2048))
    (folder / "stats.pkl").write_bytes(pickle.dumps({"mu": np.zeros(4)}))
    (folder / "cut.npz").write_bytes((folder / "stats.npz").read_bytes()[:300])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
