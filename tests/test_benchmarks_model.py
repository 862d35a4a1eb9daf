"""The model of many GPUs: one case by hand, its limits, and the table that the docs show."""

from dataclasses import replace

import pytest

from benchmarks import model, report
from benchmarks.model import Assumptions, Network, counted, exchange, step, text

# 10⁹ weights, 10¹¹ operations a pass; 400·10¹² a second, 4 F a step, 2 of them backward; 400 and 50 GB/s.
HAND = Assumptions(
    peak=1e15, share=0.4, cost=4.0, backward=2.0, node=8, inside=400e9, between=50e9, overlap=0.5, rows=32
)
NETWORK = Network(name="net", parameters=10**9, forward=1e11, batch=512)


def test_bytes_are_those_of_a_ring() -> None:
    assert exchange(10**9, 8, "ddp") == pytest.approx(7e9)  # 2 · 7/8 · 4·10⁹
    assert exchange(10**9, 8, "fsdp") == pytest.approx(10.5e9)
    assert exchange(10**9, 64, "ddp") == pytest.approx(7.875e9)
    assert exchange(10**9, 1, "ddp") == exchange(10**9, 1, "fsdp") == 0


def test_a_step_by_hand() -> None:
    """Eight GPUs, 64 images each: C = 64·4·10¹¹/(4·10¹⁴) = 64 ms. DDP: M = 7/400 s = 17.5 ms, half of it hidden."""
    found = step(NETWORK, 8, 64, "ddp", HAND)
    assert (found.compute, found.exchange) == (pytest.approx(0.064), pytest.approx(0.0175))
    assert found.efficiency == pytest.approx(64 / (64 + 8.75))
    # 64 of them, 8 images each: C = 8 ms, of which 4 ms backward; M = 7.875/50 s = 157.5 ms, of which 4 ms are hidden.
    found = step(NETWORK, 64, 8, "ddp", HAND)
    assert (found.compute, found.exchange) == (pytest.approx(0.008), pytest.approx(0.1575))
    assert found.efficiency == pytest.approx(8 / (8 + 153.5))
    # FSDP2 hides behind all of the step: M = 11.8125/50 s = 236.25 ms.
    assert step(NETWORK, 64, 8, "fsdp", HAND).efficiency == pytest.approx(8 / (8 + 228.25))


def test_the_limits_of_the_model() -> None:
    assert step(NETWORK, 1, 64, "ddp", HAND).efficiency == 1
    assert step(NETWORK, 8, 1e9, "ddp", HAND).efficiency == pytest.approx(1)
    everything = replace(HAND, overlap=1.0)
    assert step(NETWORK, 8, 64, "fsdp", everything).efficiency == 1  # 26 ms behind 64 ms
    fast = replace(HAND, between=1e15)
    assert step(NETWORK, 16, 64, "ddp", fast).exchange == pytest.approx(7.5e9 / 400e9)  # the machine sets the pace then
    for way in ("ddp", "fsdp"):
        falling = [step(NETWORK, gpus, 512 / gpus, way, HAND).efficiency for gpus in (8, 64, 512)]
        assert falling == sorted(falling, reverse=True)


def test_networks_are_counted() -> None:
    """DiT-B/2 and XL/2 take 23.0 and 118.6·10⁹ multiplications a pass (Peebles & Xie 2023, table 4: "Gflops"), without
    second time and log-variance, and have 130 and 675 million weights."""
    for name, products, weights, batch in (("SiT-B/2", 23.0, 130, 512), ("SiT-XL/2", 118.6, 675, 256)):
        found = counted(name)
        assert found.forward / 2e9 == pytest.approx(products, rel=0.02)
        assert found.parameters / 1e6 == pytest.approx(weights, rel=0.02)
        assert found.batch == batch


def test_the_table_has_a_line_for_each_number_of_gpus() -> None:
    lines = text([NETWORK], HAND).splitlines()
    assert lines[0].split("|")[-3].strip() == "at 32 images each, DDP"
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    # 32 images: C = 32 ms, 8.75 of 17.5 ms (DDP) and 13.125 of 26.25 ms (FSDP2) stay.
    assert cells == ["net", "8", "7.00 GB, 17.5 ms", "10.50 GB, 26.2 ms", "64", "64.0 ms", "88%", "83%", "79%", "71%"]
    assert [line.split("|")[2].strip() for line in lines[2:5]] == ["8", "64", "512"]
    few = text([replace(NETWORK, batch=256)], HAND).splitlines()[4].strip("|").split("|")
    assert [cell.strip() for cell in few[4:8]] == ["–"] * 4  # 512 GPUs, 256 images
    assert "50 GB/s (400 Gb/s) from a machine to the others; up to 50% of the exchange" in text([NETWORK], HAND)


def test_the_page_has_the_table_of_the_model(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(model.PAGE.read_text())
    model.main(["--page", str(page)])
    printed = capsys.readouterr().out
    assert page.read_text() == model.PAGE.read_text()
    assert printed.strip() in page.read_text()
    before = page.read_text()
    model.main(["--page", str(page), "--between", "25e9"])
    assert "25 GB/s (200 Gb/s)" in capsys.readouterr().out
    assert page.read_text() == before  # other assumptions are for the screen
    with pytest.raises(ValueError, match="must have the blocks"):
        report.filled("nothing", {model.BLOCK: ""})
