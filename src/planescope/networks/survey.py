"""The modules of a network one by one: which are layers, with what weight; why others are none."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import Array, Kind, Place, Skipped, Tensor, kind_of_convolution
from planescope.networks import affine
from planescope.networks.affine import Leaf, NotAffineError
from planescope.networks.copies import (
    base_layer,
    is_undrawn,
    own_tensors,
    stand_in,
    weight_hooks,
    without_autocast,
)
from planescope.networks.module import named_tensor, read_script
from planescope.networks.plain import dtype_name, is_plain, plain
from planescope.networks.trace import place_of
from planescope.networks.trial import Acting

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
_ATTENTION = "queries, keys and values of an attention: three linear maps in one"


@dataclass(eq=False)
class Survey:
    """The layers that the modules of a network give one by one.

    Attributes
    ----------
    tensors : dict of str to Tensor
        Weights that act and biases of layers, as torch lays them out, and what else may belong to
        norms; by full name, in the order of the modules.
    layers : dict of str to Place
        By the name of the module.
    leaves : dict of module to Leaf
        Layers and norms that no graph should look into.
    shared : dict of str to str
        Layers that have another's weight, by name, with that of the one that is measured.
    left_out : list of Skipped
    doubtful : list of str
        Modules that keep a running mean, and by themselves do not normalise by it.
    loose : dict of str to str
        Parameters that look like weights, in modules that are no layer by themselves, with why.
    norm_eps : dict of str to float
        Epsilon of batch norms by name.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    layers: dict[str, Place] = field(default_factory=dict)
    leaves: dict[nn.Module, Leaf] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    left_out: list[Skipped] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)
    loose: dict[str, str] = field(default_factory=dict)
    norm_eps: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, place: Place, weight: Tensor, bias: Tensor | None) -> None:
        """Enter a layer."""
        self.layers[name or "weight"] = place
        self.tensors[_full(name, "weight")] = weight
        if bias is not None:
            self.tensors[_full(name, "bias")] = bias

    def leave_out(self, name: str, reason: str) -> None:
        """Enter what is no layer, with the reason."""
        self.left_out.append(Skipped(name=name, reason=reason))


def survey(root: nn.Module, /) -> Survey:
    """Look at each module of a network once; none is changed.

    Raises
    ------
    UsageError
        If a layer has no values yet.
    """
    found = Survey()
    settled: set[str | None] = set()  # modules whose parts belong to them
    for name, module in root.named_modules():
        if "" not in settled and settled.isdisjoint(_outwards(name)):
            settled.add(_enter(found, name, module))
    _tell_shared(found, root)
    return found


