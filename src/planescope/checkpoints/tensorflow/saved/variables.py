"""Named variables of TensorFlow to a state dict: its kernels turned so that filters come first."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from planescope.hyperplanes.layer import Kind, Layout, Place, Skipped, StateDict, Tensor
from planescope.networks.state.axes import Axes, Wanted, Weight, reordered
from planescope.networks.state.layers import natural
from planescope.networks.state.layout import lay_out

if TYPE_CHECKING:
    import numpy as np

# Last parts of the names of kernels. Of a separable convolution there are two.
_SEPARABLE = ("depthwise_kernel", "depthwise_weights", "pointwise_kernel", "pointwise_weights")
_KERNELS = ("kernel", "weights", "weight", "W", "w", "filter", "filters", *_SEPARABLE)
_FILTERS_LAST = ((None, Layout.LAST),)
_UPWARDS = re.compile(r"transpose|deconv|upconv")
_BIASES = ("bias", "biases", "b", "B")
_NORMS = {
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "gamma": "weight",
    "beta": "bias",
}
_RECURRENT = re.compile(r"(^|[/_.])(basic_)?(lstm|gru|rnn)([/_.]|$)|recurrent", re.IGNORECASE)
_ATTENTION = re.compile(r"attention|einsum|(^|[/._])(query|key|value|output_dense)($|[/._])")
_NO_WEIGHTS = {
    **dict.fromkeys(
        ("embeddings", "embedding", "embedding_weights"),
        "an embedding: its rows are looked up, they cut nothing",
    ),
    "alpha": "slopes of an activation, which cut nothing",
}
# What optimizers and averages keep for each variable, as a copy of its name with more behind.
_COPY = re.compile(
    r"^(optimizer|_?optimizer\w*|training\w*|beta\d_power|save_counter)(/|$)"
    r"|/(Adam|Adagrad|Adadelta|Ftrl|Momentum|RMSProp|RMSprop|ExponentialMovingAverage)(_\d+)?$"
    r"|^(adam|sgd|rmsprop|adamw|nadam|adagrad|lamb)(_\d+)?/",
    re.IGNORECASE,
)
_ORDER = re.compile(r"(^|/)(layer(_with_weights)?-\d+|(_operations|layers)/\d+)(/|$)")


def as_state_dict(
    tensors: Mapping[str, Tensor], names: Mapping[str, str], skipped: Sequence[Skipped] = ()
) -> StateDict:
    """Turn variables into a state dict of our layout.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        By key of the checkpoint.
    names : mapping of str to str
        What the variables were called when they were made, by key.
    """
    known = {key: tensor for key, tensor in tensors.items() if not _COPY.search(key)}
    # Of a variable that was made without a name the path of objects tells more.
    called = {key: name if "/" in (name := names.get(key, "")) else key for key in known}
    modules: defaultdict[str, dict[str, str]] = defaultdict(dict)
    # Of a layer and a norm within it, conv1 and conv1/BatchNorm, the layer comes first.
    for key in sorted(known, key=lambda key: natural(key.rpartition("/")[0])):
        module, _, last = called[key].removesuffix(":0").rpartition("/")
        if not _COPY.search(called[key]):
            modules[module][last.removeprefix("_")] = key
    numbered = all(_ORDER.search(key) for key, tensor in known.items() if tensor.shape)
    return _Turned(modules, known, list(skipped)).state_dict(numbered=numbered)


class _Turned:
    def __init__(
        self,
        modules: Mapping[str, Mapping[str, str]],
        tensors: Mapping[str, Tensor],
        skipped: list[Skipped],
    ) -> None:
        self.modules = modules
        self.tensors = tensors
        self.skipped = skipped
        self.found: dict[str, Tensor] = {}
        self.places: dict[str, Place] = {}
        self.notes: list[str] = []

    def state_dict(self, *, numbered: bool) -> StateDict:
        for module, variables in self.modules.items():
            self._add(module, variables)
        in_order = numbered or self._norms_are_within()
        return StateDict(
            tensors=self.found,
            places=self.places,
            in_order=in_order,
            skipped=tuple(self.skipped),
            note="; ".join(self.notes),
        )

    def _add(self, module: str, variables: Mapping[str, str]) -> None:
        name = module.replace("/", ".")
        if "moving_mean" in variables and "moving_variance" in variables:
            for last, ours in _NORMS.items():
                if last in variables:
                    self.found[f"{name}.{ours}".lstrip(".")] = self.tensors[variables[last]]
            return
        kernels = [last for last in variables if last in _KERNELS]
        if "recurrent_kernel" in variables or (kernels and _RECURRENT.search(module)):
            reason = "a recurrent layer: its weights act on its own output"
            self.skipped.append(Skipped(name=name, reason=reason))
            return
        for last in kernels:
            suffix = "." + last.partition("_")[0] if len(kernels) > 1 else ""
            is_last = last == kernels[-1] or last.startswith("pointwise")
            bias = next((variables[b] for b in _BIASES if b in variables), None)
            self._add_kernel(
                (name + suffix).lstrip("."),
                module,
                last,
                variables[last],
                bias if is_last else None,
            )
        self._add_rest(name, {last: key for last, key in variables.items() if last not in kernels})

    def _add_kernel(self, name: str, module: str, last: str, key: str, bias: str | None) -> None:
        kernel = self.tensors[key]
        shift = self.tensors[bias] if bias is not None else None
        if len(kernel.shape) == 3 and _ATTENTION.search(module.lower()):
            reason = "a projection of an attention, by head: its axes are not told"
            self.skipped.append(Skipped(name=name, reason=reason))
            return
        axes = _axes(module, last, kernel, shift)
        if axes is None:
            if len(kernel.shape) > 1:
                reason = f"weights of shape {kernel.shape}, which no layer here has"
                self.skipped.append(Skipped(name=name, reason=reason))
            return
        weight = reordered(kernel, axes)
        filters = weight.shape[0]
        groups = axes.groups
        if axes.kind is Kind.TRANSPOSED:
            groups = 1  # the weight as a state dict has it: (in, out, *kernel)
            weight = _swapped(weight)
        self.found[f"{name}.weight"] = weight
        self.places[name] = Place(kind=axes.kind, groups=groups)
        if shift is not None and shift.shape == (filters,):
            self.found[f"{name}.bias"] = shift
        elif shift is not None:
            self.notes.append(
                f"the bias of {name}, of shape {shift.shape}, does not fit its {filters} filters "
                "and is left out"
            )

    def _add_rest(self, name: str, variables: Mapping[str, str]) -> None:
        """Tell of what may be weights under another name."""
        for last, key in variables.items():
            tensor = self.tensors[key]
            if len(tensor.shape) < 2 or not tensor.is_floating or last in _BIASES:
                continue
            unknown = f"a variable of shape {tensor.shape} whose name does not tell what it is"
            reason = _NO_WEIGHTS.get(last, unknown)
            self.skipped.append(Skipped(name=f"{name}.{last}".lstrip("."), reason=reason))

    def _norms_are_within(self) -> bool:
        """Tell whether each norm is named as a part of its layer: conv1 and conv1.BatchNorm."""
        norms = {n.rpartition(".")[0] for n in self.found if n.endswith(".running_mean")}
        return bool(norms) and all(norm.rpartition(".")[0] in self.places for norm in norms)


def _axes(module: str, last: str, kernel: Tensor, bias: Tensor | None) -> Axes | None:
    """Tell how a kernel lies, filters last: by its name, and by the axis as long as its bias."""
    shape, own = kernel.shape, module.rpartition("/")[2].lower()
    if not 2 <= len(shape) <= 5 or 0 in shape or (len(shape) == 2 and last in _SEPARABLE):
        return None
    outputs = bias.shape[0] if bias is not None and len(bias.shape) == 1 else None
    weight = Weight(
        module="pointwise" if "pointwise" in own + last else own,
        ending=last,
        shape=shape,
        outputs=None if last in _SEPARABLE else outputs,
    )
    is_open = outputs in (None, shape[-2])
    wanted = Wanted(layouts=_FILTERS_LAST, transposed=_UPWARDS if is_open else None)
    return lay_out([weight], wanted).axes.get(weight.module)


def _swapped(weight: Tensor) -> Tensor:
    first, second, *rest = weight.shape

    def read() -> np.ndarray:
        values: np.ndarray = weight.read()
        return values.swapaxes(0, 1)

    return Tensor((second, first, *rest), weight.dtype, read)
