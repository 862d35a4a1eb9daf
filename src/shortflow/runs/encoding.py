"""Images into a store of latents: shard by shard, by several processes, from where it was interrupted.

A shard is a function of its images, the autoencoder and the settings. It is written whole or not at all, so a store
that was interrupted, or made by more processes, ends with the same bytes. meta.json is written last, after the latents
of some images were decoded and compared with these.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from shortflow.data.encoders import Autoencoder
from shortflow.data.latents import META, Skipped, read_meta, rescale
from shortflow.data.latentspec import LatentSpec
from shortflow.errors import ConfigError, DataError
from shortflow.lock import RunLock
from shortflow.runs.feeds import Feed
from shortflow.runs.storing import Encoded, EncodeSettings, Store, Units, in_units, some
from shortflow.train.engine import Engine
from shortflow.typing import Report

__all__ = ["encode", "rescaled"]


def encode(
    feed: Feed,
    autoencoder: Autoencoder,
    out: Path,
    *,
    settings: EncodeSettings = EncodeSettings(),
    scale: Units = None,
    shift: Units = None,
    engine: Engine | None = None,
    report: Report = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> Encoded:
    """Make the store `out` of what `feed` gives, or finish it, or verify it where it is finished.

    Args:
        scale, shift: natural units of the latents; None: those of the autoencoder's config, or of the finished store.
        engine: the processes, which share the shards that are missing.
        report: called with (latents done, latents to do) of this process after every batch.
        say: told what is about to be done.

    Raises:
        ConfigError: if `out` holds something else, or latents that were made otherwise.
        DataError: lists the images that cannot be read; says if there is too little space. What is finished is kept.
    """
    engine = engine or Engine()
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; give a folder for the latents")
    lock = RunLock(out, wanted=engine.main)
    try:
        store = Store(feed=feed, autoencoder=autoencoder, out=out, settings=settings)
        together = engine.together
        together(store.prepare if engine.main else lambda: None)
        mine = range(engine.rank, store.shards, engine.world)
        found = together(lambda: {number: store.there(number) for number in mine})
        absent = engine.gathered([number for number in mine if found[number] is None])
        everywhere = sorted(number for part in absent for number in part)
        missing = everywhere[engine.rank :: engine.world]  # anew: all that is missing may have been of one process
        wanted = sum(len(store.rows(number)) for number in everywhere)
        if wanted and engine.main:
            (out / META).unlink(missing_ok=True)  # from here on the folder is unfinished
        together(lambda: store.check_space(wanted, say if engine.main else lambda text: None))
        together(lambda: store.write(missing, report))
        _refuse(out, [each for part in engine.gathered(store.failed) for each in part])
        kept = [number for number in mine if found[number] is not None] + missing
        sums = [each for part in engine.gathered([store.sum_of(number) for number in kept]) for each in part]
        units = (scale, shift)
        results = engine.gathered(
            together(lambda: store.finish(sorted(sums), units, wanted) if engine.main else None)  # type: ignore[arg-type]
        )
        return next(result for result in results if result is not None)
    finally:
        lock.release()


def _refuse(out: Path, failed: Sequence[Skipped]) -> None:
    if failed:
        listed = some([f"{title} ({why})" for _, title, why in sorted(failed)], "; ")
        raise DataError(
            f"{len(failed)} images cannot be read: {listed}. Replace them, or leave them out with --corrupt skip, "
            f"and give the command again: what is encoded is kept in {out}"
        )


def rescaled(folder: Path, scale: Units = None, shift: Units = None) -> LatentSpec:
    """Give a finished store other natural units; no shard changes.

    Raises:
        DataError: if there is no such store, or the numbers do not fit its channels.
    """
    meta = read_meta(folder)
    latent = in_units(meta["latent"], (scale, shift), meta["measured"])
    return rescale(folder, latent.scale, latent.shift)
