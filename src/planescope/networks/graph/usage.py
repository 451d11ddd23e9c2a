"""Modules and tensors of a network that a graph uses."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from operator import attrgetter

import torch
from torch import fx, nn

from planescope.networks.graph.functional import name_of
from planescope.networks.graph.step import METADATA
from planescope.networks.live.copies import own_tensors
from planescope.networks.live.entries import outwards
from planescope.networks.live.plain import is_plain


@dataclass(frozen=True, eq=False)
class Usage:
    """The parts of a network that a run uses.

    Attributes
    ----------
    modules : frozenset
        Those that are called, with all within them.
    read : dict of key to str
        Tensors whose values are read by themselves, by `key_of`, with what reads them first.
    """

    modules: frozenset[nn.Module]
    read: dict[Hashable, str]

    def reader(self, module: nn.Module) -> str | None:
        """Return the operation that reads a tensor of a module; None where none does."""
        readers = map(self.reader_of, own_tensors(module))
        return next((reader for reader in readers if reader is not None), None)

    def reader_of(self, tensor: torch.Tensor | None) -> str | None:
        """Return the operation that reads a tensor; None where none does."""
        return None if tensor is None else self.read.get(key_of(tensor))

    def uses(self, module: nn.Module) -> bool:
        """Tell whether a module or one within it is called, or one of its tensors read."""
        inner = not self.modules.isdisjoint(module.modules())
        return inner or self.reader(module) is not None


def key_of(tensor: torch.Tensor, /) -> Hashable:
    """Return a key that is the same of all tensors of one memory."""
    return tensor.data_ptr() or id(tensor) if is_plain(tensor) else id(tensor)


def usage_of(graph: fx.Graph, root: nn.Module, /) -> Usage:
    """Find what a graph uses of a network."""
    modules = dict(root.named_modules())
    called: set[nn.Module] = set()
    read: dict[Hashable, str] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            called.update(modules[node.target].modules())
        elif node.op == "get_attr" and (readers := list(filter(_reads_values, node.users))):
            held = attrgetter(str(node.target))(root)
            if isinstance(held, torch.Tensor):
                read.setdefault(key_of(held), name_of(readers[0]))
    # A weight that a module which is called holds too acts through that one.
    for module in called:
        for tensor in own_tensors(module, recurse=False):
            read.setdefault(key_of(tensor), type(module).__name__)
    return Usage(frozenset(called), read)


def _reads_values(node: fx.Node) -> bool:
    name = name_of(node)
    return (node.args[1] if name == "getattr" else name) not in METADATA


def outermost(root: nn.Module, names: Iterable[str], usage: Usage, /) -> dict[str, list[str]]:
    """Group those layers that a run does not use by the outermost module that it does not use."""
    modules = dict(root.named_modules())
    found: dict[str, list[str]] = {}
    for name in names:
        if name in modules and not usage.uses(modules[name]):
            *_, outer = (each for each in outwards(name) if not usage.uses(modules[each]))
            found.setdefault(outer, []).append(name)
    return found
