"""Parts in words: `in_words(part)` says what a part does, `described(recipe)` what a method does, part by part.

Every part of the library has a phrase here; a part of a user's own is described by the first line of its docstring. A
phrase names the settings that make the difference between published methods; all others are for the table of settings.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from shortflow import coupling, flowmap, grids, guidance, laws, losses, paths, sample, tangent, targets, teachers, times
from shortflow import velocity as velocities
from shortflow.nn import configs as networks
from shortflow.optimizer import Optimizer
from shortflow.recipe import Recipe

__all__ = ["PHRASES", "described", "in_words"]


def in_words(part: Any) -> str:
    """What the part is or does, as a phrase that goes on a sentence."""
    phrase = PHRASES.get(type(part))
    if phrase is not None:
        return phrase if isinstance(phrase, str) else phrase(part)
    lines = (type(part).__doc__ or "").strip().splitlines()
    written = lines and not lines[0].startswith(f"{type(part).__name__}(")  # what a dataclass says by itself
    return lines[0].rstrip(".") if written else type(part).__name__


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _rest(ratio: float) -> str:
    """What becomes of the rows that do not jump."""
    return "" if ratio == 1 else f", and r = t on {_percent(1 - ratio)} of the rows"


def _window(window: tuple[float, float]) -> str:
    return "" if window == (0, 1) else f" for t in [{window[0]:g}, {window[1]:g}]"


# --------------------------------------------------------------------------------------------------- paths and networks


def _average(part: flowmap.AverageVelocity) -> str:
    unit = " in units of the data's deviation, with normalised input" if part.normalize else ""
    return f"the average velocity of a jump{unit}" + ("" if part.scale == 1 else f", divided by {part.scale:g}")


def _sit(part: networks.SiTConfig) -> str:
    depth, width, heads = part.dimensions
    return f"a SiT of {depth} blocks, width {width} and {heads} heads on patches of {part.patch}"


def _unet(part: networks.UNetConfig) -> str:
    size = part.dimensions
    return f"a U-Net of {size.channels} channels, times {', '.join(f'{m:g}' for m in size.multipliers)} level by level"


# --------------------------------------------------------------------------------------------------------------- times


def _tightening(at: times.Tightening) -> str:
    return f"ever closer to t in {at.stages} stages (r itself at low noise in the first)"


def _staged(law: times.StagedDyadic) -> str:
    steps = [f"1/{2**j}" if j else "1" for j in (law.levels - 1, law.coarsest)]
    first, last = steps if law.order == "fine-to-coarse" else reversed(steps)
    to = "of that length" if law.jump == "step" else "to the data"
    return f"one grid at a time, of steps from {first} to {last}, and jumps {to}"


def _dyadic(law: times.Dyadic) -> str:
    return f"jumps of length 2⁻ʲ down to 1/{law.steps // 2}{_rest(law.share)}"


def _independent(law: times.Independent) -> str:
    return f"t ({in_words(law.start)}) and r ({in_words(law.end)}) independently{_rest(law.ratio)}"


def _grouped(law: times.GroupedJumps) -> str:
    return f"t uniform up to {law.high:g} and r uniform below it, the same for {law.group} rows beside each other"


def _gradual(law: times.Gradual) -> str:
    return f"{in_words(_sorted_like(law))}; jumps go to the data at first, over {_percent(law.ramp)} of the run"


def _sorted_like(law: times.Gradual) -> times.Sorted:
    return times.Sorted(law=law.law, ratio=law.ratio)


def _boundary_rows(law: times.BoundaryRows) -> str:
    return f"{in_words(law.base)}; {_percent(law.share)} of the rows start at t = {law.boundary:g}"


def _grid_pairs(law: times.GridPairs) -> str:
    return f"t on {in_words(law.grid)}, {in_words(law.count)}, {in_words(law.index)}; jumps to its clean end"


def _split(law: times.TimeSampler) -> str | None:
    """Where the intermediate time of a law lies; None in continuous time."""
    if isinstance(law, times.WithDiagonal):
        return _split(law.jumps)
    if isinstance(law, times.Between):
        return in_words(law.at)
    if isinstance(law, times.GroupedJumps):
        return "a fixed step in σ/α below t"
    if isinstance(law, times.GridPairs | times.Neighbours):
        return "at the next level of the grid"
    if isinstance(law, times.Dyadic | times.StagedDyadic):
        return "in the middle" if getattr(law, "jump", "step") == "step" else "at the next level of the grid"
    return None if law.continuous else "by the law of times"


def _jumps(law: times.TimeSampler) -> str:
    """The law of (t, r), without the intermediate time."""
    if isinstance(law, times.Between):
        return in_words(law.base)
    if isinstance(law, times.WithDiagonal):
        return f"{_jumps(law.jumps)}{_rest(law.ratio)}"
    return in_words(law)


# ------------------------------------------------------------------------------------------- velocities and targets


def _mixture(v: velocities.Mixture) -> str:
    return f"{in_words(v.plug_in)} on {_percent(v.probability)} of the rows, else the pair's own"


def _guided(v: velocities.Velocity) -> str:
    assert isinstance(v, guidance.TrainingGuidance)
    return f"{in_words(v.base)} with {_guide(v)}"


def _guide(v: guidance.TrainingGuidance) -> str:
    """The guidance that wraps a velocity."""
    if isinstance(v, guidance.Guided):
        numbers = f"ω = {v.omega:g}, κ = {v.kappa:g}"
        return f"the network's own velocities mixed in (scale {v.effective_scale:g}: {numbers}){_window(v.window)}"
    if isinstance(v, guidance.FadingGuidance):
        return f"guidance of scale {v.scale:g} mixed in, fading above t = {v.edge:g}"
    return "guidance of a scale that the network is told"


def _reference(v: velocities.Reference) -> str:
    scale = "" if v.guidance == 1 else f", guided with scale {v.guidance:g}{_window(v.window)}"
    weak = "" if v.autoguidance == 1 else f", guided by a weaker model with scale {v.autoguidance:g}"
    return f"the velocity of a frozen teacher{scale}{weak}"


def _two_step(target: targets.TwoStep, split: str = "") -> str:
    split = f", split {split}" if split else ""
    if target.first is None:
        return f"takes two steps of the network{split}{_two_step_ends(target)}"
    solver = {"transfer": "", "euler": "an Euler step ", "heun": "a Heun step "}[target.solver]
    jump = "a jump" if target.segments == 1 else f"{target.segments} jumps"
    first = f"{solver}along {in_words(target.first)}, then {jump} of the network"
    return f"takes two steps{split}: {first}{_two_step_ends(target)}"


def _two_step_ends(target: targets.TwoStep) -> str:
    ends = "" if target.clip is None else f", bounded by ±{target.clip:g}"
    ends += "" if target.guidance == 1 else f", guided with scale {target.guidance:g} in the smallest jump"
    return ends + ("" if target.below is None else f", of the frozen teacher where s < {target.below:g}")


def _secant(target: targets.Secant, split: str = "") -> str:
    clip = "" if target.clip is None else f", bounded by ±{target.clip:g}"
    return f"{_two_step(target.steps, split)}; their difference quotient in t − s moves the output{clip}"


def _tangent(target: targets.Tangent) -> str:
    along = f", differentiated along {in_words(target.direction)}" if target.direction is not None else ""
    size = [] if target.normalize is None else [f"normalised with c = {target.normalize:g}"]
    size += [] if target.warmup == 0 else [f"warmed up over {_percent(target.warmup)} of the run"]
    size += [] if isinstance(target.weight, targets.UnitWeight) else [in_words(target.weight)]
    size += [] if isinstance(target.derivative, tangent.DualPass) else [in_words(target.derivative)]
    return f"takes the limit s → t along {in_words(target.velocity)}{along}" + (f" ({', '.join(size)})" if size else "")


def _terminal(target: targets.Terminal) -> str:
    how = ", with gradient through the derivative" if target.through else ""
    size = "" if target.normalize is None else f" (normalised with c = {target.normalize:g})"
    return (
        f"takes the limit s → r: the velocity at the end of a jump becomes {in_words(target.velocity)} there{how}{size}"
    )


def _eulerian(target: targets.Eulerian) -> str:
    return f"makes the derivative of the jump along {in_words(target.velocity)} zero, with gradient through it"


def _split_rows(target: targets.Split, split: str = "") -> str:
    limit = "" if target.limit is None else f", and where s = t it {_target(target.limit)}"
    return f"{_target(target.bootstrap, split)}{limit}; at r = t it {_target(target.direct)}"


def _target(target: targets.Target, split: str = "") -> str:
    """The target in words, with the place of the intermediate time where it has one."""
    for kind, phrase in ((targets.TwoStep, _two_step), (targets.Secant, _secant), (targets.Split, _split_rows)):
        if type(target) is kind:
            return phrase(target, split)  # pyright: ignore[reportArgumentType]
    return in_words(target)


# ------------------------------------------------------------------------------------------ metrics and weightings


def _squared(metric: losses.SquaredError) -> str:
    what = "outputs" if metric.space == "output" else "states"
    return f"{what} by the squared error, {'summed' if metric.reduce == 'sum' else 'averaged'} over coordinates"


def _huber(metric: losses.PseudoHuber) -> str:
    what = "outputs" if metric.space == "output" else "states"
    return f"{what} by the norm" if metric.c == 0 else f"{what} by the pseudo-Huber norm"


def _mmd(metric: losses.KernelMMD) -> str:
    return f"the laws of groups of {metric.group} states (MMD, {metric.kernel} kernel)"


RULES = {
    "inverse-step": "by 1/(σ_t − σ_s)",
    "inverse-root-step": "by 1/√(σ_t − σ_s)",
    "inverse-gap": "by 1/(t − r)²",
    "inverse-output": "by 1/|b|",
    "inverse-output-square": "by 1/b²",
    "inverse-variance": "by 1/σ²",
    "share": "by the share (t − s)/(t − r) of the first step",
    "gap-over-step": "by (t − r)/(t − s)",
    "edm": "by EDM's weight of the noise level",
    "inverse-sine": "by 4/sin(1.57 t)",
    "imm": "by IMM's weight of the noise level",
}


def _adaptive(part: losses.Adaptive) -> str:
    return "alike" if part.power == 0 else f"by 1/(error + {part.c:g}){'' if part.power == 1 else f'^{part.power:g}'}"


def _boundary(part: losses.Boundary) -> str:
    return f"by {part.weight:g} for the mean over the boundary rows"


# ---------------------------------------------------------------------------------------------------------- the phrases

PHRASES: dict[type, str | Callable[[Any], str]] = {
    paths.Linear: lambda p: f"the straight line from data to noise, x_t = (1 − t) x + σ_t ε with σ_t = {_tau(p)}t",
    paths.Cosine: lambda p: f"the quarter circle, x_t = cos(πt/2) x + σ_t ε with σ_t = {_tau(p)}sin(πt/2)",
    paths.VarianceExploding: lambda p: f"data plus noise, x_t = x + σ ε with σ up to {p.sigma_max:g}",
    tangent.DualPass: "exact derivative, by a dual pass",
    tangent.ForwardMode: "exact derivative, by torch.func.jvp",
    tangent.CentralDifference: lambda d: f"derivative by central differences of step {d.step:g}",
    # parameterisations and conditionings
    flowmap.AverageVelocity: _average,
    flowmap.Transfer: "the velocity of a DDIM step",
    flowmap.Denoiser: "the denoised data, with a DDIM step",
    flowmap.NoisePrediction: "the noise, with a DDIM step",
    flowmap.TrigJump: "the velocity of a trigonometric step, in units of π/2",
    flowmap.TrigFlow: "TrigFlow's velocity, in units of the data's deviation",
    flowmap.SimpleEDM: "what is left beside the skip connection of Gaussian data",
    flowmap.EDMSkip: "what a consistency model adds to c_skip x",
    flowmap.EDM: "what EDM's denoiser adds to c_skip x",
    flowmap.StartOnly: "t",
    flowmap.AngleOnly: "the angle πt/2",
    flowmap.StartAndGap: lambda c: "t and t − r" if c.scale == 1 else f"{c.scale:g} t and {c.scale:g} (t − r)",
    flowmap.StartAndEnd: lambda c: "t and r" if c.scale == 1 else f"{c.scale:g} t and {c.scale:g} r",
    flowmap.LogStep: lambda c: f"t and log₂ of 1/(t − r), at most log₂ {c.steps}",
    flowmap.LogSigma: lambda c: f"{c.scale:g} log σ",
    flowmap.DiffusionIndex: lambda c: f"the index of the step, of {c.steps}, of a diffusion at that noise level",
    flowmap.GapOnly: "t − r",
    flowmap.JumpFlag: "t and whether r < t",
    # laws of one time
    laws.Uniform: lambda a: "uniform" if (a.low, a.high) == (0, 1) else f"uniform on [{a.low:g}, {a.high:g}]",
    laws.LogitNormal: lambda a: f"logit-normal ({a.mu:g}, {a.sigma:g})",
    laws.TrigLogNormal: lambda a: f"log-normal in the noise level ({a.mean:g}, {a.std:g})",
    laws.LogNormalNoise: lambda a: f"log-normal in the noise level ({a.mean:g}, {a.std:g})",
    laws.LogStudentNoise: lambda a: f"log-Student-t in the noise level from σ = {a.low:g} on",
    laws.GridLaw: lambda a: f"on the grid of 1/{a.n}",
    laws.Beta: lambda a: f"Beta({a.a:g}, {a.b:g})",
    laws.Largest: lambda a: f"the larger of two draws, {in_words(a.law)}",
    laws.Truncated: lambda a: f"{in_words(a.law)} between {a.low:g} and {a.high:g}",
    # joint laws and fractions
    times.Diagonal: lambda a: f"one time r = t ({in_words(a.law)}): no jumps",
    times.ToData: lambda a: f"t ({in_words(a.law)}) and r = 0: jumps to the data",
    times.Sorted: lambda a: f"t and r as the larger and the smaller of two draws, {in_words(a.law)}{_rest(a.ratio)}",
    times.Gradual: _gradual,
    times.Independent: _independent,
    times.Triangle: "t and r uniform on the triangle r < t",
    times.Nested: lambda a: f"t ({in_words(a.start)}) and r uniform below it",
    times.GapThenEnd: lambda a: f"the length of a jump first ({in_words(a.length)}), then its end ({in_words(a.end)})",
    times.Dyadic: _dyadic,
    times.StagedDyadic: _staged,
    times.Neighbours: lambda a: f"t on the grid of 1/{a.steps} and r = 0: jumps to the data",
    times.GridPairs: _grid_pairs,
    times.GroupedJumps: _grouped,
    times.WithDiagonal: lambda a: f"{in_words(a.jumps)}{_rest(a.ratio)}",
    times.Between: lambda a: f"{in_words(a.base)}, split {in_words(a.at)}",
    times.BoundaryRows: _boundary_rows,
    times.Fixed: lambda f: "in the middle" if f.value == 0.5 else f"at {_percent(f.value)} of the jump",
    times.Random: "anywhere",
    times.Geometric: lambda f: f"at a share of the jump that shrinks from {f.start:g} to {f.end:g} over the run",
    times.SigmoidDecay: "at a share α of the jump that falls from 1 to 0 over the run, along a sigmoid",
    times.Step: lambda f: f"{f.size:g} below t",
    times.Tightening: _tightening,
    grids.KarrasGrid: lambda g: f"the Karras grid from σ = {g.sigma_max:g} to {g.sigma_min:g}",
    grids.ConstantCount: lambda c: f"of {c.n} levels throughout",
    grids.SquareRootCount: lambda c: f"of {c.s0} to {c.s1 + 1} levels, growing over the run",
    grids.DoublingCount: lambda c: f"of {c.s0 + 1} to {c.s1 + 1} levels, doubling in stages",
    grids.UniformIndex: "every pair of neighbours equally likely",
    grids.LogNormalIndex: lambda i: f"noise levels log-normal ({i.mean:g}, {i.std:g})",
    # velocities and targets
    velocities.Conditional: "the pair's own velocity",
    velocities.PlugIn: "the velocity of the mini-batch",
    velocities.Mixture: _mixture,
    velocities.Own: lambda v: "the velocity that its own head gives" if v.head else "the network's own velocity",
    velocities.Reference: _reference,
    guidance.Guided: _guided,
    guidance.FadingGuidance: _guided,
    guidance.GuidanceAsInput: _guided,
    guidance.PowerGuidance: lambda g: f"a guidance scale between 1 and {g.highest:g}",
    targets.Direct: lambda t: f"regresses onto {in_words(t.velocity)}",
    targets.Along: lambda t: f"takes one straight step along {in_words(t.velocity)}",
    targets.TwoStep: _two_step,
    targets.Secant: _secant,
    targets.Tangent: _tangent,
    targets.Terminal: _terminal,
    targets.Eulerian: _eulerian,
    targets.Split: _split_rows,
    targets.UnitWeight: "unweighted",
    targets.CosineWeight: "weighted by (2/π) cos(πt/2)",
    # metrics, weightings, whose weights
    losses.SquaredError: _squared,
    losses.PseudoHuber: _huber,
    losses.KernelMMD: _mmd,
    losses.Perceptual: "images by LPIPS",
    losses.Unweighted: "alike",
    losses.Adaptive: _adaptive,
    losses.Variational: "by a learned e^−ℓ(t)",
    losses.ByTime: lambda w: RULES[w.rule],
    losses.Boundary: _boundary,
    losses.Product: lambda w: " and ".join(map(in_words, w.parts)),
    teachers.Online: "the weights being trained",
    teachers.Ema: lambda e: f"an average of the weights with decay {e.rate:g}",
    teachers.ScheduledEma: "an average of the weights whose decay grows with the grid",
    teachers.GrowingEma: lambda e: f"an average of the weights whose decay grows to {e.rate:g}",
    teachers.Snapshot: lambda e: f"a snapshot of the weights, renewed in each of {e.stages} stages",
    coupling.LivePairs: lambda c: f"images that the network makes of the noise in {c.steps} steps",
    # samplers and networks
    sample.PushForward: "jumps down the grid",
    sample.ReNoise: "jumps to the data with new noise in between",
    sample.Restart: "jumps down the grid, each repeated with new noise",
    sample.Gamma: lambda s: f"jumps too far and adds new noise, γ = {s.gamma:g}",
    sample.Euler: "Euler steps along the velocity",
    sample.Heun: "Heun steps along the velocity",
    networks.SiTConfig: _sit,
    networks.UNetConfig: _unet,
    networks.MLPConfig: lambda n: f"an MLP of {n.depth} blocks of width {n.width}",
}


def _tau(path: paths.Linear | paths.Cosine) -> str:
    return "" if path.noise_scale == 1 else f"{path.noise_scale:g} "


# ----------------------------------------------------------------------------------------------------------- recipes


def described(recipe: Recipe) -> dict[str, str]:
    """What a method does, aspect → the end of a sentence that begins with its name."""
    o = recipe.objective
    plain = o.unconditional()
    extra = {"pairs": "its data come with their noise"} if o.pairs else {}
    drop = "the diagonal rows" if o.dropped_rows == "diagonal" else "the rows"
    coupled = "independent pairs of data and noise" if o.coupling is None else in_words(_unguided_pairs(o.coupling))
    return {
        "path": f"moves along {in_words(recipe.path)}",
        "network": f"reads the network's output as {in_words(recipe.parameterization)}, and tells it "
        f"{in_words(recipe.conditioning)}",
        "units": "leaves data as they are"
        if recipe.sigma_data is None
        else f"scales data to the deviation {recipe.sigma_data:g}",
        "target": _target(plain.target, _split(o.times) or ""),
        "times": f"draws {_jumps(o.times)}",
        "pairs": "learns from pairs that a teacher has made" if extra else f"mixes {coupled}",
        "metric": f"compares {in_words(o.metric)}",
        "weighting": f"weighs rows {in_words(o.weighting)}",
        "head": "also trains a velocity head" if o.velocity_head else "has one head",
        "guidance": _guidance(recipe),
        "classes": f"hides the class on {_percent(o.label_dropout)} of {drop}" if o.label_dropout else "hides no class",
        "teacher": f"computes targets with {in_words(o.teacher)}",
        "batches": "fills each group of rows from one class"
        if recipe.batches == "class-consistent"
        else "fills batches at random",
        "optimiser": f"is trained with {_optimizer(recipe.optimizer)}",
    }


def _unguided_pairs(pairs: Any) -> Any:
    return replace(pairs, guidance=1.0) if isinstance(pairs, coupling.LivePairs) else pairs


def _guidance(recipe: Recipe) -> str:
    """The guidance in training, wherever it sits."""
    o = recipe.objective
    if o.guidance is not None:
        return f"tells the network {in_words(o.guidance)}, and guides with it in training"
    for v in o.target.velocities():
        if isinstance(v, guidance.TrainingGuidance) and v.guides:
            return f"trains with {_guide(v)}"
    words = o.guided
    return "trains without guidance" if words is None else f"trains with {words.removeprefix('training ')}"


def _optimizer(rule: Optimizer) -> str:
    name = {"adamw": "AdamW", "adam": "Adam", "radam": "RAdam"}.get(rule.algorithm, rule.algorithm)
    decay = f", weight decay {rule.weight_decay:g}" if rule.weight_decay else ""
    warmup = f", a warm-up over {_percent(rule.warmup)} of the run" if rule.warmup else ""
    warmup += f", a fall to zero over the last {_percent(rule.cooldown)}" if rule.cooldown else ""
    clip = "" if rule.clip is None else f", gradients clipped at {rule.clip:g}"
    betas = ", ".join(f"{beta:g}" for beta in rule.betas)
    return f"{name} at {rule.lr:g} (betas {betas}{decay}){warmup}{clip}, and sampled with an average of {rule.ema}"