def _outwards(name: str) -> Iterator[str]:
    """Yield the name of a module, and those of the modules that it is in."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _full(name: str, attribute: str) -> str:
    return f"{name}.{attribute}" if name else attribute


def _enter(found: Survey, name: str, module: nn.Module) -> str | None:
    """Enter one module; give the name of what is settled with all its parts, if anything is."""
    if isinstance(module, parametrize.ParametrizationList):
        return name
    if _is_script(module):
        _enter_script(found, name, module)
        return name
    if _is_quantised(module):
        return _enter_quantised(found, name, module)
    if (reason := _no_layer(module)) is not None:
        found.leave_out(name or type(module).__name__, reason)
        return name
    if (inactive := _inactive(module)) is not None:
        found.leave_out(_full(name, inactive), "it does not act: another copy of it does")
        return _full(name, inactive)
    place = place_of(module)
    if place is not None and is_as_torch_has_it(module):
        _enter_plain(found, name, module, place)
        return None
    if _may_be_affine(module) and _enter_solved(found, name, module):
        return name
    if isinstance(module, _NormBase):
        found.norm_eps[name] = float(module.eps)
    elif (leaf := affine.frozen_norm(module)) is not None:
        found.leaves[module] = leaf
        if leaf.eps is not None:
            found.norm_eps[name] = leaf.eps
    elif "running_mean" in module._buffers:
        found.doubtful.append(name)
    _enter_rest(found, name, module)
    return None


def _is_script(module: nn.Module) -> TypeGuard[torch.jit.ScriptModule]:
    return isinstance(module, torch.jit.ScriptModule)


def _enter_script(found: Survey, name: str, module: torch.jit.ScriptModule) -> None:
    """Enter a part that was scripted, or packed for one processor, by what its classes were."""
    read = read_script(module)
    found.tensors |= {_full(name, part): tensor for part, tensor in read.tensors.items()}
    for part, place in read.places.items():
        found.layers[name if part == "weight" else _full(name, part)] = place
        if part == "weight":  # it is a layer itself
            found.leaves[module] = Leaf(place=place, stride=getattr(module, "stride", 1))
    found.left_out += [dataclasses.replace(one, name=_full(name, one.name)) for one in read.skipped]


def _no_layer(module: nn.Module) -> str | None:
    names = {base.__name__ for base in type(module).__mro__ if base.__module__.startswith("torch.")}
    return next((reason for classes, reason in _NO_LAYERS if names & set(classes)), None)


def _inactive(module: nn.Module) -> str | None:
    """Name of the part that does not act where adapters keep a whole copy of a module beside it."""
    if not {"original_module", "modules_to_save"} <= module._modules.keys():
        return None
    copies, active = module._modules["modules_to_save"], getattr(module, "active_adapter", None)
    names = active if isinstance(active, list | tuple) else [active]
    acts = copies is not None and not getattr(module, "disable_adapters", False)
    acts = acts and any(name in copies._modules for name in names if isinstance(name, str))
    return "original_module" if acts else "modules_to_save"


# --- layers as torch has them


def is_as_torch_has_it(module: nn.Module, /) -> bool:
    """Tell whether a layer computes what torch's class does, with the weight that it shows."""
    base: Any = next(
        base for base in type(module).__mro__ if base.__module__.startswith("torch.nn.modules.")
    )
    own = type(module)
    return (
        "forward" not in vars(module)
        and own.forward is base.forward
        and getattr(own, "_conv_forward", None) is getattr(base, "_conv_forward", None)
    )


def _enter_plain(found: Survey, name: str, module: nn.Module, place: Place) -> None:
    tensors: dict[str, Tensor] = {}
    held = {**module._parameters, **module._buffers}
    for attribute in ("weight", "bias"):
        full = _full(name, attribute)
        if nn.parameter.is_lazy(held.get(attribute)):
            raise UsageError(f"{full} is not there yet; run a batch through the network first")
        # What is computed is not held: looking at it would compute it as in training.
        if attribute in held and held[attribute] is None:
            continue
        try:
            tensors[attribute] = named_tensor(full, functools.partial(_current, module, attribute))
        except UsageError:
            raise
        except Exception as exc:  # parametrisations are anybody's code
            found.leave_out(name, f"torch cannot compute its {attribute} ({_first_line(exc)})")
            return
    found.add(name, place, tensors["weight"], tensors.get("bias"))


def _first_line(exc: Exception) -> str:
    return f"{type(exc).__name__}: {exc}".partition("\n")[0]


def _current(module: nn.Module, attribute: str) -> torch.Tensor:
    """Return the tensor that forward would use now, computed from its parts where it has parts."""
    if not module._forward_pre_hooks and "parametrizations" not in module._modules:
        held: torch.Tensor = getattr(module, attribute)
        return held.detach()
    is_computed = parametrize.is_parametrized(module, attribute)
    if not is_computed and not weight_hooks(module):
        held = getattr(module, attribute)
        return held.detach()
    with torch.no_grad(), without_autocast(_device(module)):
        # A copy: in training a spectral norm would take a step of its iteration at each look, and
        # the older weight norm, spectral norm and pruning put the weight into the module.
        twin = stand_in(module)
        for hook in twin._forward_pre_hooks.values():
            hook(twin, ())
        computed: torch.Tensor = getattr(twin, attribute)
        return computed.detach()


