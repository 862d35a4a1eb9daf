"""Means, paired tests and Holm's rule, against SciPy and by hand."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from shortflow.errors import ShortflowError
from shortflow.studies.statistics import holm, mean_and_error, paired, student_quantile, student_tail

NUMBERS = st.floats(-100, 100).map(lambda x: round(x, 3))


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 9, 10, 30, 99])
@pytest.mark.parametrize("t", [0.0, 1e-3, 0.1, 0.7, 1.0, 2.5, -4.3, 12.0, 100.0, 1e5])
def test_the_tail_of_students_law_is_scipys(t: float, degrees: int) -> None:
    assert student_tail(t, degrees) == pytest.approx(2 * stats.t.sf(abs(t), degrees), rel=1e-10)


def test_the_tail_has_its_closed_forms() -> None:
    """One degree of freedom: Cauchy's law; two: 1 − t/√(2 + t²)."""
    for t in (0.01, 0.3, 1.0, 7.0):
        assert student_tail(t, 1) == pytest.approx(2 / math.pi * math.atan2(1, t), rel=1e-13)
        assert student_tail(t, 2) == pytest.approx(2 / (2 + t * t + t * math.sqrt(2 + t * t)), rel=1e-13)
    assert student_tail(math.inf, 2) == 0


@pytest.mark.parametrize(("p", "degrees"), [(0.05, 2), (0.001, 2), (0.05 / 21, 4), (1.0, 3)])
def test_the_quantile_inverts_the_tail(p: float, degrees: int) -> None:
    t = student_quantile(p, degrees)
    assert t == pytest.approx(stats.t.isf(p / 2, degrees), rel=1e-9, abs=1e-9)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=12))
def test_paired_tests_are_scipys(pairs: list[tuple[float, float]]) -> None:
    a, b = map(list, zip(*pairs, strict=True))
    spread = max(x - y for x, y in pairs) - min(x - y for x, y in pairs)
    found = paired(a, b)
    assert found.n == len(pairs)
    assert found.difference == pytest.approx(sum(a) / len(a) - sum(b) / len(b), abs=1e-10)
    if spread > 1e-6:
        want = stats.ttest_rel(a, b)
        assert found.p_value == pytest.approx(want.pvalue, rel=1e-6, abs=1e-12)
        assert found.standard_error == pytest.approx(stats.sem([x - y for x, y in pairs]), rel=1e-9)


def test_differences_without_a_spread_are_certain_or_none() -> None:
    assert paired([0.1, 0.2, 0.7], [0.1, 0.2, 0.7]).p_value == 1
    assert paired([1.1, 1.2, 1.7], [0.1, 0.2, 0.7]).p_value == 0  # but for roundings all are 1
    one = paired([3.0], [1.0])
    assert (one.difference, one.standard_error, one.p_value, one.n) == (2.0, None, None, 1)


def test_means_have_the_error_of_the_mean() -> None:
    assert mean_and_error([1.0, 2.0, 6.0]) == pytest.approx((3.0, stats.sem([1, 2, 6])))
    assert mean_and_error([4.0]) == (4.0, None)
    with pytest.raises(ShortflowError, match="one value"):
        mean_and_error([])


def test_holms_rule_by_hand() -> None:
    """Three comparisons: times 3, 2 and 1, never less than the one before, never above 1."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0.01, 0.2))
def test_holms_rule_is_the_closed_test_of_bonferroni(p_values: list[float], alpha: float) -> None:
    """It rejects i where Bonferroni's test rejects every set of hypotheses that i is in (Marcus et al. 1976)."""
    n = range(len(p_values))
    sets = [s for k in range(1, len(p_values) + 1) for s in itertools.combinations(n, k)]
    for i, adjusted in enumerate(holm(p_values)):
        closed = max(min(1.0, len(s) * min(p_values[j] for j in s)) for s in sets if i in s)
        assert adjusted == pytest.approx(closed, abs=1e-12)
        assert adjusted >= p_values[i]
