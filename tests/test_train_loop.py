import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tiny
from shortflow.errors import DataError, ShortflowError
from shortflow.flowmap import AverageVelocity, FlowMap, StartAndGap
from shortflow.losses import SquaredError
from shortflow.nn import MLP, SiT
from shortflow.objective import Ema, Objective, Online, ScheduledEma
from shortflow.optimizer import Optimizer
from shortflow.paths import Linear
from shortflow.recipes import (
    consistency_training,
    esc,
    flow_matching,
    meanflow,
    progressive_distillation,
    shortcut,
)
from shortflow.streams import Streams
from shortflow.targets import TwoStep
from shortflow.times import GridPairs
from shortflow.train import Average, StepRecord, TrainSettings, TrainStep, train
from shortflow.train.engine import Engine
from shortflow.train.log import StatsLog, summary
from shortflow.train.loop import build_optimizer, learning_rate
from shortflow.train.record import BINS, Numbers
from shortflow.typing import Batch, Progress

FAST = Optimizer(lr=1e-2, betas=(0.9, 0.95), clip=None, ema=0.9)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---------------------------------------------------------------------------------------------------------- averages


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))
        self.bias = nn.Parameter(torch.randn(2))
        self.register_buffer("count", torch.zeros(2, dtype=torch.long))


def buffered(seed: int = 0) -> FlowMap:
    torch.manual_seed(seed)
    return FlowMap(Buffered(), Linear(), AverageVelocity())


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9999])
def test_the_fused_average_is_the_plain_one(decay: float) -> None:
    flow = buffered()
    average, want = Average(flow, decay), [p.detach().clone() for p in flow.parameters()]
    for step in range(4):
        with torch.no_grad():
            for p in flow.parameters():
                p.add_(torch.randn(p.shape))
        flow.network.count += 1
        average.update(flow, step)
        want = [decay * mine + (1 - decay) * p.detach() for mine, p in zip(want, flow.parameters(), strict=True)]
        for got, mine in zip(average.module.parameters(), want, strict=True):
            torch.testing.assert_close(got, mine, rtol=1e-6, atol=1e-6)
        assert torch.equal(average.module.network.count, flow.network.count)
    if decay == 0:
        assert same(weights(average.module), weights(flow))


def test_a_warm_average_starts_with_small_decays() -> None:
    average = Average(buffered(), 0.95, warm=True)
    assert [average.rate(step) for step in (0, 1, 10, 89, 1000)] == [1 / 10, 2 / 11, 11 / 20, 90 / 99, 0.95]
    assert Average(buffered(), 0.95).rate(0) == 0.95


def test_an_average_is_a_copy_without_gradients_in_evaluation_mode() -> None:
    flow = buffered()
    average = Average(flow, 0.5)
    assert not any(p.requires_grad for p in average.module.parameters())
    assert not any(module.training for module in average.module.modules())
    assert flow.training
    assert all(p.requires_grad for p in flow.parameters())
    before = weights(average.module)
    with torch.no_grad():
        flow.network.weight.add_(1)
    assert same(weights(average.module), before)
    average.follow(flow, 0.25)
    torch.testing.assert_close(average.module.network.weight, before["network.weight"] + 0.75)


# ----------------------------------------------------------------------------------------------------- learning rate


@pytest.mark.parametrize(
    ("warmup", "cooldown", "shares"),
    [
        (0.0, 0.0, {0.0: 1.0, 0.5: 1.0, 1.0: 1.0}),
        (0.25, 0.0, {0.0: 0.0, 0.05: 0.2, 0.125: 0.5, 0.25: 1.0, 1.0: 1.0}),
        (0.0, 0.4, {0.0: 1.0, 0.6: 1.0, 0.8: 0.5, 0.9: 0.25, 1.0: 0.0}),
        (0.2, 0.4, {0.1: 0.5, 0.2: 1.0, 0.6: 1.0, 0.7: 0.75, 1.0: 0.0}),
    ],
)
def test_the_learning_rate_rises_stays_and_falls(warmup: float, cooldown: float, shares: dict[float, float]) -> None:
    optimizer = Optimizer(lr=2e-3, warmup=warmup, cooldown=cooldown)
    got = {share: learning_rate(optimizer, share) / 2e-3 for share in shares}
    assert got == pytest.approx(shares)


def test_the_learning_rate_of_a_run_follows_its_schedule() -> None:
    recipe = flow_matching()
    step = TrainStep(tiny.flow_map(recipe), recipe.objective)
    optimizer = Optimizer(lr=1e-2, warmup=0.25, cooldown=0.5)
    got = [record.lr for record in train(step, tiny.settings(8), optimizer, tiny.batches(recipe))]
    assert got == pytest.approx([5e-3, 1e-2, 1e-2, 1e-2, 7.5e-3, 5e-3, 2.5e-3, 0.0])


