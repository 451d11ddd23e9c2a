"""Layers with a forward of their own, entered with the weight that acts."""

from __future__ import annotations

import dataclasses
import itertools
import re

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import Array, Tensor
from planescope.networks.graph.functional import place_of
from planescope.networks.live import affine
from planescope.networks.live.affine import Leaf, NotAffineError
from planescope.networks.live.copies import (
    base_layer,
    is_undrawn,
    own_tensors,
)
from planescope.networks.live.entries import Survey, full_name
from planescope.networks.live.plain import dtype_name, plain
from planescope.networks.live.trial import Acting
from planescope.networks.state import exclusions

_EMBEDDING = "an embedding: its rows are looked up, they cut nothing"
_RECURRENT = "a recurrent layer: it acts on its own output"
# What is known to be no layer, by class; those within it are none either.
_NO_LAYERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Embedding", "EmbeddingBag"), _EMBEDDING),
    (("RNNBase", "RNNCellBase"), _RECURRENT),
    (("Bilinear",), "a bilinear form: linear in each of two inputs, it has no hyperplanes in one"),
)
# Of adapters beside a layer; a module with more in it is a network.
_MOST_PARTS = 12
_ADAPTER = re.compile(r"[dl]ora|loha|lokr|hada_|(^|_)b?oft_|vera_|ia3|adapter", re.IGNORECASE)


def no_layer(module: nn.Module) -> str | None:
    """Give the reason why a module is no layer by its class; None where it may be one."""
    names = {base.__name__ for base in type(module).__mro__ if base.__module__.startswith("torch.")}
    return next((reason for classes, reason in _NO_LAYERS if names & set(classes)), None)


def may_be_affine(module: nn.Module) -> bool:
    """Tell whether a module as a whole may be an affine map with a weight to look for."""
    if place_of(module) is not None or _is_adapter(module):
        return True
    if not is_callable(module):
        return False
    inner = [part for part in module.modules() if part is not module]
    names = (*module._modules, *module._parameters, type(module).__name__)
    if "base_layer" in names or any("lora" in name.lower() for name in names):
        return len(inner) <= _MOST_PARTS
    if inner and any(place_of(part) is not None for part in module.children()):
        return len(inner) <= _MOST_PARTS and _has_low_rank(module)
    if is_norm(module) or isinstance(module, nn.MultiheadAttention):
        return False
    lists = (nn.ParameterList, nn.ParameterDict)
    own = [part for part in module.children() if isinstance(part, lists)]
    if isinstance(module, lists) or any(weights_of(part) for part in inner if part not in own):
        return False
    return any(weights_of(part) for part in (module, *own))


def is_callable(module: nn.Module) -> bool:
    """Tell a module with a forward from one that only holds others, as an exported program's."""
    return type(module).forward is not nn.Module.forward or "forward" in vars(module)


