"""Figures as in a paper, in Matplotlib; each function gives a figure that `save` writes."""

from planescope.figures.animation import animate
from planescope.figures.canvas import Width, save
from planescope.figures.dynamics import dynamics
from planescope.figures.half_plane import portrait
from planescope.figures.heatmap import heatmap
from planescope.figures.matrices import theory
from planescope.figures.overviews import overview
from planescope.figures.relation import ranks, relation, roc, score_against_drop
from planescope.figures.rows import cosines, negative_mass

__all__ = [
    "Width",
    "animate",
    "cosines",
    "dynamics",
    "heatmap",
    "negative_mass",
    "overview",
    "portrait",
    "ranks",
    "relation",
    "roc",
    "save",
    "score_against_drop",
    "theory",
]
