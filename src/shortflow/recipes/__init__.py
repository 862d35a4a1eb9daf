"""Published methods as values: one file a method or family, with the table "symbol in the paper → field".

The difference between two methods is the difference between two values; `shortflow recipes --diff A B` prints it.
A method with several published settings takes one by name, `recipe("meanflow/pixels")`.
"""

from collections.abc import Callable

from shortflow.recipe import Recipe
from shortflow.recipes.alphaflow import alphaflow
from shortflow.recipes.ayf import ayf_emd, ayf_lmd
from shortflow.recipes.cd import consistency_distillation
from shortflow.recipes.ct import consistency_training
from shortflow.recipes.ect import ect
from shortflow.recipes.edm import edm
from shortflow.recipes.esc import esc, esc_plus
from shortflow.recipes.flow_matching import flow_matching
from shortflow.recipes.frans_baselines import cd_linear, ct_linear
from shortflow.recipes.ict import ict
from shortflow.recipes.imf import imf
from shortflow.recipes.imm import imm
from shortflow.recipes.meanflow import meanflow
from shortflow.recipes.progressive import progressive_distillation
from shortflow.recipes.rcgm import rcgm
from shortflow.recipes.reflow import live_reflow, reflow
from shortflow.recipes.sct import sct
from shortflow.recipes.sct_distilled import sct_distilled
from shortflow.recipes.sct_linear import sct_linear
from shortflow.recipes.self_distillation import esd, lsd, psd
from shortflow.recipes.shortcut import shortcut
from shortflow.recipes.soflow import soflow
from shortflow.recipes.tcm import tcm
from shortflow.recipes.tvm import tvm

__all__ = [
    "RECIPES",
    "SETTINGS",
    "alphaflow",
    "ayf_emd",
    "ayf_lmd",
    "cd_linear",
    "consistency_distillation",
    "consistency_training",
    "ct_linear",
    "ect",
    "edm",
    "esc",
    "esc_plus",
    "esd",
    "flow_matching",
    "ict",
    "imf",
    "imm",
    "live_reflow",
    "lsd",
    "meanflow",
    "progressive_distillation",
    "psd",
    "rcgm",
    "reflow",
    "sct",
    "sct_distilled",
    "sct_linear",
    "shortcut",
    "soflow",
    "tcm",
    "tvm",
]

RECIPES: dict[str, Callable[..., Recipe]] = {
    # many steps
    "flow-matching": flow_matching,
    "edm": edm,
    # one step, from scratch
    "shortcut": shortcut,
    "ct": consistency_training,
    "ict": ict,
    "ect": ect,
    "ct-linear": ct_linear,
    "live-reflow": live_reflow,
    "imm": imm,
    "sct": sct,
    "sct-linear": sct_linear,
    "meanflow": meanflow,
    "esc": esc,
    "esc-plus": esc_plus,
    "imf": imf,
    "soflow": soflow,
    "alphaflow": alphaflow,
    "lsd": lsd,
    "esd": esd,
    "psd": psd,
    "rcgm": rcgm,
    "tvm": tvm,
    # from another model
    "cd": consistency_distillation,
    "cd-linear": cd_linear,
    "tcm": tcm,
    "progressive-distillation": progressive_distillation,
    "reflow": reflow,
    "sct-distilled": sct_distilled,
    "ayf-emd": ayf_emd,
    "ayf-lmd": ayf_lmd,
}

SETTINGS: dict[str, tuple[str, ...]] = {
    "imm": ("latents", "pixels"),
    "meanflow": ("latents", "pixels"),
    "esc": ("latents", "pixels"),
    "soflow": ("latents", "pixels"),
}
"""The published settings of methods that have several, the default first; they are named "method/setting"."""
