"""Measure how the hyperplanes of a trained network face its data, from a checkpoint alone.

    import planescope as ps

    ps.measure("vgg19.safetensors").to_pandas()

Names are imported when first used, so that ``import planescope`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from planescope import figures
    from planescope.criticality.plan.planned import Plan, PlannedLayer, Rival
    from planescope.criticality.plan.record import Repair, RepairedLayer
    from planescope.criticality.plan.repair import repair
    from planescope.criticality.plan.search import plan
    from planescope.criticality.prediction import Prediction, predict_critical
    from planescope.criticality.relation.record import RelatedLayer, Relation
    from planescope.criticality.relation.relate import relate
    from planescope.criticality.resets import ResetOptions, reset
    from planescope.criticality.resets.record import Accuracy, ResetCell, ResetLayer, Resets
    from planescope.criticality.sensitivity import sensitivity
    from planescope.criticality.sensitivity.record import Sensitivity
    from planescope.figures.report import Report, report
    from planescope.files.errors import (
        CheckpointError,
        MissingDependencyError,
        NoLayersError,
        OutputError,
        PlanescopeError,
        RunError,
        StoppedError,
        UsageError,
    )
    from planescope.hyperplanes import chance, geometry
    from planescope.hyperplanes.layer import Input, Kind, Layer, Skipped, View
    from planescope.hyperplanes.statistics import Filters, Statistics
    from planescope.measurement.diff import diff
    from planescope.measurement.difference import Difference, LayerDifference
    from planescope.measurement.measure import measure
    from planescope.measurement.record import LayerMeasurement, Measurement, PoolMeasurement, load
    from planescope.study.claims.drift import drift_band
    from planescope.study.folder import Study
    from planescope.study.work.make import make_study
    from planescope.training.config import RunConfig
    from planescope.training.loop import train
    from planescope.training.run import Run
    from planescope.training.tracker.tracker import Tracker

# The module in which each public name lives.
_HOMES = {
    "Accuracy": "criticality.resets.record",
    "CheckpointError": "files.errors",
    "Difference": "measurement.difference",
    "Filters": "hyperplanes.statistics",
    "Input": "hyperplanes.layer",
    "Kind": "hyperplanes.layer",
    "Layer": "hyperplanes.layer",
    "LayerDifference": "measurement.difference",
    "LayerMeasurement": "measurement.record",
    "Measurement": "measurement.record",
    "MissingDependencyError": "files.errors",
    "NoLayersError": "files.errors",
    "OutputError": "files.errors",
    "Plan": "criticality.plan.planned",
    "PlanescopeError": "files.errors",
    "PlannedLayer": "criticality.plan.planned",
    "PoolMeasurement": "measurement.record",
    "Prediction": "criticality.prediction",
    "RelatedLayer": "criticality.relation.record",
    "Relation": "criticality.relation.record",
    "Repair": "criticality.plan.record",
    "RepairedLayer": "criticality.plan.record",
    "Report": "figures.report",
    "ResetCell": "criticality.resets.record",
    "ResetLayer": "criticality.resets.record",
    "ResetOptions": "criticality.resets",
    "Resets": "criticality.resets.record",
    "Rival": "criticality.plan.planned",
    "Run": "training.run",
    "RunConfig": "training.config",
    "RunError": "files.errors",
    "Sensitivity": "criticality.sensitivity.record",
    "Skipped": "hyperplanes.layer",
    "Statistics": "hyperplanes.statistics",
    "StoppedError": "files.errors",
    "Study": "study.folder",
    "Tracker": "training.tracker.tracker",
    "UsageError": "files.errors",
    "View": "hyperplanes.layer",
    "diff": "measurement.diff",
    "drift_band": "study.claims.drift",
    "load": "measurement.record",
    "make_study": "study.work.make",
    "measure": "measurement.measure",
    "plan": "criticality.plan.search",
    "predict_critical": "criticality.prediction",
    "relate": "criticality.relation.relate",
    "repair": "criticality.plan.repair",
    "report": "figures.report",
    "reset": "criticality.resets",
    "sensitivity": "criticality.sensitivity",
    "train": "training.loop",
}

_MODULES = {
    "chance": "hyperplanes.chance",
    "figures": "figures",
    "geometry": "hyperplanes.geometry",
}

__all__ = [
    "Accuracy",
    "CheckpointError",
    "Difference",
    "Filters",
    "Input",
    "Kind",
    "Layer",
    "LayerDifference",
    "LayerMeasurement",
    "Measurement",
    "MissingDependencyError",
    "NoLayersError",
    "OutputError",
    "Plan",
    "PlanescopeError",
    "PlannedLayer",
    "PoolMeasurement",
    "Prediction",
    "RelatedLayer",
    "Relation",
    "Repair",
    "RepairedLayer",
    "Report",
    "ResetCell",
    "ResetLayer",
    "ResetOptions",
    "Resets",
    "Rival",
    "Run",
    "RunConfig",
    "RunError",
    "Sensitivity",
    "Skipped",
    "Statistics",
    "StoppedError",
    "Study",
    "Tracker",
    "UsageError",
    "View",
    "__version__",
    "chance",
    "diff",
    "drift_band",
    "figures",
    "geometry",
    "load",
    "make_study",
    "measure",
    "plan",
    "predict_critical",
    "relate",
    "repair",
    "report",
    "reset",
    "sensitivity",
    "train",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _MODULES:
        value: Any = import_module(f"planescope.{_MODULES[name]}")
    elif name in _HOMES:
        value = getattr(import_module(f"planescope.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'planescope' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
