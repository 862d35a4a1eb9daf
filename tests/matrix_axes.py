"""The axes of the matrix of parts: every kind of every part, with settings that show."""

from collections.abc import Callable
from typing import Any

import torch

from shortflow.coupling import LivePairs
from shortflow.flowmap import (
    EDM,
    AngleOnly,
    AverageVelocity,
    Denoiser,
    EDMSkip,
    GapOnly,
    JumpFlag,
    LogSigma,
    LogStep,
    NoisePrediction,
    SimpleEDM,
    StartAndEnd,
    StartAndGap,
    StartOnly,
    Transfer,
    TrigFlow,
    TrigJump,
)
from shortflow.guidance import FadingGuidance, GuidanceAsInput, Guided
from shortflow.losses import Adaptive, Boundary, ByTime, KernelMMD, Product, PseudoHuber, SquaredError, Unweighted
from shortflow.losses import Variational as Learned
from shortflow.paths import Cosine, CustomPath, Linear, VarianceExploding
from shortflow.tangent import CentralDifference
from shortflow.targets import Along, CosineWeight, Direct, Eulerian, Secant, Split, Tangent, Terminal, TwoStep
from shortflow.teachers import Ema, GrowingEma, Online, ScheduledEma, Snapshot
from shortflow.times import (
    Between,
    BoundaryRows,
    ConstantCount,
    Diagonal,
    Dyadic,
    Fixed,
    GapThenEnd,
    Geometric,
    Gradual,
    GridLaw,
    GridPairs,
    GroupedJumps,
    Independent,
    LogNormalIndex,
    LogNormalNoise,
    LogStudentNoise,
    Neighbours,
    Nested,
    Random,
    SigmoidDecay,
    Sorted,
    SquareRootCount,
    StagedDyadic,
    Step,
    Tightening,
    ToData,
    Triangle,
    Uniform,
    WithDiagonal,
)
from shortflow.velocity import Conditional, Mixture, Own, PlugIn, Reference

CLASSES, ROWS, DATA = 3, 4, 0.5
NULL = CLASSES


def bent() -> CustomPath:
    """A path of two functions, α = 1 − t² and σ = sin(πt/2)."""
    h = torch.pi / 2
    return CustomPath(
        alpha_fn=lambda t: 1 - t**2,
        sigma_fn=lambda t: torch.sin(h * t),
        d_alpha_fn=lambda t: -2 * t,
        d_sigma_fn=lambda t: h * torch.cos(h * t),
    )


