"""YAML that a user writes: its values, and the line of each for what may be wrong with it.

Its price is this module, over PyYAML, which is there already; a library that keeps lines would be
one package more for whoever trains.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planescope.files.errors import UsageError, one_line
from planescope.files.reading import read_text

if TYPE_CHECKING:
    import yaml


# Some ten thousand lines, which take seconds to parse; a study's grid needs few.
MOST_YAML_BYTES = 1 << 20

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 76
_SHORT.maxlevel = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Document:
    """A YAML file that holds a mapping.

    Attributes
    ----------
    path : str
    text : str
        The file as it is.
    values : dict
        By field; {} where the file is empty.
    """

    path: str
    text: str
    values: dict[str, Any]
    _root: yaml.Node | None

    def line(self, *place: str | int) -> int:
        """Return the line of a value, by the keys and indices that lead to it; as deep as these go.

        What stands where a list of it could is its own item 0.
        """
        node, line = self._root, 1
        for step in place:
            found = _child(node, step)
            if found is not None:
                line, node = found
            elif step != 0:
                break
        return line

    def error(self, problem: object, *place: str | int) -> UsageError:
        """Return an error about a value, with file and line."""
        return UsageError(f"{self.path}, line {self.line(*place)}: {problem}")


def _child(node: yaml.Node | None, step: str | int) -> tuple[int, yaml.Node] | None:
    """Return the line and node of what a step leads to."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if getattr(key, "value", None) == str(step) and isinstance(step, str):
                return key.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        item = node.value[step]
        return item.start_mark.line + 1, item
    return None


def read_document(path: str | os.PathLike[str], /) -> Document:
    """Read a YAML file that holds a mapping.

    Raises
    ------
    UsageError
        If it is not YAML, holds no mapping, or has a field twice; the message has the line.
    CheckpointError
        If the file cannot be read.
    """
    import yaml

    try:
        text = read_text(path, most=MOST_YAML_BYTES)
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path}: is not UTF-8 text; give a YAML file") from exc
    loader = None
    try:
        loader = yaml.SafeLoader(text)  # which refuses characters that cannot be printed
        root = loader.get_single_node()
        if root is not None and not isinstance(root, yaml.MappingNode):
            raise _no_fields(path)
        for mapping in _mappings(root):
            _check_names(path, mapping)
        values = {} if root is None else loader.construct_document(root)
        if not isinstance(values, dict):  # a !!set is a mapping by its form
            raise _no_fields(path)
    # Of tagged values PyYAML lets through whatever its own code stumbles over: an impossible date,
    # an integer without digits, a truth that is neither, a list as a key.
    except (yaml.YAMLError, ValueError, AttributeError, LookupError, TypeError) as exc:
        raise UsageError(f"{path}: {_problem(exc)}") from None
    except RecursionError:
        raise UsageError(f"{path}: is nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()
    named = {str(key): value for key, value in values.items()}
    return Document(path=str(path), text=text, values=named, _root=root)


def _no_fields(path: str | os.PathLike[str]) -> UsageError:
    return UsageError(f"{path}: holds no fields; write one a line, as in: epochs: 30")


def _mappings(root: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    """Yield all mappings of a document, each once however often it is referred to."""
    import yaml

    seen: set[int] = set()
    waiting = [] if root is None else [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield node
            waiting += [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def _check_names(path: str | os.PathLike[str], mapping: yaml.MappingNode) -> None:
    """Refuse two equal names, of which YAML itself lets the last win without a word."""
    import yaml

    seen: set[str] = set()
    for key, _ in mapping.value:
        if not isinstance(key, yaml.ScalarNode) or key.value in seen:
            what = "is there twice" if isinstance(key, yaml.ScalarNode) else "is no name"
            name = getattr(key, "value", "")
            raise UsageError(
                f"{path}, line {key.start_mark.line + 1}: the field {name!s:.40} {what}"
            )
        seen.add(key.value)


def _problem(exc: Exception) -> str:
    mark, problem = getattr(exc, "problem_mark", None), getattr(exc, "problem", None)
    where = f"line {mark.line + 1}: " if mark else ""
    return f"{where}is not YAML ({problem or one_line(exc)})"


def shown(value: object, /) -> str:
    """Return a value for a message; of what anchors unfold without end, the beginning."""
    return _SHORT.repr(value)
