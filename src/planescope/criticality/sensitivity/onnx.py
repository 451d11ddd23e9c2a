"""An ONNX file as a network whose weights can be replaced; its graph runs in another process.

To import this is to import torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from planescope.checkpoints.onnx.runnable import Port, Replaceable, Runnable, Slot
from planescope.checkpoints.onnx.slots import read_runnable
from planescope.criticality.sensitivity.network import Network
from planescope.criticality.sensitivity.onnx_process import SECONDS, TIMES, Process
from planescope.criticality.sensitivity.onnx_server import PLAIN
from planescope.criticality.sensitivity.parts import Part, layouts, some_of
from planescope.files.errors import CheckpointError, NoLayersError, RunError, UsageError
from planescope.files.optional import required
from planescope.hyperplanes.layer import Kind, Layer, Skipped, Tensor
from planescope.measurement.choice import unwanted, wanted_layers
from planescope.networks.graph.file_graph import FileGraph

Array = NDArray[Any]

_MOST_FILE = 2**31 - 1  # what protobuf can hold


class OnnxNetwork(FileGraph):
    """The graph of an ONNX file: a module whose parameters are the weights that can be replaced."""

    def __init__(
        self,
        path: Path,
        model: Runnable,
        slots: Sequence[tuple[str, Slot]],
        layers: Sequence[Replaceable],
    ) -> None:
        super().__init__()
        required("onnxruntime")
        required("onnx")
        self._path, self._model, self._layers = str(path), model, layers
        self._work: dict[str, int | None] | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._held: dict[str, nn.Parameter] = {}
        self._slots = tuple(slots)
        for name, slot in slots:
            stored = slot.tensor.read()
            if str(stored.dtype) not in PLAIN:
                raise CheckpointError(f"{path}: weights of {stored.dtype} cannot be run")
            if not np.isfinite(stored).all():
                raise CheckpointError(
                    f"{path}: {name} holds values that are not finite: nothing can be said of such "
                    "a network"
                )
            self._shapes[name] = stored.shape
            flat = stored.reshape(-1) if name.startswith(("bias", "norm")) else stored
            own = nn.Parameter(torch.from_numpy(np.array(flat)), requires_grad=False)
            self.register_parameter(name, own)
            self._held[name] = own
        if not slots:
            self.register_parameter("none", nn.Parameter(torch.zeros(1), requires_grad=False))
        self._slowest = SECONDS / TIMES
        self._process = Process(self._path)
        self._open(path, slots)
        self.picture_shape, self.channels_last = self._picture()

    @property
    def ports(self) -> tuple[Port, ...]:
        """Return the inputs of the graph."""
        return self._model.inputs

    def _open(self, path: Path, slots: Sequence[tuple[str, Slot]]) -> None:
        size = path.stat().st_size
        if size > _MOST_FILE:
            raise CheckpointError(f"{path}: is too large for an ONNX model of one file")
        external = {name: tensor.read() for name, tensor in self._model.external.items()}
        for name, array in external.items():
            if str(array.dtype) not in PLAIN:
                raise CheckpointError(f"{path}: {name} has type {array.dtype}, which cannot be run")
        places = [
            [output, number, f"planescope/{name}"]
            for name, slot in slots
            for output, number in slot.places
        ]
        own = {f"planescope/{name}": self._as_fed(name, p) for name, p in self._held.items()}
        header = {
            "do": "open", "external": list(external), "own": list(own), "places": places,
            "threads": torch.get_num_threads(),
        }  # fmt: skip
        raw = np.frombuffer(path.read_bytes(), dtype=np.uint8)
        try:
            self._process.ask(header, [raw, *external.values(), *own.values()], SECONDS)
        except ValueError as exc:
            raise CheckpointError(f"{path}: onnxruntime does not run it ({exc})") from exc

    def _as_fed(self, name: str, tensor: torch.Tensor) -> Array:
        held = tensor.detach().to(self._held[name].dtype)
        array: Array = held.cpu().numpy().reshape(self._shapes[name])
        return array

    def _picture(self) -> tuple[tuple[int, int, int] | None, bool]:
        if len(self.ports) != 1 or len(self.ports[0].shape) != 4:
            return None, False
        _, *extents = self.ports[0].shape
        layer = next((one for one in self._model.layers if len(one.weight.shape) == 4), None)
        channels = None if layer is None else layer.weight.shape[1] * (layer.groups or 1)
        is_last = channels is not None and extents[2] == channels and extents[0] != channels
        if is_last:
            extents = [extents[2], *extents[:2]]
        known = [extent for extent in extents if extent is not None]
        return ((known[0], known[1], known[2]) if len(known) == 3 else None), is_last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph, with those weights that are not its own.

        Raises
        ------
        UsageError
            If the inputs are not those of the graph.
        RunError
            If it takes more time or memory than it may.
        """
        replaced = {
            name: tensor
            for name, own in self._held.items()
            if (tensor := getattr(self, name)) is not own
        }
        return self.output(self.run(self.fed(args, kwargs), replaced))

    def run(
        self, fed: Mapping[str, Array], weights: Mapping[str, torch.Tensor],
        values: Sequence[str] = (), every: Sequence[str] = (),
    ) -> dict[str, Array]:  # fmt: skip
        """Run the graph on inputs, in batches as large as it takes.

        Parameters
        ----------
        weights : mapping of str to torch.Tensor
            By parameter, what stands in for it.
        values : sequence of str
            What is wanted: by default the graph's outputs, else these of `every`.
        every : sequence of str
            Values within the graph that are wanted at one time or another.
        """
        replaced = {f"planescope/{name}": self._as_fed(name, t) for name, t in weights.items()}
        told = {"values": list(values), "every": list(every)} if values else {}
        batch = self.ports[0].shape[0] if self.ports[0].shape else None
        count = next(iter(fed.values())).shape[0] if fed else 0
        if self._work is None:
            self._work = self._count_work(fed)
        if batch is None or batch == count:
            return self._run(fed, replaced, told)
        parts = []
        for start in range(0, count, batch):
            own = {name: array[start : start + batch] for name, array in fed.items()}
            size = len(next(iter(own.values())))
            if size < batch:  # filled with repetitions, which are cut off again
                own = {
                    name: np.concatenate([a, np.repeat(a[-1:], batch - size, axis=0)])
                    for name, a in own.items()
                }
            parts.append({n: a[:size] for n, a in self._run(own, replaced, told).items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def written(self, weights: Mapping[str, torch.Tensor]) -> bytes:
        """Return the file with other weights in place of its own, all else as it is.

        Parameters
        ----------
        weights : mapping of str to torch.Tensor
            By parameter.

        Raises
        ------
        RunError
            If it takes more time or memory than it may, or more than a file can hold.
        """
        places = [
            [output, number, name]
            for name, slot in self._slots
            if name in weights
            for output, number in slot.places
        ]
        arrays = [self._as_fed(name, tensor) for name, tensor in weights.items()]
        header = {"do": "write", "names": list(weights), "places": places}
        try:
            _, (raw,) = self._process.ask(header, arrays, SECONDS)
        except ValueError as exc:
            raise RunError(f"{self._path}: cannot be written with other weights ({exc})") from exc
        return raw.tobytes()

    def fed(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Array]:
        """Return what is fed of the arguments of a call, by the names of the graph's inputs."""
        ports = self.ports
        names = ", ".join(port.name for port in ports)
        given = dict(zip((port.name for port in ports), args, strict=False)) | dict(kwargs)
        if len(args) > len(ports) or given.keys() != {port.name for port in ports}:
            raise UsageError(
                f"the network takes {len(ports)} inputs ({names}), and {len(given)} came; give "
                "them by --inputs package.module:callable, a dictionary a batch"
            )
        return {port.name: self._fed(given[port.name], port) for port in ports}

    def _fed(self, value: Any, port: Port) -> Array:
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        array = np.asarray(array)
        if port.dtype not in PLAIN:
            raise UsageError(f"the network's input {port.name} is no tensor of numbers")
        if array.dtype.kind == "f" and not port.dtype.startswith("float"):
            raise UsageError(
                f"the network's input {port.name} is {port.dtype}, and floats came; give inputs of "
                "its own by --inputs package.module:callable"
            )
        if array.dtype.kind != "f" and port.dtype.startswith("float"):
            raise UsageError(
                f"the network's input {port.name} is {port.dtype}, and {array.dtype} came; scale "
                "them first, as they were for its training"
            )
        if len(port.shape) and array.ndim != len(port.shape):
            wanted = "×".join("?" if n is None else str(n) for n in port.shape)
            raise UsageError(
                f"the network's input {port.name} is {wanted}, and inputs of "
                f"{'×'.join(map(str, array.shape))} came; give inputs of its own by --inputs"
            )
        return array.astype(port.dtype, copy=False)

    def _run(
        self, fed: Mapping[str, Array], replaced: Mapping[str, Array], told: Mapping[str, Any]
    ) -> dict[str, Array]:
        names = [*fed, *replaced]
        began = time.monotonic()
        try:
            found, arrays = self._process.ask(
                {"do": "run", "names": names, **told}, [*fed.values(), *replaced.values()],
                max(SECONDS, TIMES * self._slowest),
            )  # fmt: skip
        except ValueError as exc:
            raise UsageError(f"onnxruntime refuses them: {exc}") from exc
        self._slowest = max(self._slowest, time.monotonic() - began)
        return dict(zip(found["outputs"], arrays, strict=True))

    def output(self, found: Mapping[str, Array]) -> Any:
        """Return outputs as a network gives them: one tensor, or several by name."""
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in found.items()}
        return next(iter(tensors.values())) if len(tensors) == 1 else tensors

    @property
    def work(self) -> dict[str, int | None]:
        """Return the multiply-adds of layers for one input, once there was one."""
        return dict(self._work or {})

    def _count_work(self, fed: Mapping[str, Array]) -> dict[str, int | None]:
        batch = self.ports[0].shape[0] or 1
        one = {name: np.repeat(array[:1], batch, axis=0) for name, array in fed.items()}
        values = [name for layer in self._layers for name in layer.sizes]
        try:
            told, _ = self._process.ask(
                {"do": "sizes", "names": list(one), "values": values}, list(one.values()), SECONDS
            )
        except ValueError as exc:
            raise UsageError(f"onnxruntime refuses them: {exc}") from exc
        shapes = told["shapes"]
        found: dict[str, int | None] = {}
        for each in self._layers:
            layer = each.layer
            channels = layer.filters
            if layer.kind is Kind.TRANSPOSED:
                channels = layer.weight.shape[1] * (layer.groups or 1)
            numbers = [math.prod(shapes[name]) // batch for name in each.sizes]
            found[layer.name] = layer.filters * layer.fan_in * sum(numbers) // max(1, channels)
            self.largest_bytes = max(self.largest_bytes, *(4 * number for number in numbers))
        return found


def open_onnx(
    path: Path, kinds: Iterable[Kind | str] | str, pattern: str | None, /
) -> tuple[Network, list[Part], list[Skipped], list[Layer]]:
    """Open an ONNX file: its network, the layers that are replaced, what was left out, all layers.

    Raises
    ------
    CheckpointError
        If it is damaged, or onnxruntime does not run it.
    MissingDependencyError
        If onnxruntime or onnx is not installed.
    NoLayersError
        If no layer can be replaced.
    UsageError
        If the pattern or a kind is invalid, or finds nothing.
    """
    model = read_runnable(path)
    if not model.layers:
        raise NoLayersError(f"{path}: has no layer that can be replaced")
    wanted = wanted_layers(model.layers, kinds, pattern)
    skipped = list(model.skipped)
    there = {one.layer.name for one in model.replaceable}
    skipped += [
        unwanted(layer, kinds, pattern)
        for layer in model.layers
        if layer.name not in wanted and layer.name in there
    ]
    parts: list[Part] = []
    slots: list[tuple[str, Slot]] = []
    layers: list[Replaceable] = []
    for number, one in enumerate(one for one in model.replaceable if one.layer.name in wanted):
        part = part_of(one, number)
        if part is None:
            reason = "its weights lie in a layout that cannot be told"
            skipped.append(Skipped(name=one.layer.name, reason=reason))
            continue
        parts.append(part)
        layers.append(one)
        slots += slots_of(part, one)
    if not parts:
        raise NoLayersError(f"{path}: no layer can be replaced; --kinds all takes every kind")
    notes = ["the graph of the file was run, by onnxruntime, as a whole for each cell"]
    if odd := [one.layer.name for one in layers if not one.takes_filters]:
        notes.append(
            f"no filters were taken from {some_of(odd)}: their biases enter in a way that cannot "
            "be fed"
        )
    module = OnnxNetwork(path, model, slots, layers).eval()
    network = Network(
        source=str(path), name=path.name, module=module, stays=True, notes=tuple(notes)
    )
    return network, parts, skipped, list(model.layers)


def part_of(one: Replaceable, number: int, /) -> Part | None:
    """Return a layer, its parameters named by its number; None of a layout of its own."""
    layer, weight = one.layer, f"weight{number}"
    bias = f"bias{number}" if one.bias else ""
    norm = tuple(f"norm{number}_{i}" for i in range(len(one.norm)))
    stored, acting = one.weight.tensor.read(), np.asarray(layer.weight.read())
    for first, back in layouts(stored.shape, acting.shape, layer):
        if np.array_equal(first(stored), acting, equal_nan=True):
            return Part(
                layer=layer, weight=weight, bias=bias, norm=norm, filters_first=first,
                as_held=back, is_output=one.is_output or not one.takes_filters,
                is_coupled=one.is_coupled, leaves_norm=one.leaves_norm,
            )  # fmt: skip
    return None


def weights_of(path: Path, parts: Sequence[Part], /) -> dict[str, Tensor]:
    """Read weights and biases of another file for layers of a network, as those are held there.

    Returns
    -------
    dict of str to Tensor
        By the parameters of `parts`; without those that the file has not in that shape.

    Raises
    ------
    CheckpointError
        If the file is damaged.
    """
    found: dict[str, Tensor] = {}
    there = {one.layer.name: one for one in read_runnable(path).replaceable}
    for part in parts:
        one = there.get(part.layer.name)
        other = None if one is None else part_of(one, 0)
        if one is None or other is None:
            continue
        weight = other.filters_first(one.weight.tensor.read())
        if weight.shape == part.layer.weight.shape:
            found[part.weight] = _read_already(part.as_held(weight))
        if part.bias and one.bias is not None:
            bias = one.bias.tensor.read().reshape(-1)
            if len(bias) == part.layer.filters:
                found[part.bias] = _read_already(bias)
    return found


def _read_already(array: Array) -> Tensor:
    return Tensor(array.shape, str(array.dtype), lambda: array)


def slots_of(part: Part, one: Replaceable, /) -> list[tuple[str, Slot]]:
    """Return where the tensors of a layer enter the graph, by the names of its parameters."""
    names = [part.weight, *([part.bias] if part.bias else []), *part.norm]
    held = [one.weight, *([one.bias] if one.bias else []), *one.norm]
    return list(zip(names, held, strict=True))
