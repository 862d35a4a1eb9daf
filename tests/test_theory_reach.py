"""The reach of the plug-in velocity: golden batches, Rao–Blackwell, and 4096 dimensions."""

import pytest
import torch

from oracles import column, f64
from shortflow.errors import ShortflowError
from shortflow.paths import Cosine, Linear, Path
from shortflow.plugin import plug_in_velocity
from shortflow.theory import FiniteData, Gaussian
from shortflow.theory.estimates import mean_of
from shortflow.theory.reach import plug_in_level, plug_in_reach


def test_golden_batch() -> None:
    """Own weights and effective sample sizes of methods, section 5.4, P2."""
    x, eps, t = column(-1, 0.2, 1.5), column(0.5, -0.3, 0.1), f64(0.3, 0.8, 0.95)
    found = plug_in_reach(Linear(), x, eps, t)
    assert found.own.tolist() == pytest.approx([0.925531408530, 0.344060342663, 0.336781865484], abs=1e-11)
    assert found.size.tolist() == pytest.approx([1.159886, 2.980230, 2.999761], abs=1e-6)
    assert found.active.tolist() == [True, True, True]


@pytest.mark.parametrize("path", [Linear(), Cosine(noise_scale=0.5)])
def test_what_is_removed_is_the_variance_of_the_mixture(path: Path) -> None:
    """Σ_i γ_i ‖v_i − v̂‖² is the velocity variance of the batch as a finite data set, at each row's point."""
    x, eps = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    t = f64(0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
    law = FiniteData(path=path, points=x)
    found = plug_in_reach(path, x, eps, t)
    torch.testing.assert_close(found.removed, law.velocity_variance(path.interpolate(x, eps, t), t))
    some = torch.tensor([4, 1])
    allowed = torch.eye(6, dtype=torch.bool)[some]
    alone = plug_in_reach(path, x, eps, t, allowed, some)
    assert alone.own.tolist() == [1, 1]
    assert alone.removed.tolist() == [0, 0]
    bank = plug_in_reach(path, x[2:4], eps[2:4], t[2:4], pool=x, first=2)
    torch.testing.assert_close(bank.removed, found.removed[2:4])


def test_what_is_removed_and_what_is_left_add_up(generator: torch.Generator) -> None:
    """1.925 = .301 + 1.625 for c = 1, B = 8, t = .6, noise 1: methods, section 6.3. Many batches as blocks of one."""
    law, total, groups = Gaussian(path=Linear(), std=1.0), 1 / 0.52, 150
    group = torch.arange(8 * groups) // 8
    allowed = group[:, None] == group
    removed, left = [], []
    for _ in range(8):
        x, eps = (torch.randn(8 * groups, 1, generator=generator, dtype=torch.float64) for _ in range(2))
        t = torch.full((8 * groups,), 0.6, dtype=torch.float64)
        removed.append(plug_in_reach(law.path, x, eps, t, allowed).removed)
        exact = law.velocity(law.path.interpolate(x, eps, t), t)
        left.append((plug_in_velocity(law.path, x, eps, t, allowed) - exact)[:, 0].square())
    # Rows of one batch depend on each other: batches are what is independent.
    gone, rest = (mean_of(torch.cat(each).reshape(-1, 8).mean(1)) for each in (removed, left))
    assert abs(gone.value - 1.625) < 5 * gone.error
    assert abs(rest.value - 0.301) < 5 * rest.error
    assert gone.error < 0.03
    assert abs(gone.value + rest.value - total) < 5 * (gone.error + rest.error)


@pytest.mark.parametrize(
    ("time", "own", "size"), [(0.9, 1.0, 1.0), (0.95, 0.483, 3.6), (0.98, 0.044, 26), (0.99, 0.021, None)]
)
def test_the_reach_in_4096_dimensions(time: float, own: float, size: float | None, generator) -> None:
    """Independent normal latents of deviation .8, batch 64: methods, section 6.3."""
    owns, sizes = [], []
    for _ in range(8):
        x, eps = (torch.randn(64, 4096, generator=generator) for _ in range(2))
        found = plug_in_reach(Linear(), 0.8 * x, eps, torch.full((64,), time))
        owns.append(found.own.mean())
        sizes.append(found.size.mean())
    # The figures are of one batch each, so they scatter about the mean as single batches do.
    for measured, want in ((torch.stack(owns), own), (torch.stack(sizes), size)):
        if want is not None:
            assert abs(measured.mean() - want) < 4 * measured.std() + 1e-3
            assert measured.std() < 0.15 * want


def test_the_rule_for_the_reach_is_right_within_a_factor() -> None:
    """Pairs at distance .8 √(2·4096) = 72.4, B = 64: η = 25, t = .96, between .95 (own .48) and .98 (.04)."""
    level = plug_in_level(0.8 * (2 * 4096) ** 0.5, 64)
    assert level / (1 + level) == pytest.approx(0.962, abs=0.001)
    with pytest.raises(ShortflowError, match="conditional one"):
        plug_in_level(1.0, 1)