def _device(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in own_tensors(module)), torch.device("cpu"))


# --- quantised layers


def _is_quantised(module: nn.Module) -> bool:
    """Tell whether a class of torch's gives its weight on request."""
    return any(
        callable(vars(base).get(part))
        for base in type(module).__mro__
        for part in ("weight", "_weight_bias")
        if base.__module__.startswith("torch.")
    )


def _enter_quantised(found: Survey, name: str, module: Any) -> str:
    """Enter a layer whose weight is packed, and given on request."""
    kind = type(module).__name__

    def parts() -> tuple[torch.Tensor, torch.Tensor | None]:
        if hasattr(module, "_weight_bias"):
            weight, bias = module._weight_bias()
        else:
            weight, bias = module.weight(), module.bias()
        return weight, bias

    if "Linear" not in kind and "Conv" not in kind:
        found.leave_out(name, f"a quantised {kind}: no layer of hyperplanes")
        return name
    try:
        weight, bias = parts()
        weight = plain(_full(name, "weight"), weight)
    except Exception as exc:  # what engines raise when they cannot unpack
        found.leave_out(name, f"a quantised {kind}, whose weight torch does not give ({exc})")
        return name
    if "Linear" in kind:
        place = Place(kind=Kind.LINEAR, groups=1)
    else:
        is_turned = "ConvTranspose" in kind
        shown = Kind.TRANSPOSED if is_turned else kind_of_convolution(tuple(weight.shape[2:]))
        place = Place(kind=shown, groups=module.groups)
    tensors = [
        named_tensor(_full(name, part), functools.partial(_part, parts, index))
        for index, part in enumerate(("weight", "bias" if bias is not None else ""))
        if part
    ]
    rectifies = "ReLU" in kind and "LeakyReLU" not in kind
    found.leaves[module] = Leaf(
        place=place, stride=getattr(module, "stride", 1), rectifies=rectifies
    )
    found.add(name, place, tensors[0], tensors[1] if len(tensors) > 1 else None)
    return name


def _part(parts: Callable[[], tuple[Any, Any]], index: int) -> torch.Tensor:
    part: torch.Tensor = parts()[index]
    return part.detach()


# --- layers with a forward of their own