def test_a_step_uses_the_learning_rate_it_reports() -> None:
    """The first step of Adam without decay moves every weight by lr·sign(gradient), up to its epsilon."""
    recipe = flow_matching()
    optimizer = Optimizer(lr=1e-2, clip=None, warmup=0.5)
    step = TrainStep(tiny.flow_map(recipe), recipe.objective)
    before = step.flow.network.last.weight.detach().clone()
    record = next(train(step, tiny.settings(), optimizer, tiny.batches(recipe)))
    assert record.lr == pytest.approx(1e-2 / 6)  # step 1 of 12, warm-up over 6
    moved = (step.flow.network.last.weight - before).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, record.lr), rtol=1e-2, atol=0)


# -------------------------------------------------------------------------------------------------------------- loop


def test_records_are_those_of_the_objective() -> None:
    """Loss, gradient norm, logs and bins of the first step from the objective itself."""
    recipe = meanflow()
    step, batch = TrainStep(tiny.flow_map(recipe), recipe.objective), tiny.batches(recipe)(0)
    flow = tiny.flow_map(recipe)
    draw = recipe.objective.draw(batch, flow.path, Streams(seed=5), Progress(total=12 * 16), flow.null_label)
    terms = recipe.objective.evaluate(flow, flow, draw)
    terms.loss.mean().backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in flow.parameters() if p.grad is not None))
    record = next(train(step, tiny.settings(seed=5), FAST, tiny.batches(recipe)))
    assert (record.step, record.images, record.batch) == (1, 16, 16)
    assert record.loss == pytest.approx(terms.loss.mean().item(), rel=1e-6)
    assert record.grad_norm == pytest.approx(norm, rel=1e-5)
    assert record.logs["velocity_error"] == pytest.approx(float(terms.logs["velocity_error"].mean()), rel=1e-5)
    rows = ~draw.times.bootstrap
    assert record.logs["diagonal_error"] == pytest.approx(float(terms.logs["velocity_error"][rows].mean()), rel=1e-5)
    for k, got in enumerate(record.by_time):
        inside = (draw.times.t * BINS).floor() == k
        want = terms.logs["error"][inside]
        assert got == (pytest.approx(float(want.mean()), rel=1e-5) if len(want) else None)


def test_the_gradient_is_clipped_but_reported_as_it_was() -> None:
    recipe = flow_matching()
    runs = {}
    for clip in (None, 1e-3):
        step = TrainStep(tiny.flow_map(recipe), recipe.objective)
        sgd = torch.optim.SGD(step.flow.parameters(), lr=1.0)
        before = weights(step.flow)
        optimizer = Optimizer(lr=1.0, clip=clip)
        record = next(train(step, tiny.settings(), optimizer, tiny.batches(recipe), adamw=sgd))
        moved = math.sqrt(sum(float((p - before[n]).square().sum()) for n, p in step.flow.state_dict().items()))
        runs[clip] = (record.grad_norm, moved)
    assert runs[None][0] == runs[1e-3][0]
    assert runs[None][1] == pytest.approx(runs[None][0], rel=1e-4)
    assert runs[1e-3][1] == pytest.approx(1e-3, rel=1e-2)


def test_training_reaches_the_floor_of_flow_matching() -> None:
    """On data N(0, c² I) the loss cannot fall below the mean variance of the velocity, ∫ c²/S_t² dt = cπ/2."""
    recipe, c = flow_matching(), 0.5

    def batch_of(k: int) -> Batch:
        x = torch.randn(64, 2, generator=torch.Generator().manual_seed(k))
        return Batch(x=c * x, label=torch.zeros(64, dtype=torch.long))

    step = TrainStep(tiny.flow_map(recipe), recipe.objective)
    losses = [record.loss for record in train(step, tiny.settings(200, 64), FAST, batch_of)]
    assert sum(losses[:5]) / 5 > 1.1
    assert sum(losses[-80:]) / 80 == pytest.approx(c * math.pi / 2, rel=0.08)


