"""Runs as data: a closed table of parts, plain values (YAML, JSON) ⇄ objects, overrides, differences.

A run is a recipe, a network, data and a budget. `to_plain` writes any of them as nested mappings in which `kind` names
the part; `from_plain` reads them back, checks every value against its declared type and collects all errors at once,
each with its path and, for a misspelled name, the nearest valid one. `register` adds a part of your own.

    parts       the table of parts, `to_plain`          reading     `from_plain`
    runfile     YAML files, without anything that YAML could execute or blow up
    overrides   "field.path=value"                      differences `difference`, `difference_in_words`
    words       parts as phrases
"""

from shortflow.config.differences import difference, difference_in_words, flatten
from shortflow.config.overrides import concerning, override
from shortflow.config.parts import DataConfig, RunConfig, kinds, register, to_plain, whole
from shortflow.config.reading import from_plain, nearest
from shortflow.config.runfile import dump, load_run, recipe_named, to_yaml
from shortflow.config.words import in_words

__all__ = [
    "DataConfig",
    "RunConfig",
    "concerning",
    "difference",
    "difference_in_words",
    "dump",
    "flatten",
    "from_plain",
    "in_words",
    "kinds",
    "load_run",
    "nearest",
    "override",
    "recipe_named",
    "register",
    "to_plain",
    "to_yaml",
    "whole",
]
