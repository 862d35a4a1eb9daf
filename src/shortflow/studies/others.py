"""What a recipe that is no beginning of its own follows, and what it starts from, where a study does not say.

They are other cells of the same study: of the same seed, with the same budget, made first.
"""

__all__ = ["STARTS", "TEACHERS", "in_words"]

TEACHERS = {
    "cd": "edm",
    "cd-linear": "flow-matching",
    "tcm": "ect",
    "reflow": "flow-matching",
    "sct-distilled": "flow-matching",
    "ayf-emd": "flow-matching",
    "ayf-lmd": "flow-matching",
}
STARTS = {
    "ect": "edm",
    "progressive-distillation": "flow-matching",
    "cd-linear": "flow-matching",
    "reflow": "flow-matching",
    "tcm": "ect",
    "ayf-emd": "flow-matching",
    "ayf-lmd": "flow-matching",
}


def in_words(name: str, teacher: str | None, start: str | None) -> str:
    """Which model a variant follows or starts from; empty where none."""
    if teacher is not None and teacher == start:
        return f"{name} follows and starts from {teacher}"
    words = [f"follows {teacher}"] * (teacher is not None) + [f"starts from {start}"] * (start is not None)
    return f"{name} {' and '.join(words)}" if words else ""
