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
from planescope.figures.difference import difference
from planescope.figures.dynamics import dynamics
from planescope.figures.layers import cosines, negative_mass
from planescope.figures.overview import overview
from planescope.figures.plan import plan
from planescope.figures.portrait import portrait
from planescope.figures.prediction import prediction
from planescope.figures.relation import ranks, relation, roc, score_against_drop
from planescope.figures.repetitions import repetitions, write_deviation
from planescope.figures.resets import heatmap
from planescope.figures.sensitivity import sensitivity, sensitivity_map
from planescope.figures.theory import theory
from planescope.figures.write_all import Written, write_all

__all__ = [
    "Width",
    "Written",
    "agreement_through_training",
    "animate",
    "cosines",
    "difference",
    "dynamics",
    "effects",
    "heatmap",
    "masses_before_and_after",
    "negative_mass",
    "networks",
    "overview",
    "plan",
    "portrait",
    "prediction",
    "ranks",
    "relation",
    "repetitions",
    "roc",
    "save",
    "score_against_drop",
    "sensitivity",
    "sensitivity_map",
    "settings",
    "style",
    "theory",
    "write_all",
    "write_claims",
    "write_deviation",
]