PATHS = {
    "linear": Linear(),
    "linear-scaled": Linear(noise_scale=DATA),
    "cosine": Cosine(),
    "trig": Cosine(noise_scale=DATA),
    "ve": VarianceExploding(),
    "ve-small": VarianceExploding(sigma_max=3.0),
    "custom": bent(),
}
PARAMETERIZATIONS = {
    "average": AverageVelocity(),
    "average-normalized": AverageVelocity(normalize=True),
    "average-scaled": AverageVelocity(scale=1.75),
    "transfer": Transfer(),
    "denoiser": Denoiser(),
    "denoiser-normalized": Denoiser(normalize=True),
    "noise": NoisePrediction(),
    "trig-jump": TrigJump(),
    "trig-flow": TrigFlow(),
    "simple-edm": SimpleEDM(),
    "edm-skip": EDMSkip(),
    "edm": EDM(),
}
CONDITIONINGS = {
    "start": StartOnly(),
    "angle": AngleOnly(),
    "gap": StartAndGap(),
    "end": StartAndEnd(scale=2.0),
    "log-step": LogStep(steps=8),
    "log-sigma": LogSigma(),
    "gap-only": GapOnly(),
    "flag": JumpFlag(),
}
NOISE = LogNormalNoise(mean=-1.1, std=1.0)
TIMES = {
    "diagonal": Diagonal(),
    "diagonal-noise": Diagonal(law=NOISE),
    "to-data": ToData(law=Uniform()),
    "to-data-noise": ToData(law=NOISE),
    "sorted": Sorted(ratio=0.5),
    "sorted-exact": Sorted(ratio=0.5, count="exact"),
    "sorted-jumps": Sorted(ratio=1.0),
    "gradual": Gradual(ratio=0.5),
    "independent": Independent(),
    "independent-jumps": Independent(ratio=1.0, least=1e-4),
    "triangle": Triangle(),
    "nested": Nested(),
    "gap-then-end": GapThenEnd(),
    "dyadic": Dyadic(levels=3, share=0.5),
    "staged": StagedDyadic(levels=3),
    "staged-data": StagedDyadic(levels=3, order="coarse-to-fine", jump="data"),
    "neighbours": Neighbours(steps=8),
    "grid": GridPairs(count=ConstantCount(n=12)),
    "grid-growing": GridPairs(count=SquareRootCount(s0=4, s1=20), index=LogNormalIndex()),
    "grouped": GroupedJumps(group=2, k=4),
    "grouped-of-one": GroupedJumps(group=1, k=4, eta="cosine"),
    "diagonal-triangle": WithDiagonal(jumps=Triangle(), ratio=0.5),
    "diagonal-exact": WithDiagonal(jumps=GapThenEnd(), ratio=0.5, count="exact"),
    "diagonal-never": WithDiagonal(jumps=Triangle(), ratio=1.0),
    "diagonal-data": WithDiagonal(jumps=ToData(law=GridLaw(n=8)), law=GridLaw(n=8), ratio=0.5, count="exact"),
    "diagonal-staged": WithDiagonal(jumps=StagedDyadic(levels=3), law=GridLaw(n=8), ratio=0.5),
    "diagonal-grid": WithDiagonal(jumps=GridPairs(count=ConstantCount(n=12)), law=Uniform(), ratio=0.5),
    "diagonal-grouped": WithDiagonal(jumps=GroupedJumps(group=1, k=4), law=Uniform(), ratio=0.5),
    "diagonal-sorted": WithDiagonal(jumps=Sorted(ratio=0.5), ratio=1.0),
    "middle": Between(base=Triangle(), at=Fixed()),
    "anywhere-data": Between(base=ToData(law=Uniform()), at=Random()),
    "short-sorted": Between(base=Sorted(ratio=0.5), at=Geometric()),
    "short-sorted-jumps": Between(base=Sorted(ratio=1.0), at=Geometric()),
    "stepped": Between(base=Nested(), at=Step(size=0.3)),
    "vanishing": Between(base=Sorted(ratio=0.75), at=SigmoidDecay(start_share=0.0, end_share=0.02)),
    "vanished": Between(base=Sorted(ratio=0.75), at=SigmoidDecay(start_share=0.0, end_share=0.005)),
    "tightening": Between(base=ToData(law=NOISE), at=Tightening(stages=4)),
    "boundary": Between(
        base=BoundaryRows(base=ToData(law=LogStudentNoise()), boundary=1 / 80, share=0.5), at=Tightening(stages=4)
    ),
    "diagonal-middle": WithDiagonal(jumps=Between(base=Triangle(), at=Fixed()), ratio=0.5),
    "diagonal-middle-data": WithDiagonal(jumps=Between(base=ToData(law=Uniform()), at=Fixed()), ratio=0.5),
}
VELOCITIES = {
    "conditional": Conditional(),
    "plug-in": PlugIn(),
    "plug-in-all": PlugIn(mask="none"),
    "mixture": Mixture(probability=0.5),
    "own": Own(),
    "own-head": Own(head=True),
    "reference": Reference(),
    "reference-guided": Reference(guidance=1.5, window=(0.1, 0.9)),
    "reference-auto": Reference(autoguidance=2.0),
    "guided": Guided(base=Mixture(), omega=1.0, kappa=0.5, window=(0.1, 0.9)),
    "guided-free": Guided(base=Conditional(), omega=2.0, kappa=0.0),
    "guided-own": Guided(base=Conditional(), omega=0.5, kappa=0.5),
    "fading": FadingGuidance(base=Conditional(), edge=0.5, rate=0.5),
    "fading-own": FadingGuidance(base=PlugIn(), scale=1.0),
    "as-input": GuidanceAsInput(head=False),
    "as-input-head": GuidanceAsInput(),
}
Target = Callable[[Any], Any]
TARGETS: dict[str, Target] = {
    "direct": lambda v: Direct(velocity=v),
    "along": lambda v: Along(velocity=v),
    "two-transfer": lambda v: TwoStep(first=v),
    "two-euler": lambda v: TwoStep(first=v, solver="euler", clip=1.0),
    "two-heun": lambda v: TwoStep(first=v, solver="heun"),
    "two-segments": lambda v: TwoStep(first=v, segments=3),
    "two-below": lambda v: TwoStep(first=v, below=0.0125),
    "two-own": lambda v: TwoStep(first=None, clip=0.7, guidance=1.5, guided_gap=0.25),
    "secant": lambda v: Secant(steps=TwoStep(first=v)),
    "secant-clipped": lambda v: Secant(steps=TwoStep(first=v, solver="euler", segments=2), clip=0.5),
    "tangent": lambda v: Tangent(velocity=v),
    "tangent-sct": lambda v: Tangent(velocity=v, weight=CosineWeight(), warmup=0.02, normalize=0.1),
    "tangent-rms": lambda v: Tangent(velocity=v, normalize=0.2, norm="rms", derivative=CentralDifference()),
    "tangent-own": lambda v: Tangent(velocity=v, direction=Own()),
    "tangent-head": lambda v: Tangent(velocity=v, direction=Own(head=True)),
    "terminal": lambda v: Terminal(velocity=v),
    "terminal-moved": lambda v: Terminal(velocity=v, through=False, normalize=0.1),
    "eulerian": lambda v: Eulerian(velocity=v),
    "eulerian-through": lambda v: Eulerian(velocity=v, detach_space=False),
    "split-own": lambda v: Split(direct=Direct(velocity=v), bootstrap=TwoStep(first=None)),
    "split-guided": lambda v: Split(
        direct=Direct(velocity=v), bootstrap=TwoStep(first=None, clip=1.0, guidance=1.5, guided_gap=0.25)
    ),
    "split-two": lambda v: Split(direct=Direct(), bootstrap=TwoStep(first=v, solver="euler", clip=1.0)),
    "split-limit": lambda v: Split(
        direct=Direct(velocity=v), bootstrap=TwoStep(first=v, solver="euler"), limit=Tangent(velocity=v)
    ),
    "split-secant": lambda v: Split(
        direct=Direct(velocity=v), bootstrap=Secant(steps=TwoStep(first=v)), limit=Tangent(velocity=v)
    ),
    "split-tangent": lambda v: Split(direct=Along(), bootstrap=Tangent(velocity=v)),
    "split-along": lambda v: Split(direct=Direct(), bootstrap=Along(velocity=v)),
    "split-terminal": lambda v: Split(direct=Direct(), bootstrap=Terminal(velocity=v)),
    "split-terminal-moved": lambda v: Split(direct=Direct(), bootstrap=Terminal(velocity=v, through=False)),
    "split-eulerian": lambda v: Split(direct=Direct(), bootstrap=Eulerian(velocity=v)),
}
METRICS = {
    "mean": SquaredError(),
    "sum": SquaredError(reduce="sum"),
    "states": SquaredError(space="state"),
    "huber": PseudoHuber(),
    "huber-output": PseudoHuber(c=0.1, space="output"),
    "norm": PseudoHuber(c=0.0),
    "norm-output": PseudoHuber(c=0.0, space="output"),
    "mmd": KernelMMD(group=2),
    "mmd-energy": KernelMMD(group=2, unbiased=True, kernel="energy", bandwidth="unit"),
    "mmd-of-one": KernelMMD(group=1),
    "mmd-linear": KernelMMD(group=1, kernel="linear"),
}
RULES = (
    "inverse-step",
    "inverse-gap",
    "inverse-root-step",
    "inverse-output",
    "inverse-output-square",
    "inverse-variance",
    "share",
    "gap-over-step",
    "edm",
    "inverse-sine",
    "imm",
)
WEIGHTINGS = {
    "unweighted": Unweighted(),
    "adaptive": Adaptive(power=0.75),
    "learned": Learned(),
    "adaptive-learned": Product(parts=(Adaptive(), Learned())),
    "adaptive-share": Product(parts=(Adaptive(), ByTime(rule="share"))),
    "boundary": Boundary(at=1 / 80, share=0.5),
    "boundary-found": Boundary(at=0.3, share=None),
    **{rule: ByTime(rule=rule) for rule in RULES},
}
TEACHERS = {
    "online": Online(),
    "ema": Ema(),
    "growing": GrowingEma(),
    "scheduled": ScheduledEma(count=SquareRootCount(s0=4, s1=20)),
    "snapshot": Snapshot(stages=3),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "diagonal-labels": {"dropped_rows": "diagonal"},
    "all-labels": {"label_dropout": 0.0},
    "pairs": {"pairs": True},
    "coupling": {"coupling": LivePairs(steps=3, guidance=1.5)},
    "head": {"velocity_head": True},
    "unconditional": {},
}
AXES: dict[str, dict[str, Any]] = {
    "path": PATHS,
    "parameterization": PARAMETERIZATIONS,
    "conditioning": CONDITIONINGS,
    "times": TIMES,
    "target": TARGETS,
    "velocity": VELOCITIES,
    "metric": METRICS,
    "weighting": WEIGHTINGS,
    "teacher": TEACHERS,
    "options": OPTIONS,
}
"""Every axis of the matrix; a combination names one value of each."""
