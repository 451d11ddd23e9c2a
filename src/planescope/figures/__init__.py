"""Figures as in a paper, in Matplotlib; each function gives a figure that `save` writes."""

from planescope.figures.animation import animate
from planescope.figures.canvas import Width, save, style
from planescope.figures.claims import (
    agreement_through_training,
    effects,
    masses_before_and_after,
    write_claims,
)
from planescope.figures.comparisons import networks, settings
from planescope.figures.dynamics import dynamics
from planescope.figures.half_plane import portrait
from planescope.figures.heatmap import heatmap
from planescope.figures.matrices import theory
from planescope.figures.overviews import overview
from planescope.figures.paper import Written, write_all
from planescope.figures.relation import ranks, relation, roc, score_against_drop
from planescope.figures.rows import cosines, negative_mass

__all__ = [
    "Width",
    "Written",
    "agreement_through_training",
    "animate",
    "cosines",
    "dynamics",
    "effects",
    "heatmap",
    "masses_before_and_after",
    "negative_mass",
    "networks",
    "overview",
    "portrait",
    "ranks",
    "relation",
    "roc",
    "save",
    "score_against_drop",
    "settings",
    "style",
    "theory",
    "write_all",
    "write_claims",
]
