"""Options of resets, inputs, plans and repairs; studies and the command line make theirs of them.

To import this costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from planescope.data.options import Split
from planescope.files.bounds import Bounds, check_bounds
from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import Kind
from planescope.training.precision import Precision

# "auto" stands for what the devices at hand compute fastest in.
AskedPrecision = Literal["auto", Precision]
# How a network is made smaller, and a layer repaired, and on how many examples by default.
PlannedWay = Literal["prune", "filters", "rank", "bits", "reset", "freeze"]
RepairedBy = Literal["least squares", "moments"]
# What the outputs of a network are: scores of classes, or values.
Task = Literal["classification", "regression"]
EXAMPLES = 400

BOUNDS: Bounds = {
    "draws": {"ge": 0},
    "subset": {"ge": 1},
    "memory": {"ge": 1},
    "tolerance": {"gt": 0, "lt": 1},
    "seed": {"ge": 0},
}


@dataclass(frozen=True, kw_only=True)
class ResetOptions:
    """The options of resets: which layers, to what, and how the network is evaluated.

    Attributes
    ----------
    layers : str, optional
        Names or regular expressions with commas between: only layers that one of them finds, of
        every kind unless `kinds` says otherwise.
    kinds : sequence of {"conv", "pointwise", "transposed", "linear"}, or "all"
        By default convolutions with a kernel larger than 1, or linear layers where there are none.
    with_norm : bool
        Put the batch norm behind a layer back with it: parameters and statistics.
    together : sequence of str
        Names of layers or blocks, or regular expressions, with commas between: what they find is
        reset at once, a row of its own.
    draws : int
        Fresh draws from the network's own initialiser to reset to (*re-randomisation*).
    subset : int, optional
        Evaluate on so many examples, chosen at random.
    split : {"val", "train"}
        On which examples. Training examples are not augmented.
    devices : sequence of str
        As torch calls them, or ``"auto"``; the snapshots are shared out over several.
    precision : {"auto", "32-true", "bf16-mixed", "16-mixed"}
        Of all that is evaluated, the trained network too. ``"auto"`` is ``"bf16-mixed"`` where all
        devices have instructions for it, else ``"32-true"``; the result tells which it was.
    memory : int, optional
        Bytes for what is kept between steps; by default half of what is free, within reason.
    tolerance : float, optional
        End a cell as soon as its accuracy on all examples is known to this, with 95 % confidence;
        in (0, 1). Examples are then looked at in a random order.
    seed : int
        Of draws, subset and order.

    Raises
    ------
    UsageError
        If a value is invalid.
    """

    layers: str | None = None
    kinds: Sequence[Kind | str] | str = ()
    with_norm: bool = False
    together: Sequence[str] = ()
    draws: int = 0
    subset: int | None = None
    split: Split = "val"
    devices: Sequence[str] = ("auto",)
    precision: AskedPrecision = "32-true"
    memory: int | None = None
    tolerance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for value, known in ((self.split, Split), (self.precision, AskedPrecision)):
            if value not in get_args(known):
                raise UsageError(f"unknown {value!r}; there are {', '.join(get_args(known))}")
        check_bounds(self, BOUNDS)
        if not self.devices:
            raise UsageError("give a device")


@dataclass(frozen=True, kw_only=True)
class InputOptions:
    """Options of the inputs, where the caller hands none over.

    Attributes
    ----------
    shape : tuple of int, optional
        Channels, height, width.
    mean, std : sequence of float
        What the inputs of the network have, a channel each; 0 and 1 where they are normalised.
    examples : int, optional
        Take the first so many of inputs handed over.
    seed : int
        Of synthetic pictures.
    """

    shape: tuple[int, ...] | None = None
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    examples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shape is not None and (len(self.shape) != 3 or min(self.shape) < 1):
            raise UsageError(
                f"input shape {','.join(map(str, self.shape))}: give channels, height and width"
            )
        check_bounds(self, {"examples": {"ge": 1}, "seed": {"ge": 0}})
