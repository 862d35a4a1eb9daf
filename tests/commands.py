"""Commands as a test gives them, and what they say."""

from collections.abc import Callable
from typing import NamedTuple


class Said(NamedTuple):
    code: int
    out: str
    err: str


Shortflow = Callable[..., Said]
