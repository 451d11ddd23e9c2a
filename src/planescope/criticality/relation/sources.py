"""From runs, or from what was saved of any network, to what is known of its resets."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from planescope.criticality.relation.evidence import Evidence
from planescope.criticality.resets.record import ResetLayer, Resets
from planescope.files.errors import CheckpointError, UsageError
from planescope.files.folders import place_of
from planescope.files.results.saved import found_saved
from planescope.hyperplanes.layer import Input
from planescope.measurement.measure import measure
from planescope.measurement.record import Measurement
from planescope.measurement.source import find
from planescope.training.folder.status import State
from planescope.training.run import Run
from planescope.training.tracker.history import History

# The name that a caller gives the network's own start, as the guides do.
_START = "init"


def gather(
    sources: Iterable[Any],
    /,
    *,
    snapshot: int | str | None = None,
    trust: bool | str | Collection[str] = False,
) -> list[Run | Evidence]:
    """Find runs, and pair saved resets with the measurements of their networks.

    Runs are opened, and read when their turn comes: `of_run`.

    Raises
    ------
    CheckpointError, UsageError
        As `planescope.relate`.
    """
    found: list[Run | Evidence] = []
    measured: list[tuple[str, Measurement]] = []
    resets: list[tuple[str, Resets]] = []
    seen: set[str] = set()
    for source in sources:
        path = source.path if isinstance(source, Run) else source
        if isinstance(path, (str, os.PathLike)):
            where = place_of(path)
            if where in seen:
                raise UsageError(f"{path}: is given twice; a run counts once")
            seen.add(where)
        one = _opened(source, trust)
        match one:
            case Run():
                found.append(one)
            case Measurement():
                measured.append((_named(source, one.source.path), one))
            case Resets():
                resets.append((_named(source, one.source), one))
    return found + _paired(resets, measured, snapshot)


def _named(source: Any, name: str) -> str:
    return str(source) if isinstance(source, (str, os.PathLike)) else name


def _opened(source: Any, trust: bool | str | Collection[str]) -> Run | Measurement | Resets:
    if isinstance(source, (Measurement, Resets)):
        return source
    history = source if isinstance(source, History) else getattr(source, "history", None)
    if isinstance(history, History):
        return _last(history, "the Tracker")
    saved = None if isinstance(source, Run) else found_saved(source)
    if saved is None:
        return Run.open(source, trust=trust)
    match (saved.schema or "planescope.measurement").partition("/")[0]:
        case "planescope.measurement":
            return Measurement.of_saved(saved)
        case "planescope.resets":
            return Resets.of_saved(saved)
        case "planescope.track":
            return _last(History.of_saved(saved), source)
    raise CheckpointError(
        f"{source}: holds {saved.schema!r:.80}; give runs whose layers were reset, or saved resets "
        "and the measurements of their networks"
    )


def _last(history: History, source: Any) -> Measurement:
    if not history.records:
        raise UsageError(f"{source}: has no update yet; train with it first")
    return history.records[-1].read()


def _paired(
    resets: Sequence[tuple[str, Resets]],
    measured: Sequence[tuple[str, Measurement]],
    snapshot: int | str | None,
) -> list[Run | Evidence]:
    found: list[Run | Evidence] = []
    used: dict[int, str] = {}
    names: dict[str, int] = {}
    for path, one in resets:
        fitting = [i for i, (_, each) in enumerate(measured) if _fits(each, one)]
        if not fitting:
            raise UsageError(_without_measurement(path, one, measured))
        chosen = next((i for i in fitting if i not in used), None)
        if chosen is None:
            raise UsageError(
                f"{path} and {used[fitting[0]]} are resets of one network, which counts once; "
                "give one of them"
            )
        used[chosen] = path
        names[path] = names.get(path, 0) + 1
        rows = {layer.name: layer for layer in measured[chosen][1].layers}
        found.append(
            Evidence(
                path=path if names[path] == 1 else f"{path} ({names[path]})",
                network=one.network,
                layers=[rows[layer.name] for layer in _alone(one, path, snapshot)],
                resets=one,
                snapshot=_start(one, path, snapshot),
            )
        )
    left = [path for i, (path, _) in enumerate(measured) if i not in used]
    if left:
        raise UsageError(
            f"{left[0]}: no resets that were given are of this network; give those that "
            "planescope reset --out wrote, or leave it out"
        )
    return found


def _fits(measured: Measurement, resets: Resets) -> bool:
    """Tell whether a measurement is of the network that was reset: its layers, their masses."""
    masses = {layer.name: layer.negative_mass for layer in measured.layers}
    return all(
        layer.name in masses and masses[layer.name] == layer.negative_mass
        for layer in resets.layers
    )


def _without_measurement(
    path: str, resets: Resets, measured: Sequence[tuple[str, Measurement]]
) -> str:
    wanted = (
        f"{path}: needs the measurement of the same network, with --init for its distances: "
        "planescope measure FILE --init FILE --out FILE.json"
    )
    if not measured:
        return wanted
    name, nearest = measured[0]
    there = {layer.name for layer in nearest.layers}
    lacking = [layer.name for layer in resets.layers if layer.name not in there]
    if lacking:
        return (
            f"{wanted}; {name} has no layer {lacking[0]} (it may have been measured without its "
            "kind: --kinds all)"
        )
    return f"{wanted}; the masses in {name} are others than the resets were made with"


def _alone(resets: Resets, path: str, snapshot: int | str | None) -> Iterator[ResetLayer]:
    """Yield the layers that were reset alone."""
    start = _start(resets, path, snapshot)
    return (layer for layer in resets.layers if resets.at(layer.name, start))


def _start(resets: Resets, path: str, snapshot: int | str | None) -> int | str:
    """Return what the layers were put back to: what was asked for, or their start."""
    there = resets.snapshots
    if snapshot is not None:
        for each in there:
            if str(each) == str(snapshot):
                return each
        raise UsageError(
            f"{path}: its layers were not put back to {snapshot}; there are "
            f"{', '.join(map(str, there))}"
        )
    for each in (0, _START):
        if each in there:
            return each
    if len(there) == 1:
        return there[0]
    raise UsageError(
        f"{path}: its layers were put back to {', '.join(map(str, there))}; say to which the "
        "relation is about with --snapshot"
    )


def of_run(run: Run, /, *, unfinished: bool) -> Evidence:
    """Read a run whose layers were put back to epoch 0.

    Raises
    ------
    CheckpointError
        If files are missing or damaged.
    UsageError
        If it is not finished, or was not reset to epoch 0 after its last epoch.
    """
    resets = _resets(run, unfinished=unfinished)
    names = [layer.name for layer in resets.layers if resets.at(layer.name, 0)]
    files = run.snapshots
    trained, structure = files[max(files)], run.structure
    exactly = f"^(?:{'|'.join(map(re.escape, names))})$"
    measured = measure(trained, network=structure, kinds="all", layers=exactly, init=files[0])
    rows = {layer.name: layer for layer in measured.layers}
    for reset in resets.layers:
        if reset.name in names and rows[reset.name].negative_mass != reset.negative_mass:
            raise UsageError(
                f"{run.path}: its layers were reset before it was trained further; run planescope "
                f"reset {run.path} again"
            )
    return Evidence(
        path=str(run.path),
        network=run.about.network,
        layers=[rows[name] for name in names],
        resets=resets,
        snapshot=0,
        weights={layer.name: layer for layer in find(trained, network=structure).layers},
        inputs=_recorded_inputs(run) if run.unknown else {},
    )


def _resets(run: Run, *, unfinished: bool) -> Resets:
    """Return the resets of a run, to epoch 0 too."""
    state = run.status.state
    if state is not State.FINISHED and not unfinished:
        raise UsageError(
            f"{run.path}: the run is not finished but {state}; let it finish, or take it as it is "
            "with --unfinished"
        )
    if run.fixed:
        raise UsageError(f"{run.path}: {run.fixed}")
    if not run.resets.is_file():
        raise UsageError(
            f"{run.path}: its layers were not reset yet; run planescope reset {run.path}"
        )
    resets = Resets.load(run.resets)
    if 0 not in resets.snapshots or 0 not in run.snapshots:
        raise UsageError(
            f"{run.path}: its layers were not put back to epoch 0, which the relation is about; "
            f"run planescope reset {run.path} --snapshot 0"
        )
    return resets


def _recorded_inputs(run: Run) -> dict[str, Input]:
    """Return the input of each layer, from the run's own measurements."""
    layers = list(run.measured_layers.values())[-1]
    inputs = {layer.name: layer.input for layer in layers}
    reset = Resets.load(run.resets).layers
    if any(inputs.get(layer.name, Input.UNKNOWN) is Input.UNKNOWN for layer in reset):
        raise UsageError(run.unknown)
    return inputs
