"""What is known of networks whose layers were reset: from runs, or from what was saved of any."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from planescope.criticality.definition import decide, difference_bounds, is_robust
from planescope.criticality.relation.record import RelatedLayer
from planescope.criticality.resets.record import FRESH, RAND, Accuracy, ResetCell, Resets, mean_loss
from planescope.criticality.scores import layer_scores
from planescope.files.errors import CheckpointError, UsageError
from planescope.files.results import read_saved
from planescope.hyperplanes.layer import Input, Layer
from planescope.measurement.measure import measure
from planescope.measurement.record import LayerMeasurement, Measurement
from planescope.measurement.source import find
from planescope.measurement.verdict import finding
from planescope.training.run import Run
from planescope.training.status import State
from planescope.training.tracker.history import History

# Suffixes of files that results are saved in.
_SAVED = (".json", ".parquet")
# The name that a caller gives the network's own start, as the guides do.
_START = "init"


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """A network whose layers were reset.

    Attributes
    ----------
    path, network : str
    layers : sequence of LayerMeasurement
        Those that were reset, in the order of the resets.
    resets : Resets
    snapshot : int or str
        What they were put back to.
    weights : mapping of str to Layer
        Those of a run; none of saved results, which hold no weights.
    inputs : mapping of str to Input
        What feeds some layers, where the measurement does not know.
    """

    path: str
    network: str
    layers: Sequence[LayerMeasurement]
    resets: Resets
    snapshot: int | str
    weights: Mapping[str, Layer] = field(default_factory=dict)
    inputs: Mapping[str, Input] = field(default_factory=dict)

    @property
    def is_fresh(self) -> bool:
        """Return whether layers were drawn anew, and not put back to where they started."""
        return self.snapshot in (FRESH, RAND)

    def cells(self, layer: str) -> tuple[ResetCell, ...]:
        """Return the cells of a layer: one, or one a draw."""
        return self.resets.at(layer, self.snapshot)

    @property
    def without_drops(self) -> str:
        """Say why nothing is known of what the layers cost; "" where it is."""
        cells = [cell for layer in self.layers for cell in self.cells(layer.name)]
        if cells and all(cell.relative_drop is not None for cell in cells):
            return ""
        if not cells:
            return "no layer of it was reset alone"
        if self.resets.metric is None:
            return "its layers were reset without labels; planescope predict --init tells then"
        return "its network is no better than chance"

    @property
    def without_loss(self) -> str:
        """Say why no layer can be called critical; "" where the resets have all it takes."""
        cells = [cell for layer in self.layers for cell in self.cells(layer.name)]
        if not any(cell.loss_low is None or cell.loss_high is None for cell in cells):
            return ""
        metric = self.resets.metric
        if self.resets.trained.low is None:
            return f"{metric} has no value an example, and so no interval; reset with one that has"
        if self.resets.chance is not None or metric == "accuracy":
            return "the resets are of an earlier version, without the loss; reset the layers again"
        return f"what {metric} is by chance is not known; reset the layers again with chance="

    def related(
        self, *, critical: float, robust: float, rng: np.random.Generator, with_alpha: bool
    ) -> Iterator[RelatedLayer]:
        """Yield the layers in order, each with its scores and what it costs."""
        last = max(1, len(self.layers) - 1)
        for i, layer in enumerate(self.layers):
            yield RelatedLayer(
                run=self.path,
                network=self.network,
                name=layer.name,
                kind=layer.kind,
                input=self.inputs.get(layer.name, layer.input),
                biased=layer.biased,
                tests=tuple(finding(layer).by),
                metric=self.resets.metric,
                trained=self.resets.trained.value,
                chance=self.resets.chance,
                **_cost(self.resets, self.cells(layer.name), critical=critical, robust=robust),
                scores=layer_scores(
                    layer,
                    self.weights.get(layer.name),
                    position=i / last,
                    random=float(rng.random()),
                    with_alpha=with_alpha,
                ),
            )


def _cost(
    resets: Resets, cells: Sequence[ResetCell], /, *, critical: float, robust: float
) -> dict[str, Any]:
    """Return what resetting a layer costs; of several draws the mean, and the widest interval."""
    drops = [_drop(resets, cell) for cell in cells]
    loss, low, high = mean_loss(cells)
    verdict = None if low is None or high is None else decide(low, high, bound=critical)
    is_beyond_noise = any(cell.significant for cell in cells)
    return {
        "relative_drop": _mean([drop for drop, _, _ in drops]),
        "relative_drop_low": _end([low for _, low, _ in drops], min),
        "relative_drop_high": _end([high for _, _, high in drops], max),
        "loss": loss,
        "loss_low": low,
        "loss_high": high,
        "critical": verdict,
        "robust": is_robust(verdict, loss, is_beyond_noise, bound=robust),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _end(values: Sequence[float | None], of: Callable[[list[float]], float]) -> float | None:
    known = [value for value in values if value is not None]
    return of(known) if len(known) == len(values) else None


def _drop(resets: Resets, cell: ResetCell) -> tuple[float | None, float | None, float | None]:
    """Return the relative drop and its 95 % interval, from those of both metrics.

    That both are of the same examples would make it narrower.
    """
    before, after = _ends(resets.trained), _ends(cell)
    if before is None or after is None or cell.relative_drop is None:
        return cell.relative_drop, None, None
    value = before[0]
    low, high = (end / value for end in difference_bounds(before, after))
    if resets.metric == "accuracy":
        low, high = max(low, (value - 1) / value), min(high, 1.0)
    return cell.relative_drop, low, high


def _ends(found: Accuracy) -> tuple[float, float, float] | None:
    if found.value is None or found.low is None or found.high is None:
        return None
    return found.value, found.low, found.high


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
    seen: set[Path] = set()
    for source in sources:
        path = source.path if isinstance(source, Run) else source
        if isinstance(path, (str, os.PathLike)):
            where = Path(path).resolve()
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
    if isinstance(source, Run) or not _is_saved(source):
        return Run.open(source, trust=trust)
    data = read_saved(source, "saved result")
    schema = str(data.get("schema")) if isinstance(data, dict) else "planescope.measurement"
    match schema.partition("/")[0]:
        case "planescope.measurement":
            return Measurement.load(source)
        case "planescope.resets":
            return Resets.load(source)
        case "planescope.track":
            return _last(History.load(source), source)
    raise CheckpointError(
        f"{source}: holds {schema!r:.80}; give runs whose layers were reset, or saved resets and "
        "the measurements of their networks"
    )


def _is_saved(source: Any) -> bool:
    path = Path(source)
    return path.suffix.lower() in _SAVED and path.is_file()


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


def _alone(resets: Resets, path: str, snapshot: int | str | None) -> Iterator[Any]:
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
