"""What a run that goes on may meet: other data, other processes, a crash of the machine, a disk that is full."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shortflow import runs
from shortflow.arrays import Stacked
from shortflow.data import Conditions, Dataset, identity
from shortflow.data.identity import DataIdentity
from shortflow.errors import CheckpointError
from shortflow.recipes import flow_matching
from shortflow.train import space
from tiny import settings
from tinyruns import STEPS, files, lines, rewritten, start, untouched

# ----------------------------------------------------------------------------------------------------------------- data

SMALL = [
    "network={kind: SiTConfig, size: tiny, depth: 1, width: 16, heads: 2}",
    *("train.images=128", "train.batch=32", "train.save_every=2", "train.preview_every=0", "train.trackers=[]"),
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data/animals, and a run on it with a state after 2 of 4 steps; whole is the run uninterrupted."""
    folder = tmp_path_factory.mktemp("begun")
    for name in ("cats", "dogs"):
        (folder / "data" / "animals" / name).mkdir(parents=True)
        for k in range(20):
            image = Image.fromarray(np.full((8, 8), 10 * k, np.uint8))
            image.save(folder / "data" / "animals" / name / f"{k:02}.png")
    run, dataset = runs.configure("flow-matching", str(folder / "data" / "animals"), settings=SMALL)
    for record in (records := runs.training(run, dataset, folder / "run")):
        if record.step == 3:
            break
    records.close()  # pyright: ignore[reportAttributeAccessIssue]
    list(runs.training(run, dataset, folder / "whole"))
    return folder


def moved(begun: Path, to: Path, name: str = "animals") -> tuple[Path, Path]:
    """(data, run): copies of both in another place, which the run file says."""
    data, run = to / "other" / name, to / "run"
    shutil.copytree(begun / "data" / "animals", data)
    shutil.copytree(begun / "run", run)
    text = (run / "run.yaml").read_text()
    (run / "run.yaml").write_text(text.replace(str(begun / "data" / "animals"), str(data)))
    assert text.count(str(begun)) == 1
    return data, run


def remove(data: Path) -> None:
    for path in sorted(data.rglob("*.png"))[::4]:
        path.unlink()


def blacken(data: Path) -> None:
    for path in sorted(data.rglob("*.png"))[1::4]:
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)


def relabel(data: Path) -> None:
    """The last cat is a dog: the same pixels in the same order."""
    (data / "cats" / "19.png").rename(data / "dogs" / "00-.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove, r"\(40 samples then, 30 now\)"),
        (blacken, r"\(other pixels in the 40 samples\)"),
        (relabel, r"\(other labels\)"),
    ],
)
def test_other_data_are_refused_with_what_differs(
    change: Callable[[Path], None], message: str, begun: Path, tmp_path: Path
) -> None:
    data, run = moved(begun, tmp_path)
    change(data)
    before = untouched(run)
    for look in (runs.plan, runs.training):
        with pytest.raises(CheckpointError, match=rf"the data are not those that .*00000002 was trained on {message}"):
            look(*runs.open_run(run), run, resume=True)
    assert untouched(run) == before


