"""Layers that a graph does not reach: never called, in training alone, or on some condition.

One trace shows one way through `forward`: in evaluation, with its options as they are when left
out. So it is run once more, in training too, and all code that ran is searched for names, before
anything is said to be called by nothing.
"""

from __future__ import annotations

import contextlib
import random
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from planescope.networks.graph.trace import trace_usage
from planescope.networks.graph.usage import Usage, key_of, outermost
from planescope.networks.live.affine import Leaf
from planescope.networks.live.copies import is_hooked, own_tensors, same_random_states, stand_in

# Code of these is not the network's own.
_OTHERS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[2]))
_FRAMEWORKS = ("torch.", "builtins", "lightning.", "pytorch_lightning.")
_HOLDERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Code that asks for modules by these may get any.
_ANY = {"getattr", "get_submodule", "_modules", "children", "named_children", "modules"}


@dataclass(frozen=True, eq=False)
class Unused:
    """Layers that the graph does not reach: those that nothing calls, and what to say of others."""

    never: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class SecondLook:
    """Runs of a network beside the first trace, made when they are asked for, each once.

    `leaves` are modules that are looked at from without, as `trace` has them.
    """

    def __init__(self, root: nn.Module, leaves: Mapping[nn.Module, Leaf], /) -> None:
        self._root, self._leaves = root, leaves

    def refuse_misled(self, names: Iterable[str], usage: Usage, /) -> None:
        """Refuse a graph that leaves layers out where code asked what is a tensor.

        Raises
        ------
        TypeError
            If symbols have had the answer that tensors have not.
        """
        if outermost(self._root, names, usage) and any(
            _asks_for_tensors(each) for each in self._evaluated.code
        ):
            raise TypeError("forward asks what is a tensor, and symbols are none")

    def find_unused(self, names: Collection[str], usage: Usage, /) -> Unused:
        """Tell of each layer that a graph does not reach whether anything else may call it."""
        found = Unused()
        first = outermost(self._root, names, usage)
        if not first:
            return found
        if sum(map(len, first.values())) == len(names):
            found.notes.append("the graph reaches no layer: which of them act is not known")
            return found
        evaluated, trained = self._evaluated, self._trained
        words = _Words(evaluated.code | trained.code, _entries(type(self._root)))
        is_known = evaluated.ended and trained.ended and not evaluated.has_drawn
        is_certain = is_known and not any(map(is_hooked, self._root.modules()))
        training, perhaps = [], []
        for outer, layers in first.items():
            if evaluated.uses(outer):
                continue
            if is_known and trained.uses(outer):
                training.append(outer)
            elif is_certain and not words.may_call(self._root, outer):
                found.never.extend(layers)
            else:
                perhaps.append(outer)
        found.notes.extend(_notes(training, perhaps))
        return found

    @cached_property
    def _evaluated(self) -> _Run:
        return _Run(self._root, self._leaves, training=False)

    @cached_property
    def _trained(self) -> _Run:
        return _Run(self._root, self._leaves, training=True)


def _notes(training: Sequence[str], perhaps: Sequence[str]) -> Iterator[str]:
    if training:
        yield (
            f"forward calls {_listed(training)} in training alone: measured, but without effect "
            "otherwise"
        )
    if perhaps:
        yield (
            f"forward, in evaluation and with its options left out, does not call "
            f"{_listed(perhaps)}: measured, but perhaps nothing that acts"
        )


def _listed(names: Sequence[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


class _Run:
    """A trace of a copy of a network, with all code that ran and all values that were computed."""

    def __init__(
        self, root: nn.Module, leaves: Mapping[nn.Module, Leaf], *, training: bool
    ) -> None:
        self.code: set[CodeType] = set()
        self.ended = self.has_drawn = False
        self._usage: Usage | None = None
        reads = _Reads()
        # forward is anybody's code.
        with contextlib.suppress(Exception), same_random_states():
            # What is no parameter is the copy's own: forward may count its calls.
            memo: dict[int, Any] = {id(tensor): tensor for tensor in own_tensors(root)}
            self._twin = stand_in(root, memo=memo)
            own = {memo[id(module)]: leaf for module, leaf in leaves.items() if id(module) in memo}
            state = random.getstate(), torch.get_rng_state()
            with reads, _watching(self.code):
                usage = trace_usage(self._twin, own, training=training)
            usage.read.update(dict.fromkeys(reads.keys, "an operation on constants"))
            self._usage, self.ended = usage, True
            # What a draw decides another run may decide otherwise.
            drawn = random.getstate() != state[0] or not torch.equal(
                torch.get_rng_state(), state[1]
            )
            self.has_drawn = drawn

    def uses(self, name: str) -> bool:
        """Tell whether a module was used; if the trace did not end, nothing is known to be."""
        return self._usage is not None and self._usage.uses(self._twin.get_submodule(name))


class _Reads(TorchDispatchMode):  # type: ignore[misc]
    """The tensors that are computed with meanwhile, which a graph shows as constants."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, tuple((kwargs or {}).values()))
        self.keys.update(map(key_of, _tensors(given)))
        return func(*args, **(kwargs or {}))


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)


@contextlib.contextmanager
def _watching(code: set[CodeType]) -> Iterator[None]:
    """Collect the code of all functions but torch's and ours that are called meanwhile."""

    def note(frame: Any, event: str, _: object) -> None:
        if event == "call" and not frame.f_code.co_filename.startswith(_OTHERS):
            code.add(frame.f_code)

    if sys.getprofile() is not None:
        raise RuntimeError("somebody profiles already")  # another's profiler may be no function
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(None)


# --- code


class _Words:
    """The names in code: of what ran, and of what else a user may call."""

    def __init__(self, ran: set[CodeType], entries: set[CodeType]) -> None:
        self._names = set().union(*map(_named, ran | entries))
        self._parts = set().union(*(_named(code) for code in ran | entries if _is_open(code)))
        self._entries = set().union(*map(_named, entries))
        self._is_open = any(map(_is_open, entries))

    def may_call(self, root: nn.Module, name: str) -> bool:
        """Tell whether code that did not reach a module may on another way."""
        own, whole = _attribute(root, name), name.partition(".")[0]
        asked = any(own.startswith(part) for part in self._parts if len(part) > 1)
        return own in self._names or asked or whole in self._entries or self._is_open


def _attribute(root: nn.Module, name: str) -> str:
    """Return the attribute by which code names a module, or the list that it is in."""
    outer, _, own = name.rpartition(".")
    while outer and type(root.get_submodule(outer)) in _HOLDERS:
        outer, _, own = outer.rpartition(".")
    return own


def _entries(kind: type) -> set[CodeType]:
    """Find the code of a class that a user may call beside `forward`."""
    found: set[CodeType] = set()
    for base in kind.__mro__:
        if base.__module__.startswith(_FRAMEWORKS):
            continue
        for name, value in vars(base).items():
            value = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if re.search("^forward$|init|reset|^__", name) is None and hasattr(value, "__code__"):
                found.add(value.__code__)
    return found


def _named(code: CodeType) -> set[str]:
    """Return the names and the texts in code, and in that within it."""
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    texts = {each for each in code.co_consts if isinstance(each, str)}
    return texts.union(code.co_names, *map(_named, inner))


def _asks_for_tensors(code: CodeType) -> bool:
    names = set(code.co_names)
    return "is_tensor" in names or {"isinstance", "Tensor"} <= names


def _is_open(code: CodeType) -> bool:
    return not _ANY.isdisjoint(code.co_names)
