"""Targets of the one formula: the prediction X_{t,r}(x_t) is regressed onto two steps, X_{s,r} ∘ X_{t,s}(x_t).

This is the only package that knows the template. Of the limits of the two steps,

- `Direct`: r = t, the target output is a velocity (flow matching); `Along`: the same over jumps (straight flows);
- `TwoStep`: s < t, the first step by a velocity or by the network, the second by the network;
- `Secant`: the same two steps as a difference quotient with step t − s (SoFlow, RCGM);
- `Tangent`: the limit s → t, along D_t X (sCT, MeanFlow);
- `Terminal`: the limit s → r, the velocity ∂_r X at the end of the jump (LSD, TVM, AYF's LMD);
- `Eulerian`: the residual D_t X itself, with gradient through the derivative (ESD);
- `Split`: rows with r = t, with s < t and with s = t each take their own.

Targets carry no gradient.
"""

from shortflow.targets.base import Direct, Target, TargetValue
from shortflow.targets.jumps import Along, Secant, TwoStep
from shortflow.targets.limits import CosineWeight, Eulerian, Tangent, TangentWeight, Terminal, UnitWeight
from shortflow.targets.split import Split

__all__ = [
    "Along",
    "CosineWeight",
    "Direct",
    "Eulerian",
    "Secant",
    "Split",
    "Tangent",
    "TangentWeight",
    "Target",
    "TargetValue",
    "Terminal",
    "TwoStep",
    "UnitWeight",
]
