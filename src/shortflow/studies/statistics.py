"""What the figures of a few seeds allow to say: means with standard errors, and paired tests.

For a variant, x_k is its figure with seed k = 1 … n:   mean x̄ = Σ x_k/n,   standard error √(Σ (x_k − x̄)²/(n (n − 1))).

Two variants are compared seed by seed, because a seed has the same weights, order of data and noise in both: with
d_k = a_k − b_k, T = d̄/SE(d) has Student's law with n − 1 degrees of freedom if the d_k are normal and their mean is 0
(paired t-test, two-sided). Of m comparisons that are made together the p-values are adjusted by Holm's rule: sorted
p_(1) ≤ … ≤ p_(m) become max_{j ≤ i} min(1, (m − j + 1) p_(j)), which keeps the probability of one false claim or more
below α whatever the dependence (Holm 1979, Scandinavian Journal of Statistics 6, 65).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shortflow.errors import require

__all__ = ["Paired", "holm", "mean_and_error", "paired", "student_quantile", "student_tail"]


_NEAR = 0.95  # cos² θ, above which p is no small number, and the rest of the series long


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A paired comparison: mean difference, its standard error and the two-sided p-value, None with one pair; n."""

    difference: float
    standard_error: float | None
    p_value: float | None
    n: int


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error, None with one value."""
    n = len(values)
    require(n > 0, "a mean needs one value at least")
    mean = math.fsum(values) / n
    if n == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n * (n - 1)))


def paired(a: Sequence[float], b: Sequence[float]) -> Paired:
    """The figures of two variants with the same seeds, in the same order.

    Differences that are all the same have no spread to test against: p = 0, or 1 where they are 0.
    """
    require(len(a) == len(b), f"pairs need equally many figures, got {len(a)} and {len(b)}")
    mean, error = mean_and_error([x - y for x, y in zip(a, b, strict=True)])
    if error is None:
        return Paired(difference=mean, standard_error=None, p_value=None, n=len(a))
    # Differences of equal numbers differ by roundings.
    rounding = 4 * math.ulp(max(map(abs, (*a, *b))))
    if error <= rounding:
        p = 1.0 if abs(mean) <= rounding else 0.0
    else:
        p = student_tail(mean / error, len(a) - 1)
    return Paired(difference=mean, standard_error=error, p_value=p, n=len(a))


def student_tail(t: float, degrees: int) -> float:
    """P(|T| ≥ |t|) for Student's law with a whole number of degrees of freedom.

    With x = ν/(ν + t²) it is the regularised incomplete beta function I_x(ν/2, 1/2), here by its finite sums for whole
    ν (Abramowitz & Stegun 26.7.3 and 26.7.4), with θ = atan(|t|/√ν):

        ν odd:  1 − (2/π) (θ + sin θ Σ_{k = 0}^{(ν − 3)/2} cos θ c_k cos^{2k} θ),   c_0 = 1, c_k = c_{k−1} 2k/(2k + 1)
        ν even: 1 − sin θ Σ_{k = 0}^{(ν − 2)/2} c_k cos^{2k} θ,                     c_0 = 1, c_k = c_{k−1} (2k − 1)/(2k)

    Continued without end the series give p = 0, so p is also what the sums leave out: a sum of positive terms, in
    which no digits are lost where p is small.
    """
    require(degrees >= 1, f"Student's law has 1 degree of freedom or more, got {degrees}")
    if math.isinf(t):
        return 0.0
    root, odd = math.hypot(t, math.sqrt(degrees)), degrees % 2 == 1
    sine, x = abs(t) / root, degrees / root**2  # sin θ, cos² θ

    def ratio(k: int) -> float:
        return x * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))  # of term k + 1 to term k

    term, total, k = 1.0, 0.0, 0
    while k < degrees // 2:
        total, term, k = total + term, term * ratio(k), k + 1
    factor = 2 / math.pi * sine * math.sqrt(x) if odd else sine
    if x > _NEAR:
        return max(0.0, 1 - factor * total - (2 / math.pi * math.atan2(abs(t), math.sqrt(degrees)) if odd else 0.0))
    rest = 0.0
    while term > 1e-17 * rest:
        rest, term, k = rest + term, term * ratio(k), k + 1
    return min(1.0, factor * rest)


def student_quantile(p: float, degrees: int) -> float:
    """The t with P(|T| ≥ t) = p, by bisection."""
    require(0 < p <= 1, f"p must be in (0, 1], got {p}")
    low, high = 0.0, 1.0
    while student_tail(high, degrees) > p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if student_tail(middle, degrees) > p:
            low = middle
        else:
            high = middle
    return high


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of comparisons that are made together, adjusted by Holm's rule, in the order they came in."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
