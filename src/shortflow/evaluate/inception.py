"""The Inception-v3 that FID is defined by: the TensorFlow graph of December 2015, with its quirks.

It differs from the network of the paper (Szegedy et al. 2015, arXiv:1512.00567) and from other packages' Inception-v3:
1008 classes; average pools do not count the padding; the last block pools by maximum. Input (x − 128)/128 after the
resize of TensorFlow 1. Names of parts and weights are those of `pt_inception-2015-12-05-6726825d.pth`, which holds the
graph's weights for PyTorch (94 convolutions without bias, each with its batch norm, ε = 10⁻³; one linear layer).

Outputs: the 2048 means over the last feature map (`pool_3`); 1008 logits, by default without their bias, as ADM and
torch-fidelity take them for the Inception score; the first 7 channels of the first branch of `Mixed_6d`
(`mixed_6/conv`, 17×17) in the order (row, column, channel), 2023 numbers, for sFID (Nash et al. 2021,
arXiv:2103.03841).

Weights are named by a path or the environment variable SHORTFLOW_INCEPTION and are never fetched unasked.
"""

import hashlib
import os
import pickle
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from shortflow.data.images import cache_folder
from shortflow.errors import MetricError
from shortflow.evaluate.extractor import Activations, Extractor
from shortflow.files import atomic_path, sha256_of
from shortflow.typing import Report

__all__ = ["FILE", "SHA256", "URLS", "VARIABLE", "Inception", "download_inception", "find_inception", "load_inception"]

FILE = "pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # of the file, under both its names
URLS = (
    f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
)
VARIABLE = "SHORTFLOW_INCEPTION"
CLASSES, POOL, SPATIAL, SIDE = 1008, 2048, 7, 299
_LARGEST = 2**28  # bytes of a download


class Conv(NamedTuple):
    """A convolution by name; a side of its kernel stands for both."""

    name: str
    out: int
    kernel: int | tuple[int, int]
    stride: int = 1
    padded: bool = True


AVERAGE, MAXIMUM, SHRINK = "average", "maximum", "shrink"  # 3×3 pools: two that keep the size, one of stride 2
Branch = Sequence[Any]  # of names of pools, `Conv`s, and last, maybe, a list of `Conv`s side by side


def _a(pool: int) -> list[Branch]:
    return [
        [Conv("branch1x1", 64, 1)],
        [Conv("branch5x5_1", 48, 1), Conv("branch5x5_2", 64, 5)],
        [Conv("branch3x3dbl_1", 64, 1), Conv("branch3x3dbl_2", 96, 3), Conv("branch3x3dbl_3", 96, 3)],
        [AVERAGE, Conv("branch_pool", pool, 1)],
    ]


def _b() -> list[Branch]:
    return [
        [Conv("branch3x3", 384, 3, 2, False)],
        [Conv("branch3x3dbl_1", 64, 1), Conv("branch3x3dbl_2", 96, 3), Conv("branch3x3dbl_3", 96, 3, 2, False)],
        [SHRINK],
    ]


def _c(inner: int) -> list[Branch]:
    across, down = (1, 7), (7, 1)
    double = [Conv(f"branch7x7dbl_{i}", inner, (down, across)[i % 2]) for i in (2, 3, 4)]
    return [
        [Conv("branch1x1", 192, 1)],
        [Conv("branch7x7_1", inner, 1), Conv("branch7x7_2", inner, across), Conv("branch7x7_3", 192, down)],
        [Conv("branch7x7dbl_1", inner, 1), *double, Conv("branch7x7dbl_5", 192, across)],
        [AVERAGE, Conv("branch_pool", 192, 1)],
    ]


def _d() -> list[Branch]:
    seven = [Conv("branch7x7x3_1", 192, 1), Conv("branch7x7x3_2", 192, (1, 7)), Conv("branch7x7x3_3", 192, (7, 1))]
    return [
        [Conv("branch3x3_1", 192, 1), Conv("branch3x3_2", 320, 3, 2, False)],
        [*seven, Conv("branch7x7x3_4", 192, 3, 2, False)],
        [SHRINK],
    ]


def _e(pool: str) -> list[Branch]:
    def fork(name: str) -> list[Conv]:
        return [Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1))]

    return [
        [Conv("branch1x1", 320, 1)],
        [Conv("branch3x3_1", 384, 1), fork("branch3x3_2")],
        [Conv("branch3x3dbl_1", 448, 1), Conv("branch3x3dbl_2", 384, 3), fork("branch3x3dbl_3")],
        [pool, Conv("branch_pool", 192, 1)],
    ]


