"""The precision of the plug-in velocity's products, its images from elsewhere, and the memory that it takes."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.measure import peak_memory
from shortflow.paths import Cosine, Linear
from shortflow.plugin import plug_in_velocity, plug_in_weights, pooled

MATMULS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
new = pytest.mark.skipif(not hasattr(MATMULS[0], "fp32_precision"), reason="torch before 2.9 has one setting only")


def batch(b: int, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, b, *shape, generator=g, dtype=dtype)
    return 0.8 * x, eps, torch.rand(b, generator=g, dtype=dtype)


class Precisions(TorchDispatchMode):
    """The settings under which matrix products run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.startswith(("mm", "addmm", "bmm")):
            self.seen.append((args[0].dtype, *precisions()))
        return func(*args, **(kwargs or {}))


def precisions() -> tuple[str, ...]:
    return tuple(each.fp32_precision for each in MATMULS)


@contextmanager
def by_name(value: str) -> Iterator[None]:
    """The older setting, for all devices at once."""
    torch.set_float32_matmul_precision(value)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


@contextmanager
def by_field(value: str) -> Iterator[None]:
    """The newer setting, of one device, after which the older one cannot be read."""
    MATMULS[0].fp32_precision = value
    try:
        yield
    finally:
        MATMULS[0].fp32_precision = "ieee"
        torch.set_float32_matmul_precision("highest")


@new
@pytest.mark.parametrize(("way", "value"), [(by_name, "high"), (by_name, "medium"), (by_field, "tf32")])
def test_products_are_in_full_float32_whatever_is_set(way: Any, value: str) -> None:
    x, eps, t = batch(6, 3)
    with way(value), Precisions() as found:
        before = precisions()
        assert any(each not in ("ieee", "none") for each in before)
        plug_in_velocity(Linear(), x, eps, t)
        plug_in_weights(Linear(), x, eps, t)
        assert precisions() == before
    assert len(found.seen) == 3
    assert all(dtype == torch.float32 and {*each} <= {"ieee", "none"} for dtype, *each in found.seen)


@new
def test_the_setting_comes_back_after_an_error() -> None:
    x, eps, t = batch(4, 3)
    with by_name("high"):
        before = precisions()
        with pytest.raises(RuntimeError):
            plug_in_velocity(Linear(), x, eps, t, pool=x[:, :2])
        assert precisions() == before


def test_nothing_is_set_where_nothing_is_shortened() -> None:
    """Settings that were never made stay inherited from those of all devices."""
    code = (
        "import torch; from shortflow.paths import Linear; from shortflow.plugin import plug_in_velocity\n"
        "plug_in_velocity(Linear(), torch.randn(4, 2), torch.randn(4, 2), torch.rand(4))\n"
        "devices = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul\n"
        "print([getattr(device, 'fp32_precision', 'none') for device in devices])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "['none', 'none']"


@new
def test_an_inherited_setting_stays_inherited() -> None:
    x, eps, t = batch(4, 3)
    try:
        MATMULS[0].fp32_precision = "none"
        torch.backends.fp32_precision = "tf32"
        plug_in_velocity(Linear(), x, eps, t)
        assert MATMULS[0].fp32_precision == "tf32"
        torch.backends.fp32_precision = "ieee"
        assert MATMULS[0].fp32_precision == "ieee"
    finally:
        torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(("setting", "dtype"), [("highest", torch.float32), ("high", torch.float64)])
def test_a_graph_that_cannot_set_a_precision_takes_a_larger_one(setting: str, dtype: torch.dtype) -> None:
    x, eps, t = batch(6, 3)
    expected = plug_in_velocity(Linear(), x, eps, t)
    with by_name(setting), warnings.catch_warnings():
        torch._dynamo.reset()
        seen: list[torch.dtype] = []

        def backend(graph: torch.fx.GraphModule, example: Any) -> Any:
            class Watched(torch.fx.Interpreter):
                def run_node(self, n: torch.fx.Node) -> Any:
                    result = super().run_node(n)
                    if n.op == "call_function" and n.target.__name__ == "matmul":  # type: ignore[union-attr]
                        seen.append(result.dtype)
                    return result

            return Watched(graph).run

        compiled = torch.compile(lambda *args: plug_in_velocity(Linear(), *args), backend=backend, fullgraph=True)
        found = compiled(x, eps, t)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert found.dtype == torch.float32
    assert seen == [dtype] * 2


@pytest.mark.parametrize("path", [Linear(), Cosine()], ids=repr)
@pytest.mark.parametrize("masked", [False, True])
def test_a_batch_among_more_images_has_the_velocity_of_those_rows_of_all(path: Any, masked: bool) -> None:
    x, eps, t = batch(9, 2, 3, dtype=torch.float64)
    label = torch.arange(9) % 3
    allowed = label[:, None] == label if masked else None
    whole = plug_in_velocity(path, x, eps, t, allowed)
    mine, rows = slice(3, 7), torch.tensor([0, 2, 3])
    for chosen in (None, rows):
        among = allowed if allowed is None else allowed[mine] if chosen is None else allowed[mine][chosen]
        found = plug_in_velocity(path, x[mine], eps[mine], t[mine], among, chosen, pool=x, first=3)
        expected = whole[mine] if chosen is None else whole[mine][chosen]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(plug_in_velocity(path, x[mine], eps[mine], t[mine]), whole[mine])


def test_one_process_has_no_other_images() -> None:
    assert pooled(torch.randn(4, 2), None) is None


def test_a_large_batch_takes_little_memory() -> None:
    """B = 512 latents of 4×32×32: 2·B² weights and a few copies of the batch (8 MiB), in less than 50 MiB."""
    x, eps, t = batch(512, 4, 32, 32)
    allowed = torch.ones(512, 512, dtype=torch.bool)
    assert peak_memory(lambda: plug_in_velocity(Linear(), x, eps, t, allowed)) <= 50 * 2**20
    rows = torch.arange(0, 512, 2)
    assert peak_memory(lambda: plug_in_velocity(Linear(), x, eps, t, allowed[rows], rows)) <= 50 * 2**20
