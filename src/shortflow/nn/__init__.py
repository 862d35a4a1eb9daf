"""Plain networks that know no method, and the contract every one of them keeps:

    network(x, time, second=None, label=None, guidance=None) -> output of x's shape

    x        Float (b, ...)       the points, scaled as the caller wishes
    time     Float (b)            float32 or float64, also where the rest runs in half precision
    second   Float (b) | None     the other time input: the gap t − r, or log2 of a number of steps
    label    Int (b) | Float (b, d) | Float (b, n, d) | None
                                  the class of each row; or a vector, or a sequence of up to n tokens, in which NaN is
                                  what is not there (a hidden condition, padding)
    guidance Float (b, 3) | None  (scale ω, low, high) of each row: the scale of guidance and the times it acts at

    network.num_classes        0: unconditional
    network.condition_shape    (d,) of vectors, (n, d) of sequences; may be missing where there is neither
    network.null_label         what stands for no class (= num_classes) or no condition (NaN), None where nothing does
    network.log_variance(time, second=None, label=None) -> Float (b)
                               only where the head was asked for; a `ShortflowError` otherwise
    network.both(x, time, second=None, label=None, guidance=None) -> (output, velocity)
                               only where the velocity head was asked for; a `ShortflowError` otherwise
    network.velocity_alone(x, time, second=None, label=None, guidance=None) -> velocity
                               what `both` returns second, where that takes less than both; may be missing
    network.checkpoint         whether blocks are run again in the backward pass (`checkpointed`); may be missing

A network is smooth in x, time and second, and can be differentiated in forward mode (`torch.func.jvp`) as it stands.
Any `nn.Module` that keeps the contract will do in place of the ones here; it needs to take a guidance and to have the
heads only where a method asks for them, and a guidance is passed only to a network that takes one.
"""

from shortflow.nn.checkpointing import checkpointed
from shortflow.nn.configs import MLPConfig, NetworkConfig, SiTConfig, UNetConfig, parameter_count
from shortflow.nn.mlp import MLP
from shortflow.nn.sit import SIZES, SiT
from shortflow.nn.unet import UNet

__all__ = [
    "MLP",
    "SIZES",
    "MLPConfig",
    "NetworkConfig",
    "SiT",
    "SiTConfig",
    "UNet",
    "UNetConfig",
    "checkpointed",
    "parameter_count",
]