_STEM: Branch = (
    Conv("Conv2d_1a_3x3", 32, 3, 2, False),
    Conv("Conv2d_2a_3x3", 32, 3, 1, False),
    Conv("Conv2d_2b_3x3", 64, 3),
    SHRINK,
    Conv("Conv2d_3b_1x1", 80, 1),
    Conv("Conv2d_4a_3x3", 192, 3, 1, False),
    SHRINK,
)
_BLOCKS = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": _b(),
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": _d(),
    "Mixed_7b": _e(AVERAGE),
    "Mixed_7c": _e(MAXIMUM),  # a slip of 2015 that every FID has in it
}


def _pool(kind: str, x: Tensor) -> Tensor:
    if kind == SHRINK:
        return F.max_pool2d(x, 3, 2)
    if kind == MAXIMUM:
        return F.max_pool2d(x, 3, 1, 1)
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class _Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, conv: Conv) -> None:
        super().__init__()
        kernel = (conv.kernel, conv.kernel) if isinstance(conv.kernel, int) else conv.kernel
        padding = (kernel[0] // 2, kernel[1] // 2) if conv.padded else (0, 0)
        self.conv = nn.Conv2d(inputs, conv.out, kernel, conv.stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(conv.out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _add(module: nn.Module, branch: Branch, inputs: int) -> int:
    """Give `module` the units of a branch; the number of channels that it ends with."""
    for step in branch:
        if isinstance(step, list):
            for conv in step:
                module.add_module(conv.name, _Unit(inputs, conv))
            return sum(conv.out for conv in step)
        if isinstance(step, Conv):
            module.add_module(step.name, _Unit(inputs, step))
            inputs = step.out
    return inputs


def _follow(module: nn.Module, branch: Branch, x: Tensor) -> Tensor:
    for step in branch:
        if isinstance(step, list):
            return torch.cat([module.get_submodule(conv.name)(x) for conv in step], 1)
        x = module.get_submodule(step.name)(x) if isinstance(step, Conv) else _pool(step, x)
    return x


class _Block(nn.Module):
    """Branches side by side."""

    def __init__(self, inputs: int, branches: list[Branch]) -> None:
        super().__init__()
        self.branches = branches
        self.out = sum(_add(self, branch, inputs) for branch in branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([_follow(self, branch, x) for branch in self.branches], 1)


class Inception(nn.Module):
    """The network: (n, 3, 299, 299) in (x − 128)/128 → `Activations` of 2048, 1008 and 2023 numbers.

    Args:
        bias: whether the logits have their bias. The Inception scores of ADM and torch-fidelity leave it out.
    """

    def __init__(self, *, bias: bool = False) -> None:
        super().__init__()
        self.bias = bias
        channels = _add(self, _STEM, 3)
        for name, branches in _BLOCKS.items():
            block = _Block(channels, branches)
            self.add_module(name, block)
            channels = block.out
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Activations:
        x = _follow(self, _STEM, x)
        spatial = x
        for name in _BLOCKS:
            x = self.get_submodule(name)(x)
            if name == "Mixed_6d":
                spatial = x[:, :SPATIAL]  # of its first branch
        features = x.mean((2, 3))
        return Activations(
            features=features,
            logits=F.linear(features, self.fc.weight, self.fc.bias if self.bias else None),
            spatial=spatial.permute(0, 2, 3, 1).flatten(1),
        )


# -------------------------------------------------------------------------------------------------------------- weights


def find_inception(path: str | Path | None = None) -> Path:
    """The file of weights: `path`, or what SHORTFLOW_INCEPTION names, or what `download_inception` has fetched.

    Raises:
        MetricError: if there is none; says what to fetch, and where it goes.
    """
    given = path or os.environ.get(VARIABLE) or None
    file = Path(given).expanduser() if given else cache_folder() / "inception" / FILE
    if file.is_file():
        return file
    what = f"there is no file {file}" if given else "no weights were given"
    raise MetricError(
        f"Inception-v3: {what}. Fetch {URLS[0]} (91 MiB, SHA-256 {SHA256}) and name it by --inception FILE or "
        f"{VARIABLE}=FILE; or have it fetched, once, by --download"
    )


def load_inception(
    path: str | Path | None = None, *, device: str = "cpu", published: bool = True, bias: bool = False
) -> Extractor:
    """The features that FID, sFID and Inception scores are of.

    Args:
        path: a .pth file, which is never unpickled beyond tensors, or .safetensors, with the standard names; None: see
            `find_inception`.
        published: refuse any file but the published one. Without it other weights are taken, and no distance is FID.
        bias: see `Inception`.

    Raises:
        MetricError: if there is no file, it is not the published one, or holds other tensors than the network has.
    """
    file = find_inception(path)
    digest = sha256_of(file)
    if published and digest != SHA256:
        raise MetricError(
            f"{file}: SHA-256 {digest}, but that of the published Inception weights is {SHA256}; fetch them anew "
            f"({URLS[0]}). To score with these weights all the same, which is not FID: --other-weights"
        )
    tensors = _read(file)
    with torch.device("meta"):
        network = Inception(bias=bias)
    _check(file, network, tensors)
    network.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=False, assign=True)
    counts = {name: torch.tensor(0) for name in network.state_dict() if name.endswith("num_batches_tracked")}
    network.load_state_dict(counts, strict=False, assign=True)  # counts nothing here; older files have none
    network.to(device).requires_grad_(False).eval()
    return Extractor(
        name="inception-2015-12-05" + ("-bias" if bias else ""),
        weights=_digest(tensors),
        dimension=POOL,
        network=network,
        size=SIDE,
        resize="tf1-bilinear",
        mean=(128.0,),
        std=(128.0,),
        device=device,
        published=digest == SHA256 and not bias,
        origin={"file": file.name, "file_sha256": digest},
    )


def _read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file, without the counts of batches."""
    try:
        if file.suffix == ".safetensors":
            found: Any = load_file(file)
        else:
            found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise MetricError(
            f"{file}: cannot be read as tensors ({str(error).splitlines()[0][:200]}); give the published file {FILE}, "
            "or a .safetensors file with its names. Objects are never unpickled"
        ) from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise MetricError(f"{file}: holds a {type(found).__name__}, not a dictionary of tensors by name; give {FILE}")
    return {name: value for name, value in found.items() if not name.endswith("num_batches_tracked")}


def _check(file: Path, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    if "fc.weight" in tensors and tensors["fc.weight"].shape[0] == 1000:
        raise MetricError(f"{file}: these are torchvision's Inception-v3 weights, another network; FID needs {FILE}")
    wanted = {n: tuple(v.shape) for n, v in network.state_dict().items() if not n.endswith("num_batches_tracked")}
    faults = [f"{name} is missing" for name in wanted if name not in tensors]
    faults += [f"{name} is not in the network" for name in tensors if name not in wanted]
    faults += [
        f"{name} is {tensors[name].dtype} of shape {tuple(tensors[name].shape)}, the network wants {shape}"
        for name, shape in wanted.items()
        if name in tensors and (tuple(tensors[name].shape) != shape or not tensors[name].is_floating_point())
    ]
    faults += [
        f"{name} is not finite"
        for name, value in tensors.items()
        if name in wanted and not bool(value.isfinite().all())
    ]
    if faults:
        more = f", and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise MetricError(
            f"{file}: not the weights of the FID Inception-v3: {'; '.join(faults[:3])}{more}; give {FILE}"
        )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names and float32 values, whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().float().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def download_inception(report: Report | None = None, urls: Sequence[str] = URLS) -> Path:
    """Fetch the published weights into `cache_folder()`, once, and return the file. Only ever called when asked to.

    Args:
        report: called with (bytes that are there, in all).
        urls: tried in order.

    Raises:
        MetricError: if none of the places answers, or what came is not the published file; nothing is kept then.
    """
    file = cache_folder() / "inception" / FILE
    if file.is_file() and sha256_of(file) == SHA256:
        return file
    failures = []
    for url in urls:
        try:
            with atomic_path(file) as temporary:
                _fetch(url, temporary, report)
                if (digest := sha256_of(temporary)) != SHA256:
                    raise MetricError(f"sent a file with SHA-256 {digest[:12]}…, not {SHA256[:12]}…")
            return file
        except (OSError, ValueError, urllib.error.URLError, MetricError) as error:
            failures.append(f"{url} ({getattr(error, 'reason', None) or error})")
    raise MetricError(
        f"the Inception weights could not be fetched: {'; '.join(failures)}. Fetch the file where there is a network "
        f"(SHA-256 {SHA256}) and name it by --inception FILE or {VARIABLE}=FILE"
    )


def _fetch(url: str, place: Path, report: Report | None) -> None:
    with urllib.request.urlopen(url, timeout=30) as answer, open(place, "wb") as out:
        total = int(answer.headers.get("Content-Length") or 0)
        done = 0
        while part := answer.read(2**20):
            out.write(part)
            done += len(part)
            if done > _LARGEST:
                raise MetricError("sent more than 256 MiB")
            if report is not None:
                report(done, max(total, done))
