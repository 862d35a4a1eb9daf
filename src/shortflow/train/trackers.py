"""Where the lines of the log go beside stats.jsonl: TensorBoard, and the other trackers that accelerate knows.

    train.trackers: [tensorboard]            RUN/tensorboard/; [tensorboard, wandb] for two of them, [] for none

A tracker is opened with the first line of the log. It gets the resolved run, the numbers of every line and, where it
shows images, the previews. The record of a run is stats.jsonl: a tracker that fails is said once, and training goes on.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType
from PIL import Image

from shortflow.errors import ConfigError

__all__ = ["Trackers", "check_trackers", "missing_curves"]

PROJECT = "shortflow"  # where a tracker has projects of many runs
_PACKAGES = {"comet_ml": "comet-ml"}  # where pip has another name for it
_LONGEST = 10  # a tracker that fails again and again is tried once in 2¹⁰ times


def check_trackers(names: Sequence[str]) -> None:
    """Raise `ConfigError` unless accelerate knows all trackers and they are installed, but for TensorBoard."""
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(
                f"train.trackers: there is no tracker called {name!r}, there are {', '.join(LOGGER_TYPE_TO_CLASS)}"
            )
        if name != "tensorboard" and not _installed(name):
            raise ConfigError(
                f"train.trackers: {name} is not installed; pip install {_PACKAGES.get(name, name)}, or leave it out"
            )


def missing_curves(names: Sequence[str]) -> str | None:
    """A remark where TensorBoard, which every run asks for by default, is not installed."""
    if "tensorboard" not in names or _installed("tensorboard"):
        return None
    return "TensorBoard is not installed, so there are no curves beside stats.jsonl (pip install tensorboard)"


def _installed(name: str) -> bool:
    if name not in LoggerType:  # registered by the user (`accelerate.tracking.register_tracker_class`), and so there
        return True
    return LoggerType(name) in get_available_trackers()


class Trackers:
    """The trackers of a run, by their names.

    Args:
        directory: of the run; its name is the run's, and files go below it where the tracker can be told so.
        run: the resolved run as plain values.
    """

    def __init__(self, names: Sequence[str], directory: Path, run: Mapping[str, Any]) -> None:
        self.names = tuple(name for name in names if _installed(name))
        self.directory, self.run = directory, run
        self._open: list[_Guarded] | None = None

    def log(self, line: Mapping[str, Any], step: int) -> None:
        """The numbers among the values of a line of the log."""
        numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
        for each in self._trackers():
            each.attempt(lambda tracker: tracker.log(numbers, step=step))

    def picture(self, path: Path, step: int) -> None:
        """A preview, for those that show images."""
        for each in self._trackers():
            if each.name in _IMAGES and path.is_file():
                each.attempt(lambda tracker, name=each.name: _IMAGES[name](tracker, path, step))

    def finish(self) -> None:
        """Close them."""
        for each in self._open or ():
            each.attempt(lambda tracker: tracker.finish(), always=True)
        self._open = []

    def _trackers(self) -> "list[_Guarded]":
        """Those that could be opened."""
        if self._open is None:
            all_of_them = [_Guarded(name, self.directory, self.run) for name in self.names]
            self._open = [each for each in all_of_them if each.attempt(lambda _, each=each: each.open())]
        return self._open


class _Guarded:
    """A tracker whose failures are none of the run: said once, and after each in a row it is left alone twice as long.

    It may wait for a network that is down, which a run must not do with every line.
    """

    def __init__(self, name: str, directory: Path, run: Mapping[str, Any]) -> None:
        self.name, self.directory, self.run = name, directory, run
        self.tracker: Any = None
        self._failures, self._pause, self._said = 0, 0, False

    def open(self) -> None:
        self.tracker = _built(self.name, self.directory)
        self.tracker.start()
        if self.name == "comet_ml":
            self.tracker.tracker.set_name(self.directory.resolve().name)
        settings = _flat(self.run)
        if self.name == "tensorboard":  # accelerate's way makes two folders at every start, each a run in TensorBoard
            lines = (f"    {name}: {value}" for name, value in settings.items())
            self.tracker.log({"run": "\n".join(lines)}, step=0)
        else:
            self.tracker.store_init_configuration(settings)

    def attempt(self, act: Callable[[Any], object], always: bool = False) -> bool:
        """Whether `act` did what it does with the tracker."""
        if self._pause and not always:
            self._pause -= 1
            return False
        try:
            act(self.tracker)
        except Exception as error:  # whatever a network, a server or a disk may raise
            self._failures += 1
            self._pause = 2 ** min(self._failures, _LONGEST) - 1
            if not self._said:
                warnings.warn(
                    f"the tracker {self.name} failed ({type(error).__name__}: {error}); training goes on, and "
                    "stats.jsonl has every line",
                    stacklevel=4,
                )
            self._said = True
            return False
        self._failures = 0
        return True


def _built(name: str, directory: Path) -> Any:
    """The tracker, with the name of the run and the place of its files where it can be told them."""
    kind, run = LOGGER_TYPE_TO_CLASS[name], directory.resolve().name
    if name == "tensorboard":
        return kind("tensorboard", str(directory))
    if name == "swanlab":
        (directory / "swanlab").mkdir(exist_ok=True)
    told: dict[str, dict[str, Any]] = {
        "wandb": {"name": run, "dir": str(directory)},
        "trackio": {"name": run},
        "comet_ml": {},  # its name is set when it is open
        "mlflow": {"run_name": run},
        "clearml": {"task_name": run},
        "swanlab": {"experiment_name": run, "logdir": str(directory / "swanlab")},
    }
    if name in told:
        return kind(PROJECT, **told[name])
    if name == "dvclive":  # without resume it would remove what a resumed run has written before
        place = directory / "dvclive"
        return kind(run, dir=str(place), dvcyaml=str(place / "dvc.yaml"), resume=True)
    return kind(run, str(directory)) if kind.requires_logging_directory else kind(run)


def _flat(values: Any, path: str = "") -> dict[str, bool | int | float | str | None]:
    """Settings by dotted path; lists as JSON."""
    if isinstance(values, Mapping):
        parts = (_flat(value, f"{path}.{name}".lstrip(".")) for name, value in values.items())
        return {name: value for part in parts for name, value in part.items()}
    return {path: json.dumps(values) if isinstance(values, list | tuple) else values}


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _to_tensorboard(tracker: Any, path: Path, step: int) -> None:
    tracker.log_images({"samples": _pixels(path)[None]}, step=step, dataformats="NHWC")


def _to_list(tracker: Any, path: Path, step: int) -> None:
    tracker.log_images({"samples": [_pixels(path)]}, step=step)


_IMAGES = {"tensorboard": _to_tensorboard, "wandb": _to_list, "swanlab": _to_list}
