"""Figures as in a paper, in Matplotlib; each function gives a figure that `save` writes."""

from planescope.figures.canvas import Width, save
from planescope.figures.half_plane import portrait
from planescope.figures.matrices import theory
from planescope.figures.overviews import overview
from planescope.figures.rows import cosines, negative_mass

__all__ = ["Width", "cosines", "negative_mass", "overview", "portrait", "save", "theory"]
