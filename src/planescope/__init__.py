"""Measure how the hyperplanes of a trained network face its data, from a checkpoint alone.

    import planescope as ps

    ps.measure("vgg19.safetensors").to_pandas()

Names are imported when first used, so that ``import planescope`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from planescope import chance, figures, geometry
    from planescope.config import RunConfig
    from planescope.errors import (
        CheckpointError,
        MissingDependencyError,
        NoLayersError,
        OutputError,
        PlanescopeError,
        RunError,
        StoppedError,
        UsageError,
    )
    from planescope.fitting import fit_critical
    from planescope.layer import Input, Kind, Layer, Skipped, View
    from planescope.measurement import LayerMeasurement, Measurement, PoolMeasurement, load
    from planescope.measuring import measure
    from planescope.prediction import CriticalModel, Prediction, predict_critical
    from planescope.relating import relate
    from planescope.relation import RelatedLayer, Relation
    from planescope.reporting import Report, report
    from planescope.resets import Accuracy, ResetCell, ResetLayer, Resets
    from planescope.resetting import ResetOptions, reset_checkpoint, reset_module, reset_run
    from planescope.run import Run
    from planescope.statistics import Filters, Statistics
    from planescope.study.driving import make_study
    from planescope.study.folder import Study
    from planescope.tracking.tracker import Tracker
    from planescope.training.loop import train

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
