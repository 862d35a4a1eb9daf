"""Published methods as values: one file a method, one expression each, with the table "symbol in the paper → field".

The difference between two methods is the difference between two values; `shortflow recipes --diff A B` prints it.
"""

from collections.abc import Callable

from shortflow.recipe import Recipe
from shortflow.recipes.ct import consistency_training
from shortflow.recipes.esc import esc
from shortflow.recipes.flow_matching import flow_matching
from shortflow.recipes.imm import imm
from shortflow.recipes.meanflow import meanflow
from shortflow.recipes.sct import sct
from shortflow.recipes.shortcut import shortcut

__all__ = ["RECIPES", "consistency_training", "esc", "flow_matching", "imm", "meanflow", "sct", "shortcut"]

RECIPES: dict[str, Callable[..., Recipe]] = {
    "flow-matching": flow_matching,
    "shortcut": shortcut,
    "ct": consistency_training,
    "imm": imm,
    "sct": sct,
    "meanflow": meanflow,
    "esc": esc,
}
