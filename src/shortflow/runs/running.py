"""Training in a run directory."""

import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from shortflow.config import RunConfig, dump
from shortflow.data import Batches, ClassConsistent, Dataset, DataSpec, Shuffled
from shortflow.data.encoded import Encoded
from shortflow.data.identity import DataIdentity
from shortflow.errors import CheckpointError
from shortflow.files import remove_unfinished, write_atomic
from shortflow.flowmap import FlowMap
from shortflow.hub import build_flow, read_header
from shortflow.lock import RunLock
from shortflow.pairs import PairMaker
from shortflow.pictures import save_png
from shortflow.references import check_references, describe, load_references, pair_maker, start
from shortflow.runs.agreeing import check_same_data
from shortflow.runs.configuring import check_batch
from shortflow.runs.decoding import Decoding, decoding, save_latents
from shortflow.runs.sampling import generate, picture
from shortflow.train import StepRecord, fit
from shortflow.train.engine import Engine
from shortflow.train.state import latest_state
from shortflow.typing import Batch, Report

__all__ = ["batches", "check_data", "check_directory", "training"]

LEFT_OUT = "left-out.txt"  # images that cannot be read: what each is called, and why
PREVIEWS = {"images": 100, "points": 4096, "latents": 36}  # samples of a preview


def batches(
    run: RunConfig,
    dataset: Dataset,
    spec: DataSpec,
    maker: PairMaker | None,
    parts: range = range(1),
    count: int = 1,
) -> Callable[[int], Batch]:
    """The batches of the data, or of the pairs that a teacher has made.

    Where the batch of a step has `count` parts, batch k is the part parts[k mod n] of step k div n, n = len(parts).
    """
    of = [_part(run, dataset, spec, maker, part, count) for part in parts]
    return of[0] if len(of) == 1 else lambda k: of[k % len(of)](k // len(of))


def _part(
    run: RunConfig, dataset: Dataset, spec: DataSpec, maker: PairMaker | None, part: int, count: int
) -> Callable[[int], Batch]:
    """One part of the batch of a step."""
    shared = {"batch_size": run.train.batch, "seed": run.train.seed, "rank": part, "world": count}
    labels, n = (dataset.labels, len(dataset)) if maker is None else (maker.labels, maker.settings.count)
    order: Shuffled | ClassConsistent = Shuffled(n=n, **shared)
    if run.recipe.batches == "class-consistent" and labels is not None:
        order = ClassConsistent(labels=labels, group=run.train.group, num_classes=dataset.num_classes, **shared)
    if maker is not None:
        return lambda step: maker.batch(order.indices(step))
    return Batches(dataset=dataset, spec=spec, order=order, flip=run.data.flip)


def training(
    run: RunConfig,
    dataset: Dataset,
    directory: Path,
    *,
    resume: bool | Literal["auto"] = False,
    report: Report | None = None,
    sharded: bool = False,
    snapshots: Collection[int] = (),
) -> Iterator[StepRecord]:
    """Train in `directory`, yielding the record of every step. Ends with RUN/model.safetensors in place.

    The call itself checks everything and writes RUN/run.yaml, so that a run can be resumed from its first moment;
    the steps are taken as the records are asked for. A run that was stopped before its first state starts again.
    Where a recipe learns from pairs, RUN/pairs/ is filled before the first step, from where it was interrupted;
    `report` is told (pairs that are there, pairs in all). From the call to the end of the iterator the directory is
    locked. With `resume` = "auto" a run goes on where the directory has one, and begins where it has none. With
    `sharded` each of several processes holds a part of the weights (FSDP2). The averaged weights after the steps in
    `snapshots` are kept as RUN/model-step-00000500.safetensors.

    Raises:
        ConfigError: if a teacher, a weak model or a model to start from is missing or does not fit.
        CheckpointError: if the directory is in use, holds a run and `resume` is False, or none and it is True, or none
            of its states is whole, or the data or the other models are not those that the run was started with.
        DataError: if processes do not see the same data.
        Interrupted: from the iterator, after SIGINT or SIGTERM, with everything saved.
    """
    begun = check_directory(directory, resume)
    engine = Engine(sharded=sharded)
    check_batch(run, engine.parts(run.train.parts, run.train.batch)[1])
    lock = RunLock(directory, wanted=engine.main)
    try:
        return _training(run, dataset, directory, bool(resume) and begun, report, lock, engine, snapshots)
    except BaseException:
        lock.release()
        raise


def check_directory(directory: Path, resume: bool | Literal["auto"]) -> bool:
    """Whether there is a run in `directory`.

    Raises:
        CheckpointError: if it is a file, or holds no run and `resume` is True.
    """
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory} is a file; give the directory that the run shall have")
    begun = (directory / "run.yaml").is_file()
    if resume is True and not begun:
        raise CheckpointError(f"there is nothing to resume in {directory}: it holds no run.yaml; leave out --resume")
    return begun


