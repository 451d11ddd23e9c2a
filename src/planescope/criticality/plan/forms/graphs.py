"""ONNX files as networks that are repaired and planned: their graphs run, with layers of torch.

A layer is a module that holds the weights and knows how its operator applies them. onnxruntime runs
the graph; a layer that somebody watches is called with what its operator reads there.

To import this is to import torch.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from planescope.checkpoints.onnx.runnable import Call, Replaceable, Slot
from planescope.checkpoints.onnx.slots import read_runnable
from planescope.criticality.sensitivity.onnx import OnnxNetwork, part_of, slots_of
from planescope.criticality.sensitivity.parts import Part
from planescope.files.errors import NoLayersError, UsageError
from planescope.files.writing import replacing
from planescope.hyperplanes.layer import Kind, Layer
from planescope.networks.graph.file_graph import FileGraph

# Bytes of what layers read that are in memory at once, and examples that are looked at.
_AT_ONCE, _FEW = 256 << 20, 2
# How near a layer has to come to what its operator gives, of the largest value.
_NEAR = 1e-3


_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Held:
    """The initialisers that hold a layer's tensors in the graph.

    Attributes
    ----------
    name : str
    part : Part
        With the graph's own names.
    calls : tuple of Call
    mean : str
        Running mean of the norm behind; the layer's bias is taken from it. "" is none.
    """

    name: str
    part: Part
    calls: tuple[Call, ...]
    mean: str


class _Shared:
    """The graph and its process, which copies of a network have in common."""

    def __init__(self, graph: OnnxNetwork, held: Sequence[_Held]) -> None:
        self.graph, self.held = graph, tuple(held)
        self.own = {name: t.detach() for name, t in graph.named_parameters()}
        calls = [call for one in held for call in one.calls]
        self.every = sorted({name for call in calls for name in (call.reads, call.gives)})
        self.looked = False

    def __deepcopy__(self, _memo: Any) -> _Shared:
        return self


class GraphNetwork(FileGraph):
    """The graph of an ONNX file, as a module with a layer of torch for each of its layers.

    Attributes
    ----------
    parts : dict of str to Part
        Layers by name, for filters.
    left : dict of str to str
        Layers that are not repaired, and why.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        model = read_runnable(path)
        self.left = {one.name: one.reason for one in model.skipped}
        self.parts: dict[str, Part] = {}
        slots: list[tuple[str, Slot]] = []
        held: list[_Held] = []
        there: list[Replaceable] = []
        for number, one in enumerate(model.replaceable):
            reason = self._take(number, one, slots, held)
            if reason is None:
                there.append(one)
            else:
                self.left[one.layer.name] = reason
        if not held:
            raise NoLayersError(f"{path}: has no layer that can be repaired or planned")
        graph = OnnxNetwork(path, model, slots, there).eval()
        self.picture_shape, self.channels_last = graph.picture_shape, graph.channels_last
        for each in held:
            for name in each.part.norm:
                tensor = graph.get_parameter(name).detach().clone()
                self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self._shared = _Shared(graph, held)
        self.eval()

    def _take(
        self, number: int, one: Replaceable, slots: list[tuple[str, Slot]], held: list[_Held]
    ) -> str | None:
        """Make a module of a layer; give the reason where it is left."""
        part = part_of(one, number)
        if part is None:
            return "its weights lie in a layout that cannot be told"
        mean = f"norm{number}_mean" if one.mean is not None and not one.bias else ""
        layer = _module(one, has_bias=bool(one.bias or mean))
        if isinstance(layer, str):
            return layer
        weight = torch.from_numpy(np.array(part.filters_first(one.weight.tensor.read())))
        name = one.layer.name
        layer.to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
        with torch.no_grad():
            layer.weight.copy_(weight)
            if one.bias:
                values = np.array(one.bias.tensor.read()).reshape(-1)
                layer.bias.copy_(torch.from_numpy(values))
            elif mean:
                layer.bias.zero_()
        if not _put(self, name, layer.requires_grad_(False)):
            return "its name cannot be that of a module"
        slots += slots_of(part, one)
        if mean and one.mean is not None:
            slots.append((mean, one.mean))
        held.append(_Held(name=name, part=part, calls=one.calls, mean=mean))
        self.parts[name] = dataclasses.replace(
            part, weight=f"{name}.weight", bias=f"{name}.bias" if one.bias else ""
        )
        return None

    @property
    def layers(self) -> list[Layer]:
        """Return its layers, in the order of the graph."""
        return [one.part.layer for one in self._shared.held]

    @property
    def work(self) -> Mapping[str, int | None]:
        """Return the multiply-adds of layers for one input, once there was one."""
        return self._shared.graph.work

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph with the weights that its layers hold now.

        Raises
        ------
        UsageError
            If the inputs are not those of the graph.
        RunError
            If it takes more time or memory than it may.
        """
        graph = self._shared.graph
        fed = graph.fed(args, kwargs)
        weights = self.weights()
        if self._watched():  # first: who has seen enough ends the pass
            if not self._shared.looked:
                self._look(fed, weights)
            self._show(fed, weights)
        found = graph.output(graph.run(fed, weights))
        self.largest_bytes = graph.largest_bytes
        return found

    def weights(self) -> dict[str, torch.Tensor]:
        """Return what differs from the file, by the names of its graph and as it is held there."""
        own = self._shared.own
        found = {}
        for one in self._shared.held:
            layer = self._layer(one)
            weight = one.part.as_held(layer.weight.detach().numpy())
            found[one.part.weight] = torch.from_numpy(np.ascontiguousarray(weight))
            if one.part.bias:
                found[one.part.bias] = layer.bias.detach()
            elif one.mean:
                found[one.mean] = own[one.mean].to(layer.bias.dtype) - layer.bias.detach()
            found |= {name: self.get_parameter(name).detach() for name in one.part.norm}
        return {
            name: tensor
            for name, tensor in found.items()
            if not torch.equal(tensor.to(own[name].dtype), own[name])
        }

    def save(self, path: str | os.PathLike[str], /) -> None:
        """Write the file with the weights as they are now, under the names that it has.

        Raises
        ------
        UsageError
            If the name does not end in ``.onnx``.
        OutputError
            If the file cannot be written; nothing is left behind then.
        RunError
            If it takes more than a file can hold.
        """
        if not os.fspath(path).lower().endswith(".onnx"):
            raise UsageError(f"{path}: the name must end in .onnx, as an ONNX file came in")
        raw = self._shared.graph.written(self.weights())
        with replacing(path) as draft:
            Path(draft).write_bytes(raw)

    def _layer(self, one: _Held) -> Any:
        return self.get_submodule(one.name)

    def _watched(self) -> list[_Held]:
        held = (one for one in self._shared.held if one.name not in self.left)
        return [one for one in held if self._layer(one)._forward_hooks]

    def _show(self, fed: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
        """Call layers that are watched with what their operators read, so many as fit in memory."""
        shared, watched = self._shared, self._watched()
        examples = len(next(iter(fed.values()), ()))
        size = max(1, _AT_ONCE // max(1, shared.graph.largest_bytes * examples))
        for start in range(0, len(watched), size):
            some = watched[start : start + size]
            reads = list(dict.fromkeys(call.reads for one in some for call in one.calls))
            values = shared.graph.run(fed, weights, reads, shared.every)
            for one in some:
                layer = self._layer(one)
                for call in one.calls:
                    layer(_read(values, call.reads, layer))

    def _look(self, fed: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
        """Leave layers that do not give what their operators give on some examples."""
        shared = self._shared
        shared.looked = True
        few = {name: array[:_FEW] for name, array in fed.items()}
        values = shared.graph.run(few, weights, shared.every, shared.every)
        for one in shared.held:
            layer = self._layer(one)
            for call in one.calls:
                want = _read(values, call.gives, layer)
                limit = _NEAR * max(float(want.abs().max()), 1e-6)
                try:
                    with torch.no_grad():
                        got = layer.forward(_read(values, call.reads, layer))
                except RuntimeError:
                    self.left[one.name] = "what it reads does not fit a layer of torch"
                    break
                if got.shape != want.shape or not float((got - want).abs().max()) <= limit:
                    self.left[one.name] = "its operator does more than a layer of torch"
                    break


def _read(values: Mapping[str, Any], name: str, layer: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(values[name])).to(layer.weight.dtype)


def _module(one: Replaceable, *, has_bias: bool) -> Any:
    """Make a layer of torch for an operator; a reason where there is none."""
    layer, first = one.layer, one.calls[0]
    shape = tuple(layer.weight.shape)
    if layer.kind is Kind.TRANSPOSED:
        return "a transposed convolution"
    if any(not call.reads or not call.gives for call in one.calls):
        return "what it reads has no name in the graph"
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0], bias=has_bias)
    if first.op != "Conv" or len(shape) - 2 not in _CONVOLUTIONS:
        return f"its operator {first.op} is no convolution as torch has it"
    if any(
        dataclasses.replace(c, reads=first.reads, gives=first.gives) != first for c in one.calls
    ):
        return "its operators move their kernels in different ways"
    if first.auto_pad not in ("", "NOTSET", "VALID"):
        return f"its padding is told by {first.auto_pad} alone"
    rank, groups = len(shape) - 2, layer.groups or 1
    made: Any = _CONVOLUTIONS[rank](
        shape[1] * groups, shape[0], shape[2:], stride=first.strides or (1,) * rank,
        dilation=first.dilations or (1,) * rank, groups=groups, bias=has_bias,
    )  # fmt: skip
    pads = first.pads if first.auto_pad != "VALID" else ()
    pads = pads or (0,) * 2 * rank
    pairs = zip(reversed(pads[:rank]), reversed(pads[rank:]), strict=True)
    # Zeros, another number on each side, which the padding of torch's own has not.
    made.padding_mode = "constant"
    made._reversed_padding_repeated_twice = [side for pair in pairs for side in pair]
    return made


def _put(root: nn.Module, name: str, layer: nn.Module) -> bool:
    """Put a layer at its name in a network; tell whether there is room for it."""
    *owners, own = name.split(".")
    place = root
    for owner in owners:
        if owner and owner not in place._modules and not hasattr(place, owner):
            place.add_module(owner, nn.Module())
        if owner not in place._modules:
            return False
        place = place._modules[owner]
    if not own or hasattr(place, own):
        return False
    place.add_module(own, layer)
    return True
