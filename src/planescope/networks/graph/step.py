"""A step of a torch graph: an operation under its one name, and its role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from planescope.hyperplanes.layer import Kind, Place
from planescope.networks.graph import views
from planescope.networks.graph.places import Role, clamped, is_even

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import fx, nn

    from planescope.networks.live.affine import Leaf

_GRIDS = ("", "pertensor", "perchannel", "pertoken", "affine")
_PADDINGS = ("zero", "reflection", "replication", "circular")

# Modules, functions and methods go by one name, in lower case and without underscores: nn.MaxPool2d
# and F.max_pool2d are both "maxpool2d", "relu" and the in-place "relu_" are both "relu".
_WORDS = {
    Role.RELU: {"relu", "relu6"},
    Role.GATE: {
        *("sigmoid", "hardsigmoid", "softmax", "softmax2d", "gumbelsoftmax", "softmin"),
        *("softplus", "exp", "abs", "sqrt", "rsqrt", "norm", "var", "std"),
        *("gt", "ge", "lt", "le", "eq", "ne"),
    },
    # In evaluation these give what they get.
    Role.IDENTITY: {
        *("identity", "dropout", "dropout1d", "dropout2d", "dropout3d", "alphadropout"),
        *("featurealphadropout", "stochasticdepth", "contiguous", "clone", "detach", "float"),
        *("half", "double", "bfloat16", "to", "typeas", "cuda", "cpu"),
        # To the next number of a grid, on which 0 lies.
        *(f"{how}quantize{what}" for how in ("", "de") for what in _GRIDS),
        *("fakequantizepertensoraffine", "fakequantizeperchannelaffine"),
        "fusedmovingavgobsfakequant",
    },
    # These move values about, or take means and maxima of them: each stays what it is.
    Role.VIEW: {
        *("flatten", "unflatten", "view", "reshape", "squeeze", "unsqueeze", "permute"),
        *("transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "chunk", "split"),
        *("tensorsplit", "getitem", "narrow", "unbind", "expand", "repeat"),
        *("expandas", "reshapeas", "viewas"),
        *("repeatinterleave", "tile", "roll", "flip", "rot90", "select", "indexselect", "unfold"),
        *("channelshuffle", "pixelshuffle", "pixelunshuffle", "nativechannelshuffle"),
        *(f"{how}maxpool{n}d" for how in ("", "adaptive", "fractional") for n in (1, 2, 3)),
        *(f"{how}avgpool{n}d" for how in ("", "adaptive") for n in (1, 2, 3)),
        *("mean", "sum", "amax", "amin", "cumsum", "lppool1d", "lppool2d", "localresponsenorm"),
        *(f"{how}pad{n}d" for how in _PADDINGS for n in (1, 2, 3)),
        *("upsamplingnearest2d", "upsamplingbilinear2d"),
    },
    Role.JOIN: {"add", "cat", "concat", "concatenate", "stack", "hstack", "vstack"},
    Role.PRODUCT: {"mul", "multiply", "div", "divide", "truediv"},
    Role.MAXIMUM: {"maximum"},
    Role.MINIMUM: {"minimum"},
    Role.SHIFT: {"sub", "subtract", "neg", "negative"},
}
_ROLES = {word: role for role, words in _WORDS.items() for word in words}

_CLAMPS = {"hardtanh", "clamp", "clampmin", "clampmax", "clip"}
_PADS = {"pad", *(f"constantpad{n}d" for n in (1, 2, 3))}
_RESIZES = {"interpolate", "upsample"}
# An `alpha` that scales the second operand is a number too.
_ARITHMETIC = {
    *("add", "sub", "subtract", "minimum", "maximum"),
    *("mul", "multiply", "div", "divide", "truediv"),
}
_STEPS = {f"{what}pool{n}d" for what in ("max", "avg", "lp") for n in (1, 2, 3)}

# Home of observers and of what rounds meanwhile: neither changes the nature of what it is given.
QUANTISATION = "torch.ao.quantization."

# Of what else these are given they take the shape alone, or the type.
LIKE_ANOTHER = {"expandas", "reshapeas", "typeas", "viewas"}

# Whoever asks for these does not read the values.
METADATA = {"size", "dim", "numel", "shape", "ndim", "dtype", "device"}


class StepNorm(NamedTuple):
    """A batch norm, by the name of its module."""

    name: str
    eps: float


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """A node of the graph, with what it reads as the values are by then.

    `place` holds what the layer itself tells, where the step is one.
    """

    node: fx.Node
    operation: str
    module: nn.Module | None
    inputs: tuple[fx.Node, ...]
    layer: str | None = None
    place: Place | None = None
    norm: StepNorm | None = None
    constant: object = None
    leaf: Leaf | None = None

    def option(self, name: str, position: int, default: Any = None) -> Any:
        """Return value of an option, whether a module keeps it or a function is called with it."""
        if self.module is not None:
            return getattr(self.module, name, default)
        if len(self.node.args) > position:
            return self.node.args[position]
        return self.node.kwargs.get(name, default)

    @property
    def reads_values(self) -> bool:
        """Tell whether it uses a tensor's values, not its shape or type alone."""
        attribute = self.node.args[1] if self.operation == "getattr" else self.operation
        return attribute not in METADATA

    @property
    def operands(self) -> Iterator[float]:
        """Yield the numbers written in the code that it computes with."""
        if self.operation in _ARITHMETIC:
            given = (*self.node.args, *self.node.kwargs.values())
            yield from (value for value in given if isinstance(value, int | float))
        elif self.operation in _CLAMPS:
            _, bound = self.clamp
            yield from () if bound is None else (bound,)

    @property
    def clamp(self) -> tuple[Role, float | None]:
        """Return what a clamp is, by those of its bounds that are numbers."""
        least = self.option("min_val", 1, self.node.kwargs.get("min"))
        most = self.option("max_val", 2, self.node.kwargs.get("max"))
        if self.operation == "clampmax":
            least, most = None, self.option("max", 1)
        return clamped(*(each if isinstance(each, int | float) else None for each in (least, most)))

    @property
    def rectifies(self) -> bool:
        """Return whether it is a ReLU, or clamps like one."""
        if self.operation in _CLAMPS:
            return self.clamp[0] is Role.RELU
        if self.operation == "threshold":
            least, instead = self.option("threshold", 1), self.option("value", 2)
            return isinstance(least, int | float) and min(least, instead) >= 0
        return _ROLES.get(self.operation) is Role.RELU

    @property
    def squares(self) -> bool:
        """Return whether it multiplies a value by itself: `inputs` has it once."""
        args = self.node.args
        if self.operation == "pow" and len(args) > 1:
            return isinstance(args[1], int | float) and is_even(args[1])
        if self.operation not in ("mul", "multiply"):
            return self.operation == "square"
        return len(args) > 1 and args[0] is args[1]

    @property
    def view(self) -> views.View | None:
        """Return how it moves axes; None where that cannot be told."""
        given: list[Any] = list(self.node.args[1:])
        if len(given) == 1 and isinstance(given[0], tuple | list):
            given = list(given[0])
        numbers = [each for each in given if isinstance(each, int)]
        is_told = bool(given) and len(numbers) == len(given) and not self.node.kwargs
        match self.operation:
            case "flatten":
                ends = self.option("start_dim", 1, 0), self.option("end_dim", 2, -1)
                return views.flattened(*ends) if all(isinstance(n, int) for n in ends) else None
            case "transpose" | "swapaxes" | "swapdims" if is_told and len(given) == 2:
                return views.swapped(*numbers)
            case "permute" if is_told:
                return views.permuted(numbers)
            case "squeeze" if is_told and len(given) == 1:
                return views.without_axis(*numbers)
            case "unsqueeze" if is_told and len(given) == 1:
                return views.with_axis(*numbers)
            case "view" | "reshape" if not self.node.kwargs:
                return views.of_shape(given)
        return None

    @property
    def downsamples(self) -> bool:
        """Return whether it is a pooling or a convolution with a stride."""
        if self.place is not None and self.place.kind in (Kind.CONV, Kind.POINTWISE):
            stride = self.option("stride", 3, 1) if self.leaf is None else self.leaf.stride
        elif self.operation in _STEPS:
            stride = self.option("stride", 2) or self.option("kernel_size", 1)
        else:
            return False
        strides = stride if isinstance(stride, tuple | list) else (stride,)
        return any(isinstance(extent, int) and extent > 1 for extent in strides)

    @property
    def role(self) -> Role:
        """Return what the step does to what it reads."""
        if self.norm is not None:
            return Role.NORM
        if self.module is not None and type(self.module).__module__.startswith(QUANTISATION):
            return Role.IDENTITY
        if self.operation in _CLAMPS:
            return self.clamp[0]
        if self.rectifies:
            return Role.RELU
        if self.squares:
            return Role.PRODUCT
        if self.operation in _PADS:
            return Role.VIEW if (self.option("value", 3) or 0) >= 0 else Role.SHIFT
        if self.operation in _RESIZES:
            return Role.SHIFT if self.option("mode", 3, "nearest") == "bicubic" else Role.VIEW
        return _ROLES.get(self.operation, Role.OTHER)
