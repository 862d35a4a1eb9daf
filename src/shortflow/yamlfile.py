"""YAML that holds values only: nothing in it is executed, and its size and nesting are bounded.

Aliases, with which a short file can stand for a huge one, tags and repeated keys are errors.
"""

from pathlib import Path
from typing import Any

import yaml

from shortflow.errors import ConfigError

__all__ = ["parse_yaml", "read_yaml"]

_LARGEST = 200_000  # characters; a resolved run has about 3,000
_DEEPEST = 40
_PRINTED = "`shortflow show RECIPE --data DATA` prints such a file"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, repeated keys and deep nesting."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(
                None, None, f"aliases (*{event.anchor}) are not allowed; write the value out", event.start_mark
            )
        self.depth += 1
        if self.depth > _DEEPEST:
            raise yaml.constructor.ConstructorError(
                None, None, f"nested deeper than {_DEEPEST} levels", event.start_mark
            )
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_undefined(self, node: Any) -> Any:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise yaml.constructor.ConstructorError(
            None, None, f"the tag {tag} is not allowed; run files hold values only, write it out", node.start_mark
        )

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _ in node.value:
            if key.value in seen if isinstance(key, yaml.ScalarNode) else False:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


_Loader.add_constructor(None, _Loader.construct_undefined)  # pyright: ignore[reportArgumentType]


def parse_yaml(text: str, what: str) -> Any:
    """The plain value that a YAML text describes.

    Raises:
        ConfigError: naming `what`, the line and the fault.
    """
    if len(text) > _LARGEST:
        raise ConfigError(f"{what} is no run file: it has {len(text):,} characters, at most {_LARGEST:,} are read")
    try:
        return yaml.load(text, _Loader)  # a subclass of the safe loader
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" (line {error.problem_mark.line + 1})"
        spaces = "; indent with spaces" if "'\\t'" in str(error.problem) else ""
        raise ConfigError(f"{what} is not YAML that can be read: {error.problem}{spaces}{line}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{what} is not YAML: {str(error).splitlines()[0]}") from error
    except (ValueError, OverflowError) as error:  # dates and numbers that look right and are not
        raise ConfigError(f"{what} holds a value that is none: {error}") from error


def read_yaml(path: Path) -> dict[Any, Any]:
    """The settings that a file holds.

    Raises:
        ConfigError: if it cannot be read, or holds something else.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(4 * _LARGEST + 1)  # not all of it: it may be as long as a disk
        if len(content) > 4 * _LARGEST:
            raise ConfigError(f"{path} is no run file: it has more than {4 * _LARGEST:,} bytes")
        text = content.decode()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; {_PRINTED}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not a text file (UTF-8): {error.reason} at byte {error.start}; {_PRINTED}"
        ) from error
    plain = parse_yaml(text, str(path))
    if not isinstance(plain, dict):
        kind = "nothing" if plain is None else type(plain).__name__
        raise ConfigError(f"{path} must hold the settings recipe, network, data and train, got {kind}; {_PRINTED}")
    return plain
