"""The layers of a network that other weights can stand in for.

To import this is to import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from planescope.criticality.sensitivity.surroundings import Surroundings
from planescope.files.errors import NoLayersError
from planescope.hyperplanes.layer import Kind, Layer, Skipped
from planescope.measurement.choice import unwanted, wanted_layers
from planescope.networks.graph.trace import trace_graph
from planescope.networks.live.module import read_module
from planescope.networks.state.layers import find_layers

if TYPE_CHECKING:
    from collections.abc import Iterable

Array = NDArray[Any]

_FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """A layer that other weights can stand in for.

    Attributes
    ----------
    layer : Layer
    weight, bias : str
        Names in the state dict; no bias is "".
    norm : tuple of str
        Names of weight and bias of the affine norm that belongs to the layer alone.
    filters_first, as_held : callable
        From the weight as the module holds it to filters first, and back.
    is_output : bool
        Whether nothing but what has no weights stands between it and the network's output.
    is_coupled : bool
        Whether its channels are added to those of others, or go on one by one.
    leaves_norm : bool
        Whether scale and shift of a norm behind it are not taken with its filters.
    """

    layer: Layer
    weight: str
    bias: str
    norm: tuple[str, ...]
    filters_first: Callable[[Array], Array]
    as_held: Callable[[Array], Array]
    is_output: bool
    is_coupled: bool
    leaves_norm: bool = False


def find_parts(
    module: nn.Module, kinds: Iterable[Kind | str] | str, pattern: str | None, /
) -> tuple[list[Part], list[Skipped], list[Layer]]:
    """Find the layers that can be replaced, what was left out with the reason, and all layers.

    Raises
    ------
    NoLayersError
        If there is none.
    UsageError
        If the pattern or a kind is none, or finds nothing.
    """
    layers, skipped = find_layers(read_module(module))
    left_out = list(skipped)
    wanted = wanted_layers(layers, kinds, pattern)
    try:
        graph = list(trace_graph(module)[0].nodes)
    except Exception:  # forward is anybody's code, and does anything when it is given symbols
        graph = []
    places = Surroundings(module, graph, layers)
    parts = []
    for layer in layers:
        if layer.name not in wanted:
            left_out.append(unwanted(layer, kinds, pattern))
            continue
        part = _part(module, layer, places)
        if part is None:
            left_out.append(
                Skipped(name=layer.name, reason="holds no plain weight that could be replaced")
            )
        else:
            parts.append(part)
    if not parts:
        raise NoLayersError("no layer can be replaced; --kinds all takes layers of every kind")
    return parts, left_out, list(layers)


def _part(module: nn.Module, layer: Layer, places: Surroundings) -> Part | None:
    own = module.state_dict()
    weight = f"{layer.name}.weight"
    if weight not in own or weight.removesuffix(".weight") not in dict(module.named_modules()):
        return None
    held, wanted = own[weight], layer.weight.shape
    ways = layouts(tuple(held.shape), wanted, layer)
    acting = np.asarray(_numpy(layer.weight.read()))
    stored = _numpy(held)
    for first, back in ways:
        if np.array_equal(first(stored), acting):
            bias = f"{layer.name}.bias"
            return Part(
                layer=layer,
                weight=weight,
                bias=bias if bias in own and own[bias].shape == wanted[:1] else "",
                norm=places.norm(layer),
                filters_first=first,
                as_held=back,
                is_output=layer.name in places.outputs,
                is_coupled=layer.name in places.coupled,
                leaves_norm=places.leaves_norm(layer),
            )
    return None


def layouts(
    held: tuple[int, ...], wanted: tuple[int, ...], layer: Layer
) -> Iterator[tuple[Callable[[Array], Array], Callable[[Array], Array]]]:
    """Give the ways in which a weight may be held: filters first, with groups, or turned."""
    if held == wanted:
        yield (lambda a: a), (lambda a: a)
    if len(held) > 2 and layer.kind is Kind.TRANSPOSED:
        groups, inputs, outputs, kernel = layer.groups or 1, held[0], held[1], held[2:]
        if inputs % groups == 0:

            def first(a: Array) -> Array:
                split = a.reshape(groups, inputs // groups, outputs, *kernel)
                return split.swapaxes(1, 2).reshape(wanted)

            def back(a: Array) -> Array:
                split = a.reshape(groups, outputs, inputs // groups, *kernel)
                return np.ascontiguousarray(split.swapaxes(1, 2).reshape(held))

            yield first, back
    if len(held) == 2 and held[::-1] == wanted:
        yield (lambda a: a.T), (lambda a: np.ascontiguousarray(a.T))


def some_of(names: Sequence[str], /) -> str:
    """Name the first of some layers, and count the rest."""
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more layers"


def _numpy(values: Any) -> Array:
    """Return the array of a tensor on whatever device; of types that NumPy lacks, as float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        if values.dtype in (torch.bfloat16,):
            values = values.float()
        return np.asarray(values.numpy())
    found = np.asarray(values)
    return found if found.dtype.kind == "f" and found.dtype.name in _FLOATS else found.astype(
        np.float32
    )  # fmt: skip


def count_work(
    module: nn.Module, parts: Sequence[Part], run: Callable[[], Any], examples: int, /
) -> Mapping[str, int | None]:
    """Count multiply-adds of layers for one input, while the network runs on some."""
    found: dict[str, int | None] = {part.layer.name: None for part in parts}
    modules = dict(module.named_modules())
    sizes: dict[str, int] = {}

    def look(name: str, kind: Kind) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # A filter is applied once at each position of the output, or of the input where that is
            # spread out.
            at = args[0] if kind is Kind.TRANSPOSED and args else output
            if isinstance(at, torch.Tensor):
                channels = at.shape[1] if at.ndim > 2 and kind is not Kind.LINEAR else at.shape[-1]
                sizes[name] = sizes.get(name, 0) + at.numel() // max(1, channels)

        return hook

    hooks = [
        modules[part.layer.name].register_forward_hook(look(part.layer.name, part.layer.kind))
        for part in parts
        if part.layer.name in modules
    ]
    try:
        with torch.inference_mode():
            run()
    finally:
        for one in hooks:
            one.remove()
    for part in parts:
        if part.layer.name in sizes:
            weights = part.layer.filters * part.layer.fan_in
            found[part.layer.name] = weights * sizes[part.layer.name] // max(1, examples)
    return found
