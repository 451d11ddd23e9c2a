"""A network whose layers are replaced: opened, made plain, its layers found in their places.

To import this is to import torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from planescope.checkpoints import read_contents
from planescope.checkpoints.keras.live import refuse
from planescope.checkpoints.locate import locate
from planescope.criticality.resets.engine.borrow import borrowed, with_whole_weights
from planescope.criticality.resets.trained import last_of
from planescope.criticality.resets.weights import state_of, with_weights
from planescope.files.errors import CheckpointError, NoLayersError, UsageError, nearest
from planescope.hyperplanes.layer import Kind, Layer, Skipped, StateDict
from planescope.measurement.choice import chosen_kinds, compiled
from planescope.networks.build import load_pretrained
from planescope.networks.graph.trace import trace_graph
from planescope.networks.live.module import read_module, unwrapped
from planescope.networks.state.layers import find_layers
from planescope.networks.state.parametrisations import resolved
from planescope.training.folder.snapshots import input_shape_of
from planescope.training.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterable

Array = NDArray[Any]

LIBRARIES = ("timm:", "torchvision:")
_LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Linear,
)  # fmt: skip
_NORMS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm1d,
    nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip
# Where channels meet those of others one by one.
_JOINS = {
    operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, operator.truediv,
    torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum,
}  # fmt: skip
_JOINING_METHODS = {"add", "add_", "sub", "sub_", "mul", "mul_", "div", "maximum", "minimum"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A network of one's own copy, and where it comes from.

    Attributes
    ----------
    source, name : str
        Where it comes from, and what it is called.
    module : torch.nn.Module
        In evaluation mode, its weights held as they act; nobody else's.
    stays : bool
        Evaluate where the module is.
    notes : tuple of str
        What a reader should know of it.
    input_shape : tuple of int or None
        Channels, height and width that it was trained on, where its file says so.
    """

    source: str
    name: str
    module: nn.Module
    stays: bool = False
    notes: tuple[str, ...] = ()
    input_shape: tuple[int, int, int] | None = None


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


def open_network(model: Any, network: str | nn.Module | None, trust: Any = False, /) -> Network:
    """Open a module, a run, published weights, or a checkpoint with its network.

    Raises
    ------
    UsageError
        If the network is not known.
    CheckpointError
        If the file is missing, damaged or of another network.
    """
    refuse(model, "run", "export it to ONNX")
    if isinstance(model, nn.Module):
        whole = unwrapped(model)
        name = type(whole).__name__
        return Network(source=name, name=name, module=_plain(borrowed(whole), name), stays=True)
    if isinstance(model, str) and model.startswith(LIBRARIES):
        return Network(
            source=model, name=model, module=_plain(load_pretrained(model).eval(), model)
        )
    if (run := Run.found(model, trust=trust)) is not None:
        file, builder = last_of(run, network)
        return Network(
            source=str(run.path), name=_called(builder), module=_loaded(file, builder),
            input_shape=input_shape_of(file),
        )  # fmt: skip
    if not isinstance(model, str | os.PathLike):
        raise UsageError(
            f"cannot take a {type(model).__name__}; give a module, a run, or a checkpoint with "
            "network="
        )
    if network is None:
        raise UsageError(
            f"{model}: a checkpoint does not tell its network; give --network NAME (network=)"
        )
    return _of_checkpoint(model, network)


def _of_checkpoint(path: str | os.PathLike[str], network: str | nn.Module) -> Network:
    module = _loaded(path, network)
    shape = input_shape_of(path)
    return Network(source=str(path), name=_called(network), module=module, input_shape=shape)


def _loaded(path: str | os.PathLike[str], network: str | nn.Module) -> nn.Module:
    """Return a network of one's own with the weights of a file."""
    if isinstance(network, nn.Module):
        network = borrowed(unwrapped(network))
    with no_graph(path):
        return _plain(with_weights(network, resolved(without_prefix(state_of(path))), path), path)


