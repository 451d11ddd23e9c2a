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
    from planescope.errors import (
        CheckpointError,
        MissingDependencyError,
        NoLayersError,
        OutputError,
        PlanescopeError,
        UsageError,
    )
    from planescope.layer import Input, Kind, Layer, Skipped, View
    from planescope.measurement import LayerMeasurement, Measurement, PoolMeasurement, load
    from planescope.measuring import measure
    from planescope.statistics import Filters, Statistics

# Where each public name lives; "" marks a module.
_HOMES = {
    "CheckpointError": "errors",
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
    "Skipped": "layer",
    "Statistics": "statistics",
    "UsageError": "errors",
    "View": "layer",
    "chance": "",
    "figures": "",
    "geometry": "",
    "load": "measurement",
    "measure": "measuring",
}

__all__ = [
    "CheckpointError",
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
    "Skipped",
    "Statistics",
    "UsageError",
    "View",
    "__version__",
    "chance",
    "figures",
    "geometry",
    "load",
    "measure",
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
