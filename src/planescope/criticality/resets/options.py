"""The options of resets: which layers, to what, and how the network is evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import Kind
from planescope.training.processor import Precision

# "auto" stands for what the devices at hand compute fastest in.
AskedPrecision = Literal["auto", Precision]
Part = Literal["val", "train"]


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
        Names of layers with commas between that are reset at once; each is a row of its own.
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
    split: Part = "val"
    devices: Sequence[str] = ("auto",)
    precision: AskedPrecision = "32-true"
    memory: int | None = None
    tolerance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for value, known in ((self.split, Part), (self.precision, AskedPrecision)):
            if value not in get_args(known):
                raise UsageError(f"unknown {value!r}; there are {', '.join(get_args(known))}")
        for fits, problem in (
            (self.draws >= 0, f"the number of draws must be 0 or more, not {self.draws}"),
            (
                self.subset is None or self.subset > 0,
                f"a subset must have 1 example or more, not {self.subset}",
            ),
            (
                self.memory is None or self.memory > 0,
                f"memory must be 1 byte or more, not {self.memory}",
            ),
            (
                self.tolerance is None or 0 < self.tolerance < 1,
                f"a tolerance must lie in (0, 1), not {self.tolerance}",
            ),
            (self.seed >= 0, f"a seed must be 0 or more, not {self.seed}"),
            (len(self.devices) > 0, "give a device"),
        ):
            if not fits:
                raise UsageError(problem)


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The cost of resets, told beforehand.

    Attributes
    ----------
    layers : int
        Rows of the table: layers, and those that are put back together.
    cells : int
        Networks to be evaluated beside the trained one.
    examples : int or None
        Each of them on so many; None where nobody knows beforehand.
    pass_seconds : float or None
        The trained network once over all of these, by its first batch, loading aside.
    at_most_seconds : float or None
        All cells, if nothing were shared between them; what lies before a layer is.
    left_out : tuple of str
        Sentences on layers that do not fit what they would be put back to.
    """

    layers: int
    cells: int
    examples: int | None
    pass_seconds: float | None
    at_most_seconds: float | None
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        on = "examples that are counted on the way" if self.examples is None else (
            f"{self.examples} examples"
        )  # fmt: skip
        text = f"{self.cells} cells of {self.layers} rows, each on {on}"
        if self.pass_seconds is not None and self.at_most_seconds is not None:
            text += (
                f"; once over them takes the network about {self.pass_seconds:.2g} s, all cells at "
                f"most {self.at_most_seconds:.2g} s"
            )
        return "\n".join([text, *self.left_out])
