"""Layers on a GPU read abreast: a few launches for all of them, and one copy to the host.

To launch a sum takes longer than to sum what a layer holds. Filters of one fan-in are hence joined,
whatever layers they are of, and what is small is copied as it is, to be computed with on the host
once somebody asks. Its price is this module; it stays until its gain on a GPU is measured again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from planescope.hyperplanes import geometry
from planescope.hyperplanes.layer import Array, Layer, Tensor, with_tensors

if TYPE_CHECKING:
    import torch

Doubles = NDArray[np.float64]


# Weights that are taken abreast, at most: of more, the launches do not count, but copies do.
MOST = 1 << 25


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Taken:
    """The values that were taken of a layer, on the host.

    Attributes
    ----------
    layer : Layer
        With bias and batch norm as they were then; its weights are those of now.
    planes : Hyperplanes
        Of its own weights and bias.
    way : pair of float, or None
        Length and peak of its way from its first weights.
    """

    layer: Layer
    planes: geometry.Hyperplanes
    way: tuple[float, float] | None


def can_take(rows: Array, /) -> bool:
    """Tell whether these are plain float32 weights on a GPU, few enough to be taken at once."""
    import torch

    if type(rows) not in (torch.Tensor, torch.nn.Parameter) or not rows.is_cuda:
        return False
    return bool(rows.dtype == torch.float32 and 0 < rows.numel() <= MOST)


def take(
    layers: Sequence[Layer],
    rows: Sequence[torch.Tensor],
    starts: Sequence[torch.Tensor] | None,
    /,
) -> Callable[[], list[Taken]]:
    """Queue what is taken of some layers; nothing waits for the device until it is asked for.

    Parameters
    ----------
    rows, starts : sequence of tensor, shape (filters, fan_in), float32
        Weights of now and of then, of each layer; without `starts` there are no ways.

    Returns
    -------
    callable
        Gives what was taken, in the order of the layers. It holds none of the weights.
    """
    import torch

    shelf = _Shelf()
    sums: dict[int, list[Callable[[], Doubles]]] = {}
    with torch.no_grad():
        for group in _groups(rows):
            now = _joined([rows[index] for index in group])
            then = None if starts is None else _joined([starts[index] for index in group])
            found = [shelf.put(values) for values in _sums(now, then)]
            first = 0
            for index in group:
                cut = slice(first, first + len(rows[index]))
                sums[index] = [_cut(values, cut) for values in found]
                first = cut.stop
        kept = [_as_it_is(layer, shelf) for layer in layers]
        shelf.close()

    def taken() -> list[Taken]:
        return [_taken(layer, [part() for part in sums[i]]) for i, layer in enumerate(kept)]

    return taken


def _sums(now: torch.Tensor, then: torch.Tensor | None) -> list[torch.Tensor]:
    """Sum, length and magnitudes of each row; length and peak of its way.

    Reductions widen as they read.
    """
    import torch

    norm, wide = torch.linalg.vector_norm, torch.float64
    sums = [now.sum(dim=1, dtype=wide), norm(now, dim=1, dtype=wide)]
    sums.append(norm(now, ord=1, dim=1, dtype=wide))
    if then is not None:
        way = now - then
        sums += [norm(way, dim=1, dtype=wide), norm(way, ord=math.inf, dim=1, dtype=wide)]
    return sums


def _taken(layer: Layer, sums: Sequence[Doubles]) -> Taken:
    total, length, whole, *way = sums
    eps = float(np.finfo(np.float32).eps)
    bias = None if layer.bias is None else layer.bias.read()
    return Taken(
        layer=layer,
        planes=geometry.from_sums(
            total,
            length,
            layer.fan_in,
            bias,
            sideless=np.abs(total) <= geometry.ROUNDINGS * eps * whole,
        ),
        way=(float(np.sqrt(way[0] @ way[0])), float(np.max(way[1]))) if way else None,
    )


def _groups(rows: Sequence[torch.Tensor]) -> Iterable[list[int]]:
    """Return the indices of what is joined: rows of one length, on one device."""
    alike: dict[tuple[Any, int], list[int]] = {}
    for index, own in enumerate(rows):
        alike.setdefault((own.device, own.shape[1]), []).append(index)
    return alike.values()


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch

    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _cut(values: Callable[[], Doubles], cut: slice) -> Callable[[], Doubles]:
    return lambda: values()[cut]


def _as_it_is(layer: Layer, shelf: _Shelf) -> Layer:
    """Return the layer with copies of its bias and its batch norm, which go on changing."""

    def copied(tensor: Tensor) -> Tensor:
        is_small = tensor is not layer.weight
        return replace(tensor, read=shelf.put(tensor.read())) if is_small else tensor

    return with_tensors(layer, copied)


class _Shelf:
    """Vectors on their devices, copied together, and brought to the host together."""

    def __init__(self) -> None:
        self._parts: dict[tuple[Any, Any], list[torch.Tensor]] = {}
        self._sizes: dict[tuple[Any, Any], int] = {}
        self._joined: dict[tuple[Any, Any], torch.Tensor] = {}
        self._on_host: dict[tuple[Any, Any], Doubles] = {}

    def put(self, vector: torch.Tensor) -> Callable[[], Doubles]:
        """Start a copy to the host; return a callable that gives it as float64."""
        kind = (vector.device, vector.dtype)
        start = self._sizes.get(kind, 0)
        stop = self._sizes[kind] = start + len(vector)
        self._parts.setdefault(kind, []).append(vector)
        return lambda: self._read(kind)[start:stop]

    def close(self) -> None:
        """Copy all of them as they are now."""
        import torch

        self._joined = {kind: torch.cat(parts) for kind, parts in self._parts.items()}
        self._parts.clear()

    def _read(self, kind: tuple[Any, Any]) -> Doubles:
        if kind not in self._on_host:
            self._on_host[kind] = self._joined.pop(kind).double().cpu().numpy()
        return self._on_host[kind]
