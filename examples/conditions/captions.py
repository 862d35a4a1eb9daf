"""Images from captions, small: numbers of one or two digits, each told by the words of its name.

    python examples/conditions/captions.py

What a text-to-image model needs, on the built-in digits: images side by side in a folder, a sequence of vectors for
each (`write_conditions`), a network that attends to them, samples in one step. The vectors of the words are random ones
here. With real captions put a text encoder in the place of `encode`, once, before training: anything that makes a
sequence of vectors of a caption, of any length up to a highest one.

Ten of the hundred numbers of two digits are left out of training. What is printed says whether the model obeys: the
share of digits that a classifier reads off the samples as asked for, by captions of the training data and by others.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import shortflow as sf
from shortflow.data import load, write_conditions
from shortflow.evaluate import load_classifier
from shortflow.hub import Model
from shortflow.pictures import image_grid, save_png

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WIDTH, LONGEST = 16, 2  # numbers of a word, words of a caption
LEFT_OUT = tuple(f"{WORDS[k]} {WORDS[(7 * k + 3) % 10]}" for k in range(10))


def encode(captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(vectors (n, k, d), which of them are there (n, k)): what a text encoder returns."""
    vectors = np.random.default_rng(0).standard_normal((len(WORDS), WIDTH)).astype(np.float32)
    found, mask = np.zeros((len(captions), LONGEST, WIDTH), np.float32), np.zeros((len(captions), LONGEST), bool)
    for k, caption in enumerate(captions):
        for place, word in enumerate(caption.split()):
            found[k, place], mask[k, place] = vectors[WORDS.index(word)], True
    return found, mask


def draw_number(caption: str, digits: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An image (16, 16) of a number: its digits side by side, in the middle of the height; a single one on the left."""
    image = np.zeros((16, 16), np.uint8)
    for place, word in enumerate(caption.split()):
        digit = rng.choice(digits[labels == WORDS.index(word)])
        image[4:12, 8 * place : 8 * place + 8] = digit[0]
    return image


def make_folder(folder: Path, n: int) -> None:
    """n images with the conditions beside them; an eighth of them have one digit."""
    data, rng = load("digits", "train"), np.random.default_rng(1)
    assert data.labels is not None
    allowed = [caption for a in WORDS for b in WORDS if (caption := f"{a} {b}") not in LEFT_OUT]
    captions = [str(rng.choice(WORDS if k % 8 == 0 else allowed)) for k in range(n)]
    names = [f"{k:05d}.png" for k in range(n)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, caption in zip(names, captions, strict=True):
        save_png(draw_number(caption, np.asarray(data.samples), data.labels, rng)[None], folder / name, durable=False)
    write_conditions(folder, names, *encode(captions))


def samples(model: Model, captions: list[str], seed: int) -> np.ndarray:
    """One image (1, 16, 16) for each caption, in one step."""
    vectors, mask = encode(captions)
    vectors[~mask] = np.nan  # words that are not there
    return sf.generate(model.flow, model.spec, len(captions), condition=torch.from_numpy(vectors), seed=seed)[0]


def obeyed(pixels: np.ndarray, captions: list[str]) -> float:
    """The share of the digits of the captions that a classifier reads off the images."""
    asked = [(k, place, word) for k, caption in enumerate(captions) for place, word in enumerate(caption.split())]
    cut = np.stack([pixels[k, :, 4:12, 8 * place : 8 * place + 8] for k, place, _ in asked])
    read = load_classifier("digits").logits(cut).argmax(1).tolist()
    return float(np.mean([WORDS[digit] == word for digit, (_, _, word) in zip(read, asked, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description="A one-step model that is told words.")
    parser.add_argument("--out", type=Path, default=Path("out/captions"))
    parser.add_argument("--images", type=int, default=2048, help="of the folder")
    parser.add_argument("--seen", type=int, default=128_000, help="images that are trained on, again and again")
    given = parser.parse_args()
    folder = given.out / "numbers"
    make_folder(folder, given.images)
    settings = ["network.size=tiny", "network.patch=4", "train.batch=128", f"train.images={given.seen}"]
    settings += ["train.preview_every=0", "train.save_every=1000000", "optimizer.lr=2e-3", "objective.label_dropout=0"]
    settings += ["objective.target.velocity.omega=1", "objective.target.velocity.kappa=0"]  # no guidance
    run, dataset = sf.configure("meanflow", str(folder), settings=settings)
    for record in sf.training(run, dataset, given.out / "run"):
        if record.step % 100 == 0:
            print(f"step {record.step}: velocity error {record.logs['diagonal_error']:.3f}", flush=True)
    model = sf.load(given.out / "run")
    known = [f"{a} {b}" for a in WORDS for b in WORDS if f"{a} {b}" not in LEFT_OUT]
    print("digits that are as asked for, in one step:")
    for what, captions in (("one word", [*WORDS] * 10), ("two words", known), ("never seen", [*LEFT_OUT] * 10)):
        pixels = samples(model, captions, seed=1)
        print(f"  {what:12s}{obeyed(pixels, captions):7.1%}")
        save_png(image_grid(pixels[:100], 10), given.out / f"{what.replace(' ', '-')}.png")
    test, rng = load("digits", "test"), np.random.default_rng(2)
    assert test.labels is not None
    real = np.stack([draw_number(caption, np.asarray(test.samples), test.labels, rng)[None] for caption in known])
    print(f"  {'real images':12s}{obeyed(real, known):7.1%}   (what the classifier makes of held-out digits)")


if __name__ == "__main__":
    main()
