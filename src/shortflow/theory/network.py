"""A network that is right: the exact flow of a `Law` behind the interface of a network.

A flow map built on it is the exact flow map, so every target, sampler and measurement can be checked against what
it must give on the solution.
"""

from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from shortflow.errors import ShortflowError
from shortflow.flowmap import AverageVelocity, FlowMap
from shortflow.theory.law import Law

__all__ = ["ExactNetwork", "exact_flow"]

Output = Literal["average_velocity", "velocity", "transfer"]


class ExactNetwork(nn.Module):
    """The exact answer of a law, for networks whose times are t and the gap t − r.

    Arguments:
        law: the data law and its path.
        output: what the network is asked for:
            "average_velocity": u_{t,r}(x), with X_{t,r}(x) = x + (r − t) u;
            "transfer": F = (X_{t,r}(x) − ā x)/b̄ with (ā, b̄) of `Path.transfer`, so that X_{t,r}(x) = ā x + b̄ F;
            "velocity": v_t(x) whatever the gap (a network trained by flow matching).

    On rows with r = t all three are v_t(x), without 0/0 in the value or in the derivative.

    Attributes:
        num_classes: classes of the law (0: none, and labels are not looked at).
        null_label: the label that means no class; None if there are no classes.

    Raises:
        ShortflowError: if `output` is none of the three.
    """

    def __init__(self, law: Law, output: Output = "average_velocity") -> None:
        super().__init__()
        if output not in ("average_velocity", "velocity", "transfer"):
            raise ShortflowError(f'output must be "average_velocity", "velocity" or "transfer", got {output!r}')
        self.law, self.output = law, output
        self.num_classes = law.num_classes
        self.null_label = law.num_classes if law.num_classes > 0 else None

    def forward(
        self,
        x: Float[Tensor, "b ..."],
        time: Float[Tensor, "b"],
        second: Float[Tensor, "b"] | None = None,
        label: Int[Tensor, "b"] | None = None,
    ) -> Float[Tensor, "b ..."]:
        """The output at x, time t = `time`, end r = time − second (r = t where `second` is None); shape (b, ...)."""
        label = label if self.num_classes > 0 else None
        if second is None or self.output == "velocity":
            return self.law.velocity(x, time, label)
        u = self.law.average_velocity if self.output == "average_velocity" else self.law.transfer_velocity
        return u(x, time, time - second, label)

    def extra_repr(self) -> str:
        return f"{type(self.law).__name__}, output={self.output!r}"


def exact_flow(law: Law) -> FlowMap:
    """The exact flow map X_{t,r} of the law as a `FlowMap`: what samplers, targets and measurements take."""
    return FlowMap(ExactNetwork(law), law.path, AverageVelocity())
