"""The commands of docs/distillation.md, one after the other, with a smaller budget."""

import re
import shlex
from pathlib import Path

import pytest

from shortflow import hub
from shortflow.cli import main

PAGE = (Path(__file__).parents[1] / "docs/distillation.md").read_text()
SMALL = ("train.images=16", "train.batch=8", "train.preview_every=0")


def test_the_commands_on_distillation_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).splitlines()
    assert len(lines) == 7
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "shortflow"
        settings = [*SMALL, *(("pairs.count=8", "pairs.steps=2") if words[2] == "reflow" else ())]
        if "--init-from" not in words and "network.size=tiny" not in words:
            settings += ["network.width=16", "network.heads=2", "network.depth=1"]
        with pytest.raises(SystemExit) as ended:
            main([*words[1:], *(word for setting in settings for word in ("--set", setting))])
        assert not ended.value.code, line
        model = hub.load(words[words.index("--out") + 1])
        assert model.step == 2
    assert len(list(Path("out/reflow/pairs").iterdir())) == 1