def test_at_every_record_the_averages_have_seen_the_step() -> None:
    recipe = shortcut()
    step = TrainStep(tiny.flow_map(recipe), recipe.objective)
    average = Average(step.flow, 0.5)
    assert step.teacher is not None
    mine, teacher = weights(average.module), weights(step.teacher.module)
    records = []
    for record in train(step, tiny.settings(5), FAST, tiny.batches(recipe), averages=(average,)):
        for name, now in step.flow.state_dict().items():
            mine[name] = 0.5 * mine[name] + 0.5 * now
            teacher[name] = 0.999 * teacher[name] + 0.001 * now
            torch.testing.assert_close(average.module.state_dict()[name], mine[name], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(step.teacher.module.state_dict()[name], teacher[name], rtol=1e-5, atol=1e-6)
        records.append(record.step)
    assert records == [1, 2, 3, 4, 5]


def test_a_scheduled_teacher_follows_its_schedule() -> None:
    recipe = consistency_training()
    step = TrainStep(tiny.flow_map(recipe), recipe.objective)
    assert step.teacher is not None
    teacher, total = weights(step.teacher.module), 4 * 16
    for record in train(step, tiny.settings(4), FAST, tiny.batches(recipe)):
        decay = recipe.objective.teacher.decay(Progress(images=record.images, total=total))
        assert 0.9 <= decay < 1
        for name, now in step.flow.state_dict().items():
            teacher[name] = decay * teacher[name] + (1 - decay) * now
            torch.testing.assert_close(step.teacher.module.state_dict()[name], teacher[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("teacher", "copied"), [(Online(), False), (Ema(rate=0.9), True), (ScheduledEma(), True)])
def test_a_teacher_is_kept_where_the_objective_has_one(teacher: Online | Ema | ScheduledEma, copied: bool) -> None:
    parts = {"times": GridPairs(), "target": TwoStep(), "metric": SquaredError(space="state")}
    step = TrainStep(tiny.flow_map(flow_matching()), Objective(teacher=teacher, **parts))
    assert (step.teacher is not None) == copied
    assert len(list(step.parameters())) == len(list(step.flow.parameters()))  # the optimiser never sees it


def test_the_loop_starts_where_it_is_told_and_ends_with_the_budget() -> None:
    recipe = flow_matching()
    step = TrainStep(tiny.flow_map(recipe), recipe.objective)
    asked = []

    def batch_of(k: int) -> Batch:
        asked.append(k)
        return tiny.batches(recipe)(k)

    settings = TrainSettings(images=100, batch=16)
    records = list(train(step, settings, FAST, batch_of, start=4))
    assert asked == [4, 5, 6]
    assert [(record.step, record.images) for record in records] == [(5, 80), (6, 96), (7, 112)]


def test_a_consumer_may_look_at_the_network_in_evaluation_mode() -> None:
    recipe = flow_matching()
    runs = []
    for look in (False, True):
        step = TrainStep(tiny.flow_map(recipe, dropout=0.5), recipe.objective)
        for _ in train(step, tiny.settings(3), FAST, tiny.batches(recipe)):
            if look:
                step.flow.eval()
        runs.append(weights(step.flow))
    assert same(*runs)


def test_the_teacher_has_the_dropout_masks_of_the_network() -> None:
    """Where teacher and network are equal, a pass of each under the masks of the step is equal too."""
    recipe = shortcut()
    step = TrainStep(tiny.flow_map(recipe, dropout=0.5), recipe.objective)
    step.train()
    batch = tiny.batches(recipe)(0)
    step(step.draw(batch, Streams(), Progress()))
    assert step.teacher is not None
    assert step.teacher.module.training
    step.eval()
    step(step.draw(batch, Streams(), Progress()))
    assert not step.teacher.module.training


def test_runs_in_one_process_do_not_disturb_each_other() -> None:
    recipe = esc()
    alone = TrainStep(tiny.flow_map(recipe), recipe.objective)
    list(train(alone, tiny.settings(3), FAST, tiny.batches(recipe)))
    both = [TrainStep(tiny.flow_map(recipe), recipe.objective) for _ in range(2)]
    for _ in zip(*(train(step, tiny.settings(3), FAST, tiny.batches(recipe)) for step in both), strict=True):
        torch.rand(7)  # nor does the global generator
    assert same(weights(both[0].flow), weights(alone.flow))
    assert same(weights(both[1].flow), weights(alone.flow))


# ---------------------------------------------------------------------------------------------------- what goes wrong


def test_no_thread_outlives_the_training() -> None:
    recipe = flow_matching()

    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("shortflow")]

    def records(batch_of: Callable[[int], Batch] = tiny.batches(recipe)) -> Iterator[StepRecord]:
        step = TrainStep(tiny.flow_map(recipe), recipe.objective)
        return train(step, tiny.settings(5), FAST, batch_of)

    assert len(list(records())) == 5
    assert not threads()
    early = records()
    next(early)
    assert len(threads()) == 1
    early.close()
    assert not threads()
    interrupted = records()
    next(interrupted)
    with pytest.raises(KeyboardInterrupt):
        interrupted.throw(KeyboardInterrupt)
    assert not threads()

    def failing(k: int) -> Batch:
        if k == 2:
            raise DataError("photo 7 is damaged; replace it")
        return tiny.batches(recipe)(k)

    found = []
    with pytest.raises(DataError, match="photo 7 is damaged; replace it"):
        found.extend(record.step for record in records(failing))
    assert not threads()


def test_a_batch_of_another_size_is_refused() -> None:
    recipe = flow_matching()
    step = TrainStep(tiny.flow_map(recipe), recipe.objective)
    with pytest.raises(ShortflowError, match=r"step 1 has 8 rows, but train.batch is 16"):
        next(train(step, tiny.settings(), FAST, tiny.batches(recipe, 8)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"images": 0}, "train.images must be at least 1, got 0"),
        ({"batch": 0}, "train.batch must be at least 1"),
        ({"save_every": 0}, "train.save_every must be at least 1"),
        ({"keep": 0}, "train.keep must be at least 1"),
        ({"seed": -1}, "train.seed must be at least 0"),
        ({"batch": 8, "group": 9}, "train.group must be between 1 and the batch of 8, got 9"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(ShortflowError, match=message):
        TrainSettings(**values)


def test_the_budget_is_rounded_up_to_whole_steps() -> None:
    assert [TrainSettings(images=n, batch=16).steps for n in (1, 16, 17, 160)] == [1, 1, 2, 10]


# ---------------------------------------------------------------------------------------------------------- precision


def images_flow() -> FlowMap:
    torch.manual_seed(0)
    network = SiT(shape=(1, 8, 8), patch=4, width=32, depth=2, heads=2, mlp_ratio=2.0, num_classes=4, null_class=True)
    for weight in network.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.05)
    return FlowMap(network, Linear(), AverageVelocity(), StartAndGap())


def points_flow() -> FlowMap:
    torch.manual_seed(0)
    network = MLP(shape=(2,), width=32, depth=2, num_classes=4, null_class=True)
    nn.init.normal_(network.last.weight, std=0.2)
    return FlowMap(network, Linear(), AverageVelocity(), StartAndGap())


@pytest.mark.parametrize("build", [points_flow, images_flow])
def test_bf16_gives_nearly_the_numbers_of_fp32(build) -> None:
    """Also for the derivative in time, which bf16 itself would destroy."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn((32, *build().network.shape), generator=g)
    label = torch.arange(32) % 4
    recipe, got = meanflow(), {}
    for bf16 in (False, True):
        step = TrainStep(build(), recipe.objective, bf16=bf16)
        passes = []
        step.flow.network.t_embedder.register_forward_hook(lambda *call, passes=passes: passes.append(call))
        loss, terms = step(step.draw(Batch(x=x, label=label), Streams(), Progress()))
        loss.backward()
        assert loss.dtype == terms.loss.dtype == torch.float32
        assert {inputs[0].dtype for _, inputs, _ in passes} == {torch.float32}
        assert {output.dtype for *_, output in passes} == {torch.float32}
        gradient = torch.cat([p.grad.flatten() for p in step.flow.parameters() if p.grad is not None])
        got[bf16] = (terms, gradient)
    (fp32, gradient32), (bf16, gradient16) = got[False], got[True]
    for name, tolerance in (("tangent", 0.02), ("velocity_error", 0.02), ("error", 0.05)):
        want = fp32.logs[name].nanmean()
        torch.testing.assert_close(bf16.logs[name].nanmean(), want, rtol=tolerance, atol=0)
        assert want > 0.01
    assert not torch.equal(gradient32, gradient16)  # it did run in bf16
    assert torch.cosine_similarity(gradient32, gradient16, 0) > 0.999


# ---------------------------------------------------------------------------------------------------------------- log


def record(step: int, loss: float = 1.0, seconds: float = 0.5, **logs: float) -> StepRecord:
    by_time = (loss, *[None] * (BINS - 2), 2 * loss if step % 2 else None)
    return StepRecord(
        step=step,
        images=10 * step,
        batch=10,
        lr=0.1 * step,
        seconds=seconds,
        measured=Numbers(
            loss=loss,
            grad_norm=2 * loss,
            logs=logs,
            by_time=by_time,
            rows=dict.fromkeys(logs, 10),
            rows_by_time=tuple(0 if value is None else 5 for value in by_time),
        ),
    )


def test_a_line_is_the_mean_over_its_window() -> None:
    window = [record(4, 1.0, 0.25, error=3.0), record(5, 2.0, 0.5), record(6, 6.0, 0.25, error=5.0)]
    assert summary(window) == {
        "step": 6,
        "images": 60,
        "loss": 3.0,
        "grad_norm": 6.0,
        "error": 4.0,  # over the steps that have it
        "lr": pytest.approx(0.6),
        "error_by_time": [3.0, *[None] * (BINS - 2), 4.0],
        "images_per_second": 30.0,
    }


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_written_every_so_many_steps_and_at_the_end(tmp_path: Path) -> None:
    log = StatsLog(tmp_path / "new" / "stats.jsonl", 3)
    due = [step for step in range(1, 9) if log.add(record(step, float(step)), last=step == 8) is not None]
    assert due == [3, 6, 8]
    assert [(line["step"], line["loss"]) for line in lines(log.path)] == [(3, 2.0), (6, 5.0), (8, 7.5)]


def test_a_resumed_log_drops_later_lines_and_goes_on_with_its_window(tmp_path: Path) -> None:
    plain = StatsLog(tmp_path / "plain.jsonl", 3)
    log = StatsLog(tmp_path / "stats.jsonl", 3)
    for step in range(1, 12):
        plain.add(record(step, 1 / step, error=step / 7), last=step == 11)
        log.add(record(step, 1 / step, error=step / 7))
        if step == 5:
            pending = json.loads(json.dumps(log.pending))  # through the state on disk
    assert [entry["step"] for entry in pending] == [4, 5]
    with open(log.path, "a") as file:
        file.write('{"step": 12, "lo')  # a crash in the middle of a line
    again = StatsLog(log.path, 3, start=5, pending=pending)
    assert [line["step"] for line in lines(log.path)] == [3]
    for step in range(6, 12):
        again.add(record(step, 1 / step, error=step / 7), last=step == 11)
    assert log.path.read_text() == plain.path.read_text()


def test_a_new_log_starts_empty(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    path.write_text('{"step": 3}\n')
    StatsLog(path, 3)
    assert path.read_text() == ""
    StatsLog(tmp_path / "missing.jsonl", 3, start=5)
    assert (tmp_path / "missing.jsonl").read_text() == ""


@pytest.mark.parametrize("content", ["hello\n", '{"loss": 1}\n', "[1]\n"])
def test_a_log_that_is_something_else_is_kept_aside(tmp_path: Path, content: str) -> None:
    path = tmp_path / "stats.jsonl"
    for name in ("stats.jsonl.damaged", "stats.jsonl.damaged-2"):
        path.write_text(content)
        with pytest.warns(UserWarning, match=rf"stats.jsonl: line 1 cannot be read.* kept aside as {name}, .* 0 lines"):
            StatsLog(path, 3, start=5)
        assert path.read_text() == ""
        assert (tmp_path / name).read_text() == content


def test_the_mean_of_infinities_of_both_signs_is_no_number() -> None:
    line = summary([record(4, error=math.inf), record(5, error=-math.inf)])
    assert math.isnan(line["error"])
    assert summary([record(4, error=math.inf), record(5, error=1.0)])["error"] == math.inf


def test_a_snapshot_is_renewed_at_the_end_of_each_stage_with_the_running_average() -> None:
    recipe = progressive_distillation(levels=3, guidance=1.0)
    module = TrainStep(tiny.flow_map(recipe), recipe.objective)
    assert module.teacher is not None
    assert module.running is not None

    def weights(average: Average) -> Tensor:
        return torch.cat([weight.flatten() for weight in average.module.parameters()]).clone()

    teacher, running = [weights(module.teacher)], [weights(module.running)]
    for _ in train(module, tiny.settings(steps=9), Optimizer(lr=1e-2), tiny.batches(recipe)):
        teacher.append(weights(module.teacher))
        running.append(weights(module.running))
    for step, source in {1: 0, 2: 0, 3: 3, 4: 3, 5: 3, 6: 6, 7: 6, 8: 6, 9: 6}.items():  # the last stage has no end
        assert torch.equal(teacher[step], running[source]), step
    assert len({tuple(value.tolist()) for value in running}) == 10


def test_an_engine_steps_with_the_optimizer_that_it_is_given() -> None:
    """Also with another one for a module that it knows already."""
    recipe, engine = flow_matching(), Engine()
    step = TrainStep(tiny.flow_map(recipe), recipe.objective)
    for _ in range(2):
        adamw, before = build_optimizer(step, FAST), weights(step.flow)
        list(train(step, tiny.settings(2), FAST, tiny.batches(recipe), engine=engine, adamw=adamw))
        assert not same(weights(step.flow), before)
        assert adamw.state_dict()["state"]
