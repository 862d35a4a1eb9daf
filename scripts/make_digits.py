"""Write src/shortflow/data/digits.npz from scikit-learn's copy of the UCI handwritten digits.

    images  uint8 (1797, 8, 8)   round(v·255/16) of the ink values v ∈ {0, …, 16}
    labels  uint8 (1797,)
    test    bool  (1797,)        500 images, drawn within each class in proportion to it (largest remainders)

Run from the root of the repository: python scripts/make_digits.py
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

TEST = 500
SEED = 20_240_601


def main() -> None:
    ink, labels = load_digits(return_X_y=True)
    images = np.rint(ink.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    counts = np.bincount(labels)
    exact = counts * TEST / len(labels)
    share = np.floor(exact).astype(int)
    share[np.argsort(share - exact, kind="stable")[: TEST - share.sum()]] += 1
    rng = np.random.default_rng(SEED)
    test = np.zeros(len(labels), dtype=bool)
    for digit, size in enumerate(share):
        test[rng.permutation(np.flatnonzero(labels == digit))[:size]] = True
    path = Path(__file__).parents[1] / "src/shortflow/data/digits.npz"
    np.savez_compressed(path, images=images, labels=labels.astype(np.uint8), test=test)
    print(f"{path}: {path.stat().st_size} bytes, {test.sum()} test images, {share.tolist()} by class")


if __name__ == "__main__":
    main()
