"""The cost of resets, told before they are made."""

from __future__ import annotations

from dataclasses import dataclass

from planescope.files.errors import counted


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
            counted(self.examples, "example")
        )  # fmt: skip
        text = f"{counted(self.cells, 'cell')} of {counted(self.layers, 'row')}, each on {on}"
        if self.pass_seconds is not None and self.at_most_seconds is not None:
            text += (
                f"; once over them takes the network about {self.pass_seconds:.2g} s, all cells at "
                f"most {self.at_most_seconds:.2g} s"
            )
        return "\n".join([text, *self.left_out])