def _may_be_affine(module: nn.Module) -> bool:
    """Tell whether a module as a whole may be an affine map with a weight to look for."""
    if place_of(module) is not None or _is_adapter(module):
        return True
    inner = [part for part in module.modules() if part is not module]
    names = (*module._modules, *module._parameters)
    if "base_layer" in names or any("lora" in name.lower() for name in names):
        return len(inner) <= _MOST_PARTS
    if _is_norm(module) or isinstance(module, nn.MultiheadAttention):
        return False
    lists = (nn.ParameterList, nn.ParameterDict)
    own = [part for part in module.children() if isinstance(part, lists)]
    if isinstance(module, lists) or any(_weights(part) for part in inner if part not in own):
        return False
    return any(_weights(part) for part in (module, *own))


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Own tensors of a module that may multiply: two dimensions or more that are not 1."""
    held = {**module._parameters, **module._buffers}
    return {
        name: tensor
        for name, tensor in held.items()
        if tensor is not None
        and not nn.parameter.is_lazy(tensor)
        and sum(extent > 1 for extent in tensor.shape) >= 2
        and (tensor.is_floating_point() or tensor.dtype in (torch.int8, torch.uint8))
    }


def _enter_solved(found: Survey, name: str, module: nn.Module) -> bool:
    """Enter a module that is a layer as a whole; False where its parts may be layers yet."""
    is_layer = place_of(module) is not None or _is_adapter(module)
    held = own_tensors(module)
    undrawn = next((t for t in held if is_undrawn(t)), None)
    if is_layer and undrawn is not None:
        if nn.parameter.is_lazy(undrawn):
            raise UsageError(f"{name} has no values yet; run a batch through the network first")
        plain(_full(name, "weight"), undrawn)
    try:
        acting = affine.solve(module)
    except NotAffineError as exc:
        if is_layer:
            found.leave_out(name or type(module).__name__, _why_not(module, str(exc)))
        return is_layer
    place = acting.form.place
    if _is_fixed(module, acting):
        found.leave_out(name, "one fixed filter for every channel, as of a blur: a buffer")
        return True
    solved = Solved(module, _full(name, "weight"), acting)
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
    return _no_layer(base_layer(module)) or reason


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


# --- all else


def _enter_rest(found: Survey, name: str, module: nn.Module) -> None:
    """Enter what may belong to a norm, and parameters that look like weights."""
    weights = _weights(module)
    for attribute, tensor in {**module._parameters, **module._buffers}.items():
        full = _full(name, attribute)
        if tensor is None or nn.parameter.is_lazy(tensor):
            continue
        read = functools.partial(_current, module, attribute)
        if sum(extent > 1 for extent in tensor.shape) < 2:
            if tensor.ndim < 2:
                found.tensors[full] = named_tensor(full, read)
        elif attribute.endswith("proj_weight"):
            found.leave_out(full, _ATTENTION)
        elif attribute in weights.keys() & module._parameters.keys() and not _is_norm(module):
            found.loose[full] = (
                f"a parameter of {type(module).__name__}, which is no affine map of one input by "
                "itself: how it acts there is not known"
            )


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, _NormBase | nn.LayerNorm | nn.RMSNorm | nn.GroupNorm)


def _tell_shared(found: Survey, root: nn.Module) -> None:
    """Measure each weight once, under its first name; the other names are told."""
    modules = dict(root.named_modules())
    first: dict[Any, str] = {}
    for name in list(found.layers):
        module = modules["" if name == "weight" and name not in modules else name]
        key = _weight_key(module, found.layers[name])
        owner = first.setdefault(key, name) if key is not None else name
        if owner != name:
            del found.layers[name]
            for part in ("weight", "bias"):
                found.tensors.pop(f"{name}.{part}", None)
            found.shared[name] = owner
            found.leave_out(name, _sharing(owner, modules[owner], module))
    _tell_again(found, root, {module: name for name, module in modules.items()})


def _tell_again(found: Survey, root: nn.Module, first: dict[nn.Module, str]) -> None:
    """Tell under which other names modules that are layers, or hold some, stand in the network."""
    told: list[str] = []
    for name, module in root.named_modules(remove_duplicate=False):
        owner = first[module]
        if owner == name or any(name.startswith(f"{outer}.") for outer in told):
            continue
        inner = [layer for layer in found.layers if f"{layer}.".startswith(f"{owner}.")]
        if inner:
            told.append(name)
            held = "which is" if inner == [owner] else "whose layers are"
            found.leave_out(name, f"the same module as {owner}, {held} measured once")


def _weight_key(module: nn.Module, place: Place) -> Any:
    weight = None if _is_script(module) else module._parameters.get("weight")
    if weight is None or weight.numel() == 0:
        return None
    how = type(module) if not is_known(module) else None
    # Of others' tensor classes, and of what has no storage, all lie at 0.
    where: Any = id(weight)
    if is_plain(weight) and weight.data_ptr() != 0:
        where = (weight.data_ptr(), tuple(weight.shape), weight.stride(), weight.device)
    return (where, weight.dtype, place.kind, place.groups, how)


def is_known(module: nn.Module, /) -> bool:
    """Return whether a module is one of torch's layers, computed as torch does."""
    return place_of(module) is not None and is_as_torch_has_it(module)


def _sharing(owner: str, measured: nn.Module, module: nn.Module) -> str:
    told = f"has the weight of {owner}, with which it is measured once"
    own, other = module._parameters.get("bias"), measured._parameters.get("bias")
    return told if own is other else f"{told}; its bias is another"