def _has_low_rank(module: nn.Module) -> bool:
    """Tell a layer with two matrices of one rank, or one of its own shape, beside it."""
    own = [tuple(t.shape) for t in module._parameters.values() if t is not None and t.ndim == 2]
    layers = [part._parameters.get("weight") for part in module.children() if place_of(part)]
    for weight in (each for each in layers if each is not None and each.ndim > 1):
        outputs, inputs = weight.shape[0], weight[0].numel() if weight.ndim > 2 else weight.shape[1]
        whole, ends = {outputs, inputs}, {weight.shape[0], weight.shape[1], inputs}
        if any(set(shape) == whole for shape in own):
            return True
        for one, other in itertools.combinations(own, 2):
            ranks = set(one) & set(other)
            if ranks and set(one) & ends and set(other) & ends:
                return True
    return False


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the own tensors of a module that may multiply.

    Two dimensions or more that are not 1.
    """
    held = {**module._parameters, **module._buffers}
    return {
        name: tensor
        for name, tensor in held.items()
        if tensor is not None
        and not nn.parameter.is_lazy(tensor)
        and sum(extent > 1 for extent in tensor.shape) >= 2
        and (tensor.is_floating_point() or tensor.dtype in (torch.int8, torch.uint8))
    }


def enter_solved(found: Survey, name: str, module: nn.Module) -> bool:
    """Enter a module that is a layer as a whole; False where its parts may be layers yet."""
    is_layer = place_of(module) is not None or _is_adapter(module)
    held = own_tensors(module)
    undrawn = next((t for t in held if is_undrawn(t)), None)
    if is_layer and undrawn is not None:
        if nn.parameter.is_lazy(undrawn):
            raise UsageError(f"{name} has no values yet; run a batch through the network first")
        plain(full_name(name, "weight"), undrawn)
    try:
        acting = affine.solve(module)
    except NotAffineError as exc:
        if is_layer:
            found.leave_out(name or type(module).__name__, _why_not(module, str(exc)))
        return is_layer
    place = acting.form.place
    if _is_fixed(module, acting):
        found.leave_out(name, exclusions.ONE_FILTER)
        return True
    solved = Solved(module, full_name(name, "weight"), acting)
    stride = acting.form.stride or 1
    found.leaves[module] = Leaf(place=place, stride=stride, rectifies=acting.rectifies)
    found.add(name, place, *solved.tensors(acting))
    return True


def _is_adapter(module: nn.Module) -> bool:
    """Tell whether it is one layer with an adapter around it; networks have a `base_layer` too."""
    names = (*module._modules, *module._parameters, type(module).__name__)
    is_named = any(_ADAPTER.search(name) for name in names) or hasattr(module, "active_adapter")
    return is_named and base_layer(module) is not module


def _why_not(module: nn.Module, reason: str) -> str:
    return no_layer(base_layer(module)) or reason


def _is_fixed(module: nn.Module, acting: Acting) -> bool:
    if any(True for _ in module.parameters()) or acting.form.groups < 2:
        return False
    return bool((acting.weight == acting.weight[:1]).all())


class Solved:
    """Weight and bias of a module with a forward of its own, found anew at each look."""

    def __init__(self, module: nn.Module, name: str, acting: Acting) -> None:
        self._module, self._name = module, name
        self._form, self._shape = acting.form, acting.weight.shape
        self._like = dataclasses.replace(acting, weight=torch.empty(0), bias=None)
        self._kept: tuple[list[tuple[int, int, int]], torch.Tensor | None] | None = None

    def tensors(self, acting: Acting) -> tuple[Tensor, Tensor | None]:
        """Describe both; the type is that in which most of the weights are stored."""
        stored = [t for t in own_tensors(self._module) if t.is_floating_point()]
        widest = max(stored, key=lambda t: t.numel(), default=acting.weight)
        dtype = dtype_name(widest)
        bias = acting.bias
        return (
            Tensor(tuple(acting.weight.shape), dtype, self._weight),
            None if bias is None else Tensor(tuple(bias.shape), dtype, self._bias),
        )

    def _weight(self) -> Array:
        acting = self._solve()
        self._kept = (self._state(), acting.bias)
        return acting.weight

    def _bias(self) -> Array:
        # Whoever asks for the weight asks for the bias next.
        kept, self._kept = self._kept, None
        bias = kept[1] if kept and kept[0] == self._state() else self._solve().bias
        return torch.zeros(self._form_filters()) if bias is None else bias

    def _form_filters(self) -> int:
        outputs, inputs = self._shape[:2]
        return int(inputs * self._form.groups if self._form.transposed else outputs)

    def _state(self) -> list[tuple[int, int, int]]:
        return [(id(t), t._version, t.data_ptr()) for t in own_tensors(self._module)]

    def _solve(self) -> Acting:
        try:
            acting = affine.solve(self._module, like=self._like)
        except NotAffineError as exc:
            raise UsageError(f"{self._name}: {exc}") from exc
        same = (acting.form.kernel, acting.form.groups) == (self._form.kernel, self._form.groups)
        if not same or acting.weight.shape != self._shape:
            raise UsageError(f"{self._name} acts in another form than it did when it was found")
        return acting


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is one of torch's norms."""
    return isinstance(module, _NormBase | nn.LayerNorm | nn.RMSNorm | nn.GroupNorm)
