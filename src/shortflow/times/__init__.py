"""Joint samplers of (t, s, r) with r ≤ s ≤ t, built from laws of one time (`shortflow.laws`).

Every law is a map from uniform numbers to times (its inverse distribution function), and every joint sampler a pure
function `times(u, progress)` of a table of uniforms. Random draws, stratified grids and tests all use the same map.

    pairs       (t, r) with s → t: flow matching and jumps in continuous time
    steps       (t, s, r) with two finite steps: dyadic, on grids, grouped
    fractions   rules for s = t − ρ (t − r)
    wrappers    laws made from laws: `WithDiagonal`, `Between`, `BoundaryRows`

A sampler also says what it trains, for compatibility checks and for the samplers of images:
    gap      "zero" (r = t always), "positive" (r < t always) or "mixed";
    jumping  how many of n rows jump, where that is not random;
    ends     "diagonal" (only r = t is trained), "zero" (only the data end), "any", or "dyadic" (jumps of length 2⁻ʲ);
    span     the earliest and latest time the network sees, (0, 1) unless the method cuts the ends;
    continuous  whether s = t stands for the limit s → t on every row;
    limit    whether, in a law that is not continuous, it may do so on rows that jump (late in α-Flow, for example);
    group    how many rows beside each other share their times;
    stages   into how many stages the law divides the run; `stage(progress)` is the present one.
All of them hold for a sampler, that is for the instance; the class has those that no setting changes.
"""

from shortflow.grids import ConstantCount, DoublingCount, KarrasGrid, LogNormalIndex, SquareRootCount, UniformIndex
from shortflow.laws import (
    Beta,
    GridLaw,
    Largest,
    Law,
    LogitNormal,
    LogNormalNoise,
    LogStudentNoise,
    TrigLogNormal,
    Truncated,
    Uniform,
)
from shortflow.times.base import LEAST_GAP, Count, Ends, Gap, TimeSampler
from shortflow.times.fractions import Fixed, Fraction, Geometric, Random, SigmoidDecay, Step, Tightening
from shortflow.times.pairs import Diagonal, GapThenEnd, Gradual, Independent, Nested, Sorted, ToData, Triangle
from shortflow.times.steps import Dyadic, GridPairs, GroupedJumps, Neighbours, StagedDyadic
from shortflow.times.wrappers import Between, BoundaryRows, WithDiagonal

__all__ = [
    "LEAST_GAP",
    "Beta",
    "Between",
    "BoundaryRows",
    "ConstantCount",
    "Count",
    "Diagonal",
    "DoublingCount",
    "Dyadic",
    "Ends",
    "Fixed",
    "Fraction",
    "Gap",
    "GapThenEnd",
    "Geometric",
    "Gradual",
    "GridLaw",
    "GridPairs",
    "GroupedJumps",
    "Independent",
    "KarrasGrid",
    "Largest",
    "Law",
    "LogNormalIndex",
    "LogNormalNoise",
    "LogStudentNoise",
    "LogitNormal",
    "Neighbours",
    "Nested",
    "Random",
    "SigmoidDecay",
    "Sorted",
    "SquareRootCount",
    "StagedDyadic",
    "Step",
    "Tightening",
    "TimeSampler",
    "ToData",
    "Triangle",
    "TrigLogNormal",
    "Truncated",
    "Uniform",
    "UniformIndex",
    "WithDiagonal",
]