@pytest.mark.parametrize("name", ["animals", "beasts"])
def test_data_that_have_moved_are_the_same(name: str, begun: Path, tmp_path: Path) -> None:
    _, run = moved(begun, tmp_path, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert runs.plan(*runs.open_run(run), run, resume=True).begun == 2
        list(runs.training(*runs.open_run(run), run, resume=True))
    want, got = files(begun / "whole"), files(run)
    del want["model"], got["model"]  # whose header says where the data are
    assert got == want


def test_a_state_of_an_earlier_version_goes_on_and_it_is_said_once(begun: Path, tmp_path: Path) -> None:
    data, run = moved(begun, tmp_path)
    blacken(data)

    def earlier(content: dict[str, Any]) -> None:
        del content["data"], content["parts"]

    rewritten(run / "state" / "00000002", earlier)
    said = "does not say what it was trained on .* the data are not compared"
    assert any(re.search(said, note) for note in runs.plan(*runs.open_run(run), run, resume=True).notes)
    with pytest.warns(UserWarning, match=said) as told:
        assert len(list(runs.training(*runs.open_run(run), run, resume=True))) == 2
    assert len([each for each in told if "trained on" in str(each.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(runs.training(*runs.open_run(run), run, resume=True)) == []


def test_pixels_that_another_decoder_may_have_changed_are_said(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, run = moved(begun, tmp_path)
    blacken(data)
    monkeypatch.setattr(identity, "_decoder", lambda: "Pillow 99, JPEG 98")
    with pytest.warns(UserWarning, match=r"not to the bit those .*: Pillow 99, JPEG 98 decodes them, and .* did"):
        runs.training(*runs.open_run(run), run, resume=True)
    remove(data)
    with pytest.raises(CheckpointError, match="40 samples then, 30 now"):
        runs.training(*runs.open_run(run), run, resume=True)


def points(n: int = 60) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, 3)).astype(np.float32)


def test_the_identity_is_of_what_is_there_and_not_of_how_it_lies(tmp_path: Path) -> None:
    x, labels = points(), np.arange(60) % 2
    known = {"labels": labels, "classes": ("a", "b")}
    one = DataIdentity.of(Dataset(name="one", samples=x, **known))
    assert (one.count, one.looked_at, one.decoder, one.conditions) == (60, 60, None, None)
    np.save(tmp_path / "x.npy", x)
    for samples in (np.load(tmp_path / "x.npy", mmap_mode="r"), Stacked((x[:7], x[7:])), np.asfortranarray(x)):
        assert DataIdentity.of(Dataset(name="other", samples=samples, **known)) == one
    assert DataIdentity.from_json(json.loads(json.dumps(one.as_json()))) == one
    other = DataIdentity.of(Dataset(name="one", samples=x, labels=1 - labels, classes=("a", "b")))
    assert one.differences(other) == ["other labels"]
    assert one.differences(one) == []
    turned = DataIdentity.of(Dataset(name="one", samples=x[::-1].copy(), **known))
    assert one.differences(turned) == ["other numbers in the 60 samples"]
    values = np.random.default_rng(1).standard_normal((60, 4)).astype(np.float16)
    told = [DataIdentity.of(Dataset(name="one", samples=x, conditions=Conditions(values=v))) for v in (values, -values)]
    assert told[0].differences(told[1]) == ["other conditions"]


def test_of_many_samples_some_are_read_spread_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "WHOLE", 60 * 12 - 1)
    monkeypatch.setattr(identity, "SAMPLED", 5)
    one = DataIdentity.of(Dataset(name="one", samples=points()))
    assert one.looked_at == 5
    read = np.linspace(0, 59, 5).astype(int).tolist()
    assert (read[0], read[-1]) == (0, 59)
    for row in range(60):
        changed = points()
        changed[row] += 1
        assert bool(one.differences(DataIdentity.of(Dataset(name="one", samples=changed)))) == (row in read)
    assert one.differences(DataIdentity.of(Dataset(name="one", samples=points(61)))) == ["60 samples then, 61 now"]


# ------------------------------------------------------------------------------------------------------------ processes


def test_another_number_of_processes_is_said_once_with_what_keeps_the_numbers(tmp_path: Path) -> None:
    """The states of four parts are those of four processes, but for the setting, which is 1 in these."""
    four = replace(settings(STEPS, save_every=4), parts=4)
    whole = tmp_path / "whole"

    def by_processes(content: dict[str, Any]) -> None:
        assert content["parts"] == 4
        content["settings"]["parts"] = 1

    list(start(whole, flow_matching(), settings=four))
    for name in ("kept", "run"):
        shutil.copytree(whole, tmp_path / name)
        shutil.rmtree(tmp_path / name / "state" / "00000012")
        rewritten(tmp_path / name / "state" / "00000008", by_processes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(start(tmp_path / "kept", flow_matching(), settings=four, resume=True))
    assert files(tmp_path / "kept") == files(whole)
    one, said = replace(four, parts=1), r"shared by 4 processes .* is by 1 from .*start 4 processes, or set train.parts"
    with pytest.warns(UserWarning, match=said):
        list(start(tmp_path / "run", flow_matching(), settings=one, resume=True))
    assert files(tmp_path / "run") != files(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(start(tmp_path / "run", flow_matching(), settings=one, resume=True)) == []
    with pytest.raises(CheckpointError, match=r"'parts': 1.* which cannot go on with .*'parts': 2"):
        start(tmp_path / "run", flow_matching(), settings=replace(four, parts=2), resume=True)


# ---------------------------------------------------------------------------------------------- a crash of the machine

GARBAGE = {
    "zeros": bytes(4096),
    "cut": b'{"step": 6, "ima',
    "no UTF-8": b'{"step": 6, "\xff\xfe": 1}',
    "deep": b"[" * 100_000,
    "a number": b"6",
    "no step": b'{"loss": 1}',
    "UTF-16": '{"step": 2}'.encode("utf-16"),
}
RHYTHM = settings(STEPS, log_every=2, save_every=4)


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a state after step 4 and lines up to step 6; whole is the run uninterrupted."""
    folder = tmp_path_factory.mktemp("crashed")
    list(start(folder / "whole", flow_matching(), settings=RHYTHM))
    records = start(folder / "run", flow_matching(), settings=RHYTHM)
    assert [next(records).step for _ in range(7)][-1] == 7
    del records
    return folder


@pytest.mark.parametrize(("line", "garbage"), [(3 + k % 2, garbage) for k, garbage in enumerate(GARBAGE)])
def test_garbage_behind_the_saved_step_is_cut_and_the_run_goes_on(
    line: int, garbage: str, crashed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(crashed / "run", run)
    rows = (run / "stats.jsonl").read_bytes().splitlines()[: line - 1]
    (run / "stats.jsonl").write_bytes(b"\n".join([*rows, GARBAGE[garbage], b"\0" * 7, b'{"step": 8'[:9]]))
    with pytest.warns(UserWarning, match=rf"stats.jsonl: 2? ?lines?.* {line} .*crash.*after 4 are taken again") as told:
        list(start(run, flow_matching(), settings=RHYTHM, resume="auto"))
    assert len(told) == 1
    assert lines(run) == lines(crashed / "whole")
    assert files(run) == files(crashed / "whole")
    assert not (run / "stats.jsonl.damaged").exists()


@pytest.mark.parametrize(("line", "garbage"), [(1 + k % 2, garbage) for k, garbage in enumerate(GARBAGE)])
def test_lines_before_the_saved_step_that_cannot_be_read_are_kept_aside(
    line: int, garbage: str, crashed: Path, tmp_path: Path
) -> None:
    """The second is that of the saved step itself, behind which all is well."""
    run = tmp_path / "run"
    shutil.copytree(crashed / "run", run)
    rows = (run / "stats.jsonl").read_bytes().splitlines(keepends=True)
    rows[line - 1] = GARBAGE[garbage] + b"\n"
    content = b"".join(rows)
    (run / "stats.jsonl").write_bytes(content)
    with pytest.warns(UserWarning, match=rf"stats.jsonl: line {line} cannot be read.* aside as stats.jsonl.damaged"):
        list(start(run, flow_matching(), settings=RHYTHM, resume="auto"))
    assert (run / "stats.jsonl.damaged").read_bytes() == content
    assert lines(run) == [row for row in lines(crashed / "whole") if row["step"] != 2 * line]
    assert files(run) == files(crashed / "whole")


# ---------------------------------------------------------------------------------------------------------- full disks


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["log", "preview"])
def test_a_disk_that_is_full_between_two_states_is_told_with_the_amounts(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rhythm = settings(STEPS, log_every=1, preview_every=6, save_every=4)
    records = start(tmp_path, flow_matching(), settings=rhythm, preview=full if what == "preview" else None)
    assert [next(records).step for _ in range(5)][-1] == 5
    if what == "log":
        if not Path("/dev/full").exists():
            pytest.skip("the system has no device that is always full")
        (tmp_path / "stats.jsonl").rename(tmp_path / "before")
        (tmp_path / "stats.jsonl").symlink_to("/dev/full")
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**18))
    name = {"log": "the next line of stats.jsonl", "preview": "the preview step-00000006.png"}[what]
    told = rf"the disk is full: {name} needs 1.0 MiB in .*, and 0.2 MiB are free. The newest .* whole \(.*00000004\)"
    with pytest.raises(CheckpointError, match=told):
        next(records)
    monkeypatch.undo()
    if what == "log":
        (tmp_path / "before").replace(tmp_path / "stats.jsonl")
    assert next(start(tmp_path, flow_matching(), settings=rhythm, resume=True)).step == 5


ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from shortflow.errors import CheckpointError
from shortflow.recipes import flow_matching
from tiny import settings
from tinyruns import start

disk, rhythm = Path(sys.argv[1]), settings(12, log_every=1, save_every=4)
try:
    for record in start(disk / "run", flow_matching(), settings=rhythm):
        if record.step == 5:  # others fill the disk to its last byte
            with open(disk / "others", "wb", buffering=0) as file:
                try:
                    while file.write(bytes(512)):
                        pass
                except OSError as error:
                    print(error)
except CheckpointError as error:
    print(error)
(disk / "others").unlink()
print([record.step for record in start(disk / "run", flow_matching(), settings=rhythm, resume=True)])
"""


def test_a_real_disk_that_is_full_stops_the_run_which_goes_on_when_there_is_space(tmp_path: Path) -> None:
    mount = f"mount -t tmpfs -o size=6m none {tmp_path}"
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*alone, mount], capture_output=True).returncode:
        pytest.skip("the system lets nobody mount a disk of its own")
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parent / "src"), str(here)])}
    command = [*alone, f'{mount} && exec "$0" -c "$1" {tmp_path}', sys.executable, ON_A_SMALL_DISK]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    system, told, steps = done.stdout.splitlines()
    assert system == f"[Errno {errno.ENOSPC}] {os.strerror(errno.ENOSPC)}"
    assert re.fullmatch(
        rf"the disk is full: the (next line of stats.jsonl|state after step 8) needs 1\.\d MiB in {tmp_path}/run.*, "
        rf"and 0\.0 MiB are free\. .*00000004\)\. Make space, .* go on with --resume",
        told,
    ), told
    assert steps == str(list(range(5, 13)))
