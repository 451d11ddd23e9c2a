"""The tensors of a cell, read when they are needed, or ahead of a GPU."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

# Of weights that wait in the host's memory for a GPU.
AHEAD_BYTES = 2 << 30


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """Parameters and buffers to put in place of the trained ones; none: the network as it is.

    Attributes
    ----------
    key : str
        Name of its tally.
    layer : str
        What is reset, for progress.
    names : tuple of str
        Of all tensors that are replaced.
    read : callable
        Gives them on a device.
    bytes : int
        What they take.
    """

    key: str
    layer: str
    names: tuple[str, ...]
    read: Callable[[torch.device], dict[str, torch.Tensor]]
    bytes: int


def names_of(module: nn.Module, /) -> dict[str, tuple[str, ...]]:
    """Return all names of each tensor of a module, by each of them: layers may share one."""
    held = module.state_dict(keep_vars=True)
    names = defaultdict(list)
    for name, tensor in held.items():
        names[id(tensor)].append(name)
    return {name: tuple(names[id(tensor)]) for name, tensor in held.items()}


def under_all_names(
    tensors: Mapping[str, torch.Tensor], names: Mapping[str, tuple[str, ...]], /
) -> dict[str, torch.Tensor]:
    """Give tensors under all names that those in their place have."""
    return {other: tensor for name, tensor in tensors.items() for other in names[name]}


class Reader:
    """Tensors of cells; read once where there is memory for all.

    Where cells are given in the order in which they come, those of the next ones are read
    meanwhile, as many as `AHEAD_BYTES` hold.
    """

    def __init__(
        self, device: torch.device, order: Iterable[Cell], *, keep: bool, pool: Executor
    ) -> None:
        self._device, self._pool = device, pool
        self._next = deque(order)
        self._ahead: dict[Cell, Future[dict[str, torch.Tensor]]] = {}
        self._kept: dict[Cell, dict[str, torch.Tensor]] | None = {} if keep else None

    def __call__(self, cell: Cell) -> dict[str, torch.Tensor]:
        """Return the tensors of a cell, and begin to read those of the next."""
        if self._kept is None:
            return self._read(cell)
        if cell not in self._kept:
            self._kept[cell] = self._read(cell)
        return self._kept[cell]

    def _read(self, cell: Cell) -> dict[str, torch.Tensor]:
        if self._next and self._next[0] is cell:  # the first of all
            self._next.popleft()
        ahead = self._ahead.pop(cell, None)
        tensors = cell.read(self._device) if ahead is None else ahead.result()
        held = sum(other.bytes for other in self._ahead)
        while self._next and held + self._next[0].bytes <= AHEAD_BYTES:
            following = self._next.popleft()
            held += following.bytes
            self._ahead[following] = self._pool.submit(following.read, torch.device("cpu"))
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}
