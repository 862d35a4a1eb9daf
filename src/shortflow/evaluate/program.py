"""Feature networks of your own as files: exported programs (`torch.export`) with what their input must be.

`save_program` writes one, for instance of a DINOv2 that was fetched elsewhere; `load_program` makes an `Extractor` of
it. A file may hold tensors and a graph of operators only: pickled objects and compiled libraries, which the format has
places for, are refused before anything is loaded. PyTorch evaluates the expressions for sizes in a graph all the same,
so a program deserves the trust that its author does. Open none from strangers.
"""

import io
import json
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from shortflow.errors import MetricError
from shortflow.evaluate.extractor import BATCH, Activations, Extractor
from shortflow.files import atomic_path, sha256_of

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "load_program", "save_program"]

# Of the pixels of ImageNet in levels 0…255: what DINOv2 and most networks trained on it are normalised by.
IMAGENET_MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
IMAGENET_STD = (0.229 * 255, 0.224 * 255, 0.225 * 255)

_RECORD = "shortflow.json"
_FORMAT = 1
_MAY_EXECUTE = ("custom_obj_", "opaque_obj_")


def save_program(
    path: str | Path,
    network: nn.Module,
    *,
    name: str,
    size: int,
    resize: str = "bicubic-antialias",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    channels: int = 3,
) -> None:
    """Write `network`, normalised images (n, channels, size, size) → features (n, d), to a .pt2 file.

    Args:
        name: what the features are called in tables.
        size, resize, mean, std: as for `Extractor`. The defaults are those of FD-DINOv2 with size=224 (Stein et al.
            2023, arXiv:2306.04675).

    Raises:
        MetricError: if the settings are impossible or the output is not (n, d).
    """
    path = Path(path)
    if path.suffix != ".pt2":
        raise MetricError(f"{path}: an exported program has the ending .pt2")
    network = network.eval()
    example = torch.zeros(2, channels, size, size)
    with torch.no_grad():
        out = network(example)
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != 2:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise MetricError(f"{name}: features must be an array (n, d), the network gave {shape} for 2 images")
    record = {
        "format": _FORMAT,
        "name": name,
        "dimension": out.shape[1],
        "size": size,
        "resize": resize,
        "mean": list(mean),
        "std": list(std),
        "channels": channels,
    }
    _extractor(record, "", lambda x: Activations(features=x), "cpu")  # says what is wrong
    rows = torch.export.Dim("rows", min=1, max=BATCH)
    program = torch.export.export(network, (example,), dynamic_shapes=({0: rows},))
    with atomic_path(path) as temporary:
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={_RECORD: json.dumps(record)})
        temporary.write_bytes(content.getvalue())


def load_program(path: str | Path, *, device: str = "cpu") -> Extractor:
    """The features that a file of `save_program` computes.

    Raises:
        MetricError: if it is no such file, or holds what may execute.
    """
    path = Path(path).expanduser()
    _check(path)
    extra = {_RECORD: ""}
    try:
        program = torch.export.load(str(path), extra_files=extra)
        record = json.loads(extra[_RECORD])
        if record.pop("format") != _FORMAT:
            raise ValueError("of another version of shortflow")
        if device != "cpu":
            program = move_to_device_pass(program, device)
        module: Any = program.module()
    except Exception as error:  # whatever the reader of a damaged file raises
        raise MetricError(
            f"{path}: is no program of features ({str(error).splitlines()[0][:200] if str(error) else error!r}); write "
            "it with shortflow.evaluate.save_program"
        ) from error
    return _extractor(record, sha256_of(path), lambda x: Activations(features=module(x)), device)


def _extractor(record: dict[str, Any], digest: str, network: Any, device: str) -> Extractor:
    return Extractor(
        name=str(record["name"]),
        weights=digest,
        dimension=int(record["dimension"]),
        network=network,
        size=int(record["size"]),
        resize=str(record["resize"]),
        mean=tuple(float(value) for value in record["mean"]),
        std=tuple(float(value) for value in record["std"]),
        channels=int(record["channels"]),
        device=device,
    )


def _check(path: Path) -> None:
    """Raise `MetricError` unless the file is an archive of JSON, plain tensors and nothing that may execute."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                _check_entry(archive, entry)
    except FileNotFoundError as error:
        raise MetricError(f"there is no file {path}; give an exported program, NAME.pt2") from error
    except (OSError, zipfile.BadZipFile, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, MetricError):
            raise MetricError(f"{path}: {error}") from None
        raise MetricError(
            f"{path}: is no program of features ({error}); write it with shortflow.evaluate.save_program"
        ) from error


def _check_entry(archive: zipfile.ZipFile, entry: str) -> None:
    name = entry.rsplit("/", 1)[-1]
    refused = MetricError(f"holds {entry}, which may execute code when it is read; write it with save_program")
    if "/aotinductor/" in entry or name.startswith(_MAY_EXECUTE) or name.endswith((".so", ".py", ".pyc")):
        raise refused
    if name.endswith(".json") and _names_pickles(json.loads(archive.read(entry))):
        raise refused
    if name.endswith(".pt"):
        try:
            torch.load(io.BytesIO(archive.read(entry)), weights_only=True)
        except Exception:  # objects that are no tensors, or nothing readable
            raise refused from None


def _names_pickles(value: Any) -> bool:
    """Whether a configuration of weights says that one of them is pickled."""
    if isinstance(value, dict):
        return bool(value.get("use_pickle")) or any(map(_names_pickles, value.values()))
    return isinstance(value, list) and any(map(_names_pickles, value))
