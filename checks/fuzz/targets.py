"""Readers by name: each takes the folder of a case, and may raise our own errors alone."""

from __future__ import annotations

import dataclasses
import encodings
import importlib
import pkgutil
import typing
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import planescope as ps
from checks.fuzz import trees
from checks.fuzz.mappings import mappings
from checks.fuzz.seeds import INPUT
from planescope import checkpoints
from planescope.checkpoints import read_contents
from planescope.checkpoints.probe import probe
from planescope.criticality.resets.engine.progress import Progress
from planescope.data.sets import files as datafiles
from planescope.files.errors import PlanescopeError
from planescope.files.pickles import read_pickle
from planescope.files.results import records
from planescope.hyperplanes.layer import Layer, StateDict
from planescope.study.plan import read_plan
from planescope.training.config import dump_config, load_config

# Folder, number of the case, and which files were changed.
Read = Callable[[Path, int, Collection[str]], None]

# The whole measurement takes three times as long as reading, and sees the same numbers.
MEASURED = 4


def _checkpoint(folder: Path, case: int, _: Collection[str]) -> None:
    """Read every tensor, and measure now and then."""
    if case % MEASURED == 1:
        _signs_agree(folder / INPUT)
    if case % MEASURED == 0:
        ps.measure(folder / INPUT, kinds="all", view="effective").to_json(indent=None)
        return
    _, contents = read_contents(folder / INPUT)
    if isinstance(contents, StateDict):
        tensors = list(contents.tensors.values())
    else:
        tensors = [tensor for layer in contents.layers for tensor in _tensors(layer)]
    for tensor in tensors:
        if tensor.read().shape != tensor.shape:
            raise AssertionError(f"a tensor is not of the shape {tensor.shape} that it claims")


def _signs_agree(path: Path) -> None:
    """Raise unless each format that takes the file for its own finds its sign in it."""
    look = probe(path)
    for name, sign in checkpoints.FORMATS.items():
        module = importlib.import_module(f"planescope.checkpoints.{name}")
        if module.recognises(look) and not sign.fits(look):
            raise AssertionError(f"{name} recognises a file that has not its sign")


def _tensors(layer: Layer) -> list[ps.layer.Tensor]:
    norm = layer.norm
    parts = [layer.weight, layer.bias]
    if norm is not None:
        parts += [norm.gamma, norm.beta, norm.mean, norm.variance]
    return [part for part in parts if part is not None]


def _pickle(folder: Path, *_: object) -> None:
    read_pickle((folder / INPUT).read_bytes(), where="a.pkl")


def _config(folder: Path, *_: object) -> None:
    dump_config(load_config(folder / INPUT))


def _study(folder: Path, *_: object) -> None:
    read_plan(folder / INPUT)


def _measurement(folder: Path, case: int, _: Collection[str]) -> None:
    _use(ps.load(folder / INPUT), case)


def _resets(folder: Path, case: int, _: Collection[str]) -> None:
    _use(ps.Resets.load(folder / INPUT), case)


def _relation(folder: Path, case: int, _: Collection[str]) -> None:
    _use(ps.Relation.load(folder / INPUT), case)


def _progress(folder: Path, *_: object) -> None:
    _ = Progress(folder / INPUT, "protocol")["trained"].examples


def _use(result: ps.Measurement | ps.Resets | ps.Relation, case: int) -> None:
    """Tell, write and show a result that was loaded."""
    if not isinstance(result.verdict, str):
        raise AssertionError("the verdict is no text")
    result.to_json(indent=None)
    result._repr_html_()
    if case % MEASURED == 0:
        result.to_pandas()


def _run(folder: Path, case: int, changed: Collection[str]) -> None:
    """Ask a run for what stands in the files that were changed; each may be refused on its own."""
    run = ps.Run(folder / "run")
    asked: list[tuple[str, Callable[[], object]]] = [
        ("config.yaml", lambda: run.config),
        ("state.json", lambda: run.status),
        (".lock", lambda: run.status),
        ("environment.json", lambda: run.environments),
        ("metrics.csv", lambda: run.metrics),
        ("measurements", lambda: run.measured_layers),
        ("filters", lambda: [run.load_filters(epoch) for epoch in run.filter_epochs]),
        ("snapshots", lambda: [ps.measure(path, kinds="all") for path in run.snapshots.values()]),
    ]
    if case % MEASURED == 0:
        asked.append(("measurements", lambda: run.measurements))
    refused = None
    for about, ask in asked:
        if any(about in name for name in changed):
            try:
                ask()
            except PlanescopeError as exc:
                refused = exc
    if refused is not None:
        raise refused


def _idx(folder: Path, *_: object) -> None:
    datafiles.read_idx(folder / INPUT, dimensions=3)


def _mat(folder: Path, *_: object) -> None:
    datafiles.read_svhn([folder / INPUT])


def _cifar(folder: Path, *_: object) -> None:
    datafiles.read_cifar([folder / INPUT])


def preload() -> None:
    """Import what reading may import: what a file then has imported is too much."""
    for package in (checkpoints, encodings):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            # Of other systems.
            if not module.name.endswith(("mbcs", "oem")):
                importlib.import_module(module.name)
    # A result that begins as Parquet does is read as that.
    for name in (
        "ml_dtypes",
        "numpy.ma",
        "numpy.lib.stride_tricks",
        "pyarrow.parquet",
        "tflite",
        "yaml",
        "google_crc32c",
    ):
        importlib.import_module(name)
    # Python evaluates the annotations of a record of ours when the first is read.
    for kind in (ps.Measurement, ps.Resets, ps.Relation):
        _read_annotations(kind)


def _read_annotations(kind: Any) -> None:
    records._readers(kind)
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        # What is not compared is not stored: it holds arrays.
        part = hints[field.name] if field.compare else None
        for each in (part, *typing.get_args(part)):
            if dataclasses.is_dataclass(each):
                _read_annotations(each)


_CHECKPOINTS = (
    "safetensors", "torch-zip", "torch-stream", "torch-export", "pickled", "npz", "flax", "onnx",
    "keras", "hdf5", "datasets", "caffe", "sharded", "foreign",
    "tensorflow-graph", "tensorflow-checkpoint", "saved-model", "tflite", "tfjs",
)  # fmt: skip

TARGETS: dict[str, Read] = {
    **dict.fromkeys(_CHECKPOINTS, _checkpoint),
    "mappings": mappings,
    "pickle": _pickle,
    "config": _config,
    "study": _study,
    "measurement": _measurement,
    "resets": _resets,
    "relation": _relation,
    "progress": _progress,
    "run": _run,
    "state": trees.state,
    "environment": trees.environment,
    "network": trees.network,
    "study-record": trees.study_record,
    "links": trees.links,
    "idx": _idx,
    "mat": _mat,
    "cifar": _cifar,
}