@contextlib.contextmanager
def no_graph(path: str | os.PathLike[str], /) -> Iterator[None]:
    """Say of an ONNX file that does not fit into a network that it carries its own.

    Raises
    ------
    UsageError
        In place of a CheckpointError.
    """
    try:
        yield
    except CheckpointError as exc:
        if read_contents(locate(path))[0] == "onnx":
            raise UsageError(
                f"{path}: an ONNX file carries its network; leave out --network"
            ) from exc
        raise


def without_prefix(state: StateDict, /) -> StateDict:
    """Leave out the name of a wrapper (DataParallel) where all tensors have it."""
    prefix = "module."
    while state.tensors and all(name.startswith(prefix) for name in state.tensors):
        state = dataclasses.replace(
            state,
            tensors={n.removeprefix(prefix): t for n, t in state.tensors.items()},
            places={n.removeprefix(prefix): p for n, p in state.places.items()},
            norm_eps={n.removeprefix(prefix): e for n, e in state.norm_eps.items()},
        )
    return state


def _called(network: str | nn.Module) -> str:
    return network if isinstance(network, str) else type(unwrapped(network)).__name__


def _plain(module: nn.Module, source: str | os.PathLike[str]) -> nn.Module:
    """Hold weights that are computed from others as they act, so that they can be replaced."""
    for part in module.modules():
        with_whole_weights(part)
    for name, tensor in module.state_dict().items():
        is_floating = isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
        if is_floating and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(
                f"{source}: {name} holds values that are not finite: nothing can be said of such a "
                "network"
            )
    return module.eval()


def find_parts(
    module: nn.Module, kinds: Iterable[Kind | str] | str, pattern: str | None, /
) -> tuple[list[Part], list[Skipped]]:
    """Find the layers that can be replaced, and what was left out with the reason.

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
    places = _Places(module, graph, layers)
    parts = []
    for layer in layers:
        if layer.name not in wanted:
            left_out.append(
                Skipped(name=layer.name, reason=f"{layer.kind.value}; taken with --kinds all")
            )
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
    return parts, left_out


def wanted_layers(
    layers: Sequence[Layer], kinds: Iterable[Kind | str] | str, pattern: str | None, /
) -> set[str]:
    """Return the names of the layers that a user asks for.

    Raises
    ------
    UsageError
        If the pattern or a kind is none, or finds nothing.
    """
    names = [layer.name for layer in layers]
    if pattern:
        parts = [part.strip() for part in pattern.split(",")]
        found: set[str] = set()
        for part in parts:
            match = compiled(part, "layers")
            own = {part} if part in names else {n for n in names if match and match.search(n)}
            if not own:
                raise UsageError(f"no layer is called {part!r}; {nearest(part, names)}")
            found |= own
        if not kinds:
            return found
        allowed = chosen_kinds(kinds)
        return {layer.name for layer in layers if layer.name in found and layer.kind in allowed}
    usual = Kind.CONV if any(layer.kind is Kind.CONV for layer in layers) else Kind.LINEAR
    allowed = chosen_kinds(kinds or [usual])
    return {layer.name for layer in layers if layer.kind in allowed}


def _part(module: nn.Module, layer: Layer, places: _Places) -> Part | None:
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
    """Array of a tensor on whatever device; of types that NumPy lacks, as float32."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        if values.dtype in (torch.bfloat16,):
            values = values.float()
        return np.asarray(values.numpy())
    found = np.asarray(values)
    return found if found.dtype.kind == "f" and found.dtype.name in _FLOATS else found.astype(
        np.float32
    )  # fmt: skip


_FLOATS = ("float16", "float32", "float64")


