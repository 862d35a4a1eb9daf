"""Samples from a flow map: a grid of times and a rule for what happens between two of them. One step is simply N = 1.

| rule | between t_i and t_{i+1} | asks the network for |
|---|---|---|
| `PushForward` | x ← X_{t_i, t_{i+1}}(x) | jumps; at r = t only, DDIM steps |
| `ReNoise` | x̂ ← X_{t_i, end}(x), new noise up to t_{i+1} | jumps to the data |
| `Gamma` | a jump below t_{i+1}, new noise up to t_{i+1}: between the two above | jumps to any end |
| `Restart` | x ← X_{t_i, t_{i+1}}(x), then back up to t_i with new noise and down again | as `PushForward` |
| `Euler`, `Heun` | steps of dx/dt = u_{t,t}(x), of order one and two | r = t |

All but the last two leave the law of the samples exact where the flow map is. A sampler refuses a network that was not
trained for what it would ask. Every image has its own noise, a function of (seed, index): image k is the same for any
number of images, of steps and of images a batch.
"""

from shortflow.sample.grids import GRIDS, default_grid, grid_times, search_middle, time_at
from shortflow.sample.images import Samples, interpolate, noise, sample
from shortflow.sample.ode import Euler, Heun
from shortflow.sample.rules import Gamma, PushForward, ReNoise, Restart, Sampler, default_sampler

# The rules by the names that a command line takes.
SAMPLERS: dict[str, type[Sampler]] = {
    "push-forward": PushForward,
    "re-noise": ReNoise,
    "restart": Restart,
    "gamma": Gamma,
    "euler": Euler,
    "heun": Heun,
}

__all__ = [
    "GRIDS",
    "SAMPLERS",
    "Euler",
    "Gamma",
    "Heun",
    "PushForward",
    "ReNoise",
    "Restart",
    "Sampler",
    "Samples",
    "default_grid",
    "default_sampler",
    "grid_times",
    "interpolate",
    "noise",
    "sample",
    "search_middle",
    "time_at",
]