def _training(
    run: RunConfig,
    dataset: Dataset,
    directory: Path,
    resume: bool,
    report: Report | None,
    lock: RunLock,
    engine: Engine,
    snapshots: Collection[int],
) -> Iterator[StepRecord]:
    """`training` in a directory that is locked; the lock is released with the iterator."""
    parts, count = engine.parts(run.train.parts, run.train.batch)
    check_same_data(engine, dataset)
    if isinstance(dataset.samples, Encoded):
        dataset.samples.to(engine.device)
    spec = DataSpec.fit(dataset, run.recipe.sigma_data)
    started = latest_state(directory / "state") is not None
    if resume and started and (directory / "model.safetensors").is_file():
        check_data(directory, spec)
    check_references(run, spec, started=started)
    loaded = load_references(run, spec)
    maker = pair_maker(run, spec, dataset, loaded, directory / "pairs")
    torch.manual_seed(run.train.seed)
    flow = build_flow(run, spec)
    if not started:
        start(flow, run)

    shown = Decoding()
    if engine.main and run.train.preview_every:
        if isinstance(dataset.samples, Encoded):
            shown = Decoding(autoencoder=dataset.samples.autoencoder)
        else:
            shown = decoding(spec, run.data.encoder, device=engine.device)
        if shown.note is not None:
            warnings.warn(f"previews are written as .npz: {shown.note}", stacklevel=3)
        if shown.unverified is not None:
            warnings.warn(f"the autoencoder of the previews is {shown.unverified}", stacklevel=3)

    def preview(averaged: FlowMap, path: Path) -> None:
        # One Euler step of flow matching is the mean of the data, whatever was learned.
        steps, n = 32 if averaged.ends == "diagonal" else 1, PREVIEWS[spec.kind]
        told = None
        if dataset.conditions is not None:
            told = dataset.told(np.linspace(0, len(dataset) - 1, n).astype(np.int64))
        pixels, labels = generate(averaged, spec, n, steps=steps, condition=told, autoencoder=shown.autoencoder)
        if shown.decoded:
            save_png(picture(pixels), path)
        else:
            save_latents(path.with_suffix(".npz"), pixels, labels, spec)

    records = fit(
        directory,
        flow,
        run.recipe.objective,
        batches(run, dataset, spec, maker, parts, count),
        settings=run.train,
        optimizer=run.recipe.optimizer,
        metadata=describe(run, spec, loaded),
        references=loaded.references,
        preview=preview,
        resume="auto" if resume else False,
        lock=lock,
        engine=engine,
        snapshots=snapshots,
        data=DataIdentity.of(dataset),
    )
    if not resume and engine.main:
        dump(run, directory / "run.yaml")
        if dataset.skipped:
            lines = [f"{title}\t{why}\n" for _, title, why in dataset.skipped]
            write_atomic(directory / LEFT_OUT, "".join(lines))
    if engine.main:
        remove_unfinished(directory / "pairs")
    return records if maker is None else _after(maker, report, records, lock, engine)


def _after(
    maker: PairMaker,
    report: Report | None,
    records: Iterator[StepRecord],
    lock: RunLock,
    engine: Engine,
) -> Iterator[StepRecord]:
    """The records of a run whose pairs are made first, by all processes; the first one looks what is missing."""
    try:
        share = {"rank": engine.rank, "world": engine.world}
        missing = engine.gathered(engine.together(maker.missing if engine.main else list[int]))[0]
        engine.together(lambda: maker.make(report, missing=missing, **share))
        engine.together(maker.check_whole)
        yield from records
    finally:
        lock.release()


def check_data(directory: Path, spec: DataSpec) -> None:
    """Raise `CheckpointError` if the model of a run that goes on was trained on data with another spec.

    Its name is that of a folder, which may be another where the data have moved; a state knows what they hold.
    """
    before, now = read_header(directory).get("data"), spec.to_dict()
    if isinstance(before, dict) and before != {**now, "name": before.get("name")}:
        known = [*now, *(name for name in before if name not in now)]
        changed = [
            f"{name} was {before.get(name)}, is {now.get(name)}" for name in known if before.get(name) != now.get(name)
        ]
        there = DataSpec.from_dict(before)
        if there.latent is not None and spec.latent is not None:
            changed = there.latent.differences(spec.latent, ("the run", "the data")) or changed
        raise CheckpointError(
            f"the data of {directory} have changed since the run was started ({'; '.join(changed)}); "
            "give it back its data, or start a new run in another directory"
        )
