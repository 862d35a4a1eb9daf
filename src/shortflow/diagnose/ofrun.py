"""`diagnose_run`: how far a trained model is from the exact flow of its data, where the error is made, and which."""

from shortflow.data import Dataset
from shortflow.diagnose.advice import advise_on_run
from shortflow.diagnose.agreeing import residuals, velocities
from shortflow.diagnose.bounding import bound
from shortflow.diagnose.jumping import self_distance, stretch
from shortflow.diagnose.memory import memory
from shortflow.diagnose.ofdata import Looking
from shortflow.diagnose.record import Diagnosis
from shortflow.diagnose.stages import Stages
from shortflow.diagnose.subject import Subject
from shortflow.diagnose.velocities import COLLAPSE
from shortflow.errors import ConfigError
from shortflow.hub import Model
from shortflow.typing import Report

__all__ = ["diagnose_run"]


def diagnose_run(
    model: Model,
    training: Dataset,
    held_out: Dataset | None = None,
    *,
    looking: Looking = Looking(),
    report: Report | None = None,
) -> Diagnosis:
    """The diagnosis of a trained model against the exact law of its training data.

    Args:
        training: what it was trained on.
        held_out: other data of the same kind; None: nothing is said of memorised data, nor of the true distance.
        report: is told (done, in all).

    Raises:
        ConfigError: if the data are not of the shape of the model's.
    """
    if training.shape != model.spec.shape:
        raise ConfigError(f"the model makes samples of shape {model.spec.shape}, the data have {training.shape}")
    s = Subject(model, training, looking)
    d = Diagnosis(kind="run", settings=s.settings())
    stages = Stages([6, 5, 2, 1, 1, 2, 1], report)
    bound(d, s, held_out, stages.next())
    residuals(d, s, stages.next())
    velocities(d, s, stages.next())
    self_distance(d, s, stages.next())
    stretch(d, s, stages.next())
    if held_out is not None:
        memory(d, model, training, held_out, looking, stages.next())
    stages.done()
    _notes(d, s, held_out)
    advise_on_run(d)
    return d


def _notes(d: Diagnosis, s: Subject, held_out: Dataset | None) -> None:
    d.scalar("collapse_time", s.collapse, COLLAPSE)
    if s.model.spec.image:
        d.notes.append("Distances are those of pixels, as the network sees them.")
    if s.flow.condition_shape is not None:
        d.notes.append(
            "The exact law is that of all samples, and the network is told that there is no condition; only the "
            "samples whose neighbours are looked for have those of held-out data."
        )
    if s.model.spec.kind == "latents":
        d.notes.append("Latents are the means of their Gaussians, of images that are not mirrored.")
    elif s.model.run.data.flip:
        d.notes.append("The run mirrors half of its images, and the exact law has them as they are.")
    if s.flow.guided is not None:
        d.notes.append(
            f"The model carries {s.flow.guided}: its target is not the law of the data; distances contain that."
        )
    if held_out is None:
        d.notes.append("There are no held-out data: nothing is said of memorised data.")
