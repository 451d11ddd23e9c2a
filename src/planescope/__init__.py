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
    from planescope.criticality.fitting import fit_critical
    from planescope.criticality.prediction import CriticalModel, Prediction, predict_critical
    from planescope.criticality.relate import relate
    from planescope.criticality.relation import RelatedLayer, Relation
    from planescope.criticality.resets import (
        ResetOptions,
        reset_checkpoint,
        reset_module,
        reset_run,
    )
    from planescope.criticality.resets.record import Accuracy, ResetCell, ResetLayer, Resets
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
    from planescope.measurement.measure import measure
    from planescope.measurement.record import LayerMeasurement, Measurement, PoolMeasurement, load
    from planescope.study.folder import Study
    from planescope.study.make import make_study
    from planescope.training.config import RunConfig
    from planescope.training.loop import train
    from planescope.training.run import Run
    from planescope.training.tracker.tracker import Tracker

# Where each public name lives; "" marks a module.
_HOMES = {
    "Accuracy": "resets",
    "CheckpointError": "errors",
    "CriticalModel": "prediction",
    "Filters": "statistics",
    "Input": "layer",
    "Kind": "layer",
    "Layer": "layer",
    "LayerMeasurement": "measurement",
    "Measurement": "measurement",
    "MissingDependencyError": "errors",
    "NoLayersError": "errors",
    "OutputError": "errors",
    "PlanescopeError": "errors",
    "PoolMeasurement": "measurement",
    "Prediction": "prediction",
    "RelatedLayer": "relation",
    "Relation": "relation",
    "Report": "reporting",
    "ResetCell": "resets",
    "ResetLayer": "resets",
    "ResetOptions": "resetting",
    "Resets": "resets",
    "Run": "run",
    "RunConfig": "config",
    "RunError": "errors",
    "Skipped": "layer",
    "Statistics": "statistics",
    "StoppedError": "errors",
    "Study": "study.folder",
    "Tracker": "tracking.tracker",
    "UsageError": "errors",
    "View": "layer",
    "chance": "",
    "figures": "",
    "fit_critical": "fitting",
    "geometry": "",
    "load": "measurement",
    "make_study": "study.driving",
    "measure": "measuring",
    "predict_critical": "prediction",
    "relate": "relating",
    "report": "reporting",
    "reset_checkpoint": "resetting",
    "reset_module": "resetting",
    "reset_run": "resetting",
    "train": "training.loop",
}

__all__ = [
    "Accuracy",
    "CheckpointError",
    "CriticalModel",
    "Filters",
    "Input",
    "Kind",
    "Layer",
    "LayerMeasurement",
    "Measurement",
    "MissingDependencyError",
    "NoLayersError",
    "OutputError",
    "PlanescopeError",
    "PoolMeasurement",
    "Prediction",
    "RelatedLayer",
    "Relation",
    "Report",
    "ResetCell",
    "ResetLayer",
    "ResetOptions",
    "Resets",
    "Run",
    "RunConfig",
    "RunError",
    "Skipped",
    "Statistics",
    "StoppedError",
    "Study",
    "Tracker",
    "UsageError",
    "View",
    "__version__",
    "chance",
    "figures",
    "fit_critical",
    "geometry",
    "load",
    "make_study",
    "measure",
    "predict_critical",
    "relate",
    "report",
    "reset_checkpoint",
    "reset_module",
    "reset_run",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'planescope' has no attribute {name!r}")
    from importlib import import_module

    home = _HOMES[name]
    value = (
        getattr(import_module(f"planescope.{home}"), name)
        if home
        else import_module(f"planescope.{name}")
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
