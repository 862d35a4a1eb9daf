"""The worked example of text: its data leave out what it says, its measure reads real images right, and it runs."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from shortflow.data import load

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "conditions" / "captions.py"


@pytest.fixture(scope="module")
def captions() -> ModuleType:
    spec = importlib.util.spec_from_file_location("captions", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_left_out_is_in_no_caption_of_the_folder(captions: ModuleType, tmp_path: Path) -> None:
    captions.make_folder(tmp_path, 400)
    told = load(str(tmp_path)).conditions
    assert told is not None
    found = told.take(np.arange(400))
    left_out, mask = captions.encode(list(captions.LEFT_OUT))
    assert mask.all()
    assert not any(np.array_equal(row, one) for row in found for one in left_out)
    lengths = (~np.isnan(found).any(-1)).sum(1)
    assert set(lengths.tolist()) == {1, 2}
    assert len(set(captions.LEFT_OUT)) == 10


def test_the_measure_is_right_about_real_images(captions: ModuleType) -> None:
    data, rng = load("digits", "test"), np.random.default_rng(0)
    asked = [f"{a} {b}" for a in captions.WORDS for b in captions.WORDS] + list(captions.WORDS)
    real = np.stack([captions.draw_number(caption, data.samples, data.labels, rng)[None] for caption in asked])
    assert captions.obeyed(real, asked) > 0.95
    turned = [" ".join(reversed(caption.split())) for caption in asked]
    assert captions.obeyed(real, turned) < 0.3


def test_it_runs(
    captions: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["captions.py", "--out", str(tmp_path), "--images", "16", "--seen", "256"])
    captions.main()
    said = capsys.readouterr().out
    rows = re.findall(r"^  (one word|two words|never seen|real images) +(\d+\.\d)%", said, re.MULTILINE)
    assert len(rows) == 4
    assert (tmp_path / "never-seen.png").is_file()