class _Places:
    """Facts of a graph about layers: whose output is the network's, whose channels are coupled."""

    def __init__(
        self, module: nn.Module, nodes: Sequence[fx.Node], layers: Sequence[Layer]
    ) -> None:
        self._modules = dict(module.named_modules())
        self._of: dict[str, list[fx.Node]] = {}
        for node in nodes:
            if node.op == "call_module":
                self._of.setdefault(str(node.target), []).append(node)
        self._layers = {layer.name: layer for layer in layers}
        self.outputs = self._outputs(nodes) if nodes else {layers[-1].name} if layers else set()
        self.coupled = {name for name in self._of if name in self._layers and self._couples(name)}
        self._norms: dict[str, int] = {}
        for layer in layers:
            if layer.norm is not None:
                self._norms[layer.norm.name] = self._norms.get(layer.norm.name, 0) + 1

    def _is_layer(self, node: fx.Node) -> bool:
        return node.op == "call_module" and str(node.target) in self._layers

    def _outputs(self, nodes: Sequence[fx.Node]) -> set[str]:
        found, seen, left = set(), set(), [node for node in nodes if node.op == "output"]
        while left:
            node = left.pop()
            if node in seen:
                continue
            seen.add(node)
            if self._is_layer(node):
                found.add(str(node.target))
            else:
                left += node.all_input_nodes
        return found

    def _couples(self, name: str) -> bool:
        """Tell whether channels meet others, or go on one by one, before the next layer."""
        left, seen = [user for node in self._of[name] for user in node.users], set()
        while left:
            node = left.pop()
            if node in seen:
                continue
            seen.add(node)
            if self._is_layer(node):
                layer = self._layers[str(node.target)]
                if layer.groups and layer.groups > 1 and layer.weight.shape[1] == 1:
                    return True
                continue
            if self._is_join(node) and not all(
                self._is_of(one, name) for one in node.all_input_nodes
            ):
                return True
            left += node.users
        return False

    def _is_join(self, node: fx.Node) -> bool:
        called = _JOINING_METHODS if node.op == "call_method" else _JOINS
        return node.target in called and len(node.all_input_nodes) > 1

    def _is_of(self, node: fx.Node, name: str) -> bool:
        """Tell whether a value follows from one layer's output alone, as the gate of a SiLU."""
        left, seen = [node], set()
        while left:
            one = left.pop()
            if one in seen or one.op == "get_attr":
                continue
            seen.add(one)
            if one.op == "placeholder" or self._is_layer(one):
                if str(one.target) != name:
                    return False
                continue
            left += one.all_input_nodes
        return True

    def leaves_norm(self, layer: Layer) -> bool:
        """Tell whether an affine norm behind the layer is not taken away with its filters."""
        if self.norm(layer):
            return False
        for call in self._of.get(layer.name, []):
            node = call
            while len(node.users) == 1:
                (node,) = node.users
                if self._is_layer(node) or self._is_join(node):
                    break
                if self._is_affine_norm(node):
                    return True
        return False

    def _is_affine_norm(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            part = self._modules.get(str(node.target))
            return "Norm" in type(part).__name__ and getattr(part, "weight", None) is not None
        name = getattr(node.target, "__name__", "")
        return name.endswith("_norm") and len(node.all_input_nodes) > 1

    def norm(self, layer: Layer) -> tuple[str, ...]:
        """Names of weight and bias of the affine norm that is this layer's alone."""
        name = self._norm_behind(layer)
        part = self._modules.get(name)
        if part is None:
            return ()
        size = layer.filters
        return tuple(
            f"{name}.{own}"
            for own in ("weight", "bias")
            if isinstance(getattr(part, own, None), torch.Tensor)
            and tuple(getattr(part, own).shape) == (size,)
        )

    def _norm_behind(self, layer: Layer) -> str:
        calls = self._of.get(layer.name, [])
        if len(calls) == 1 and len(calls[0].users) == 1:
            (user,) = calls[0].users
            name = str(user.target)
            is_norm = user.op == "call_module" and isinstance(self._modules.get(name), _NORMS)
            if is_norm and len(self._of[name]) == 1:
                return name
        if layer.norm is not None and self._norms[layer.norm.name] == 1:
            return layer.norm.name
        return ""


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
