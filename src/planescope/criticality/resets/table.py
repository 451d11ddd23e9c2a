"""From a subject to its table of resets.

To import this is to import torch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from planescope.criticality.options import InputOptions
from planescope.criticality.resets.cost import Forecast
from planescope.criticality.resets.draws import drawn, redrawn, stepped
from planescope.criticality.resets.engine.answers import Judge
from planescope.criticality.resets.engine.cells import Plan
from planescope.criticality.resets.engine.devices import (
    SIGNIFICANT_BITS,
    chosen_device,
    chosen_precision,
    computing_in,
    default_memory,
    seconds_of_a_pass,
)
from planescope.criticality.resets.engine.feed import feed_images, feed_loader
from planescope.criticality.resets.engine.identity import protocol_digest
from planescope.criticality.resets.engine.progress import Progress
from planescope.criticality.resets.engine.sharing import Work
from planescope.criticality.resets.engine.tensors import Cell
from planescope.criticality.resets.layers import chosen_layers, found_layers, rows_of
from planescope.criticality.resets.record import FRESH, SYNTHETIC, ResetLayer, Resets
from planescope.criticality.resets.targets import Target
from planescope.criticality.resets.tell import Table, untouched
from planescope.criticality.sensitivity.inputs.pictures import synthetic
from planescope.data.load import Images
from planescope.data.loaders import Loader
from planescope.files.drafts import scratch
from planescope.files.errors import CheckpointError, RunError, UsageError, counted
from planescope.hyperplanes.layer import Layer
from planescope.measurement.assemble import measure_layers
from planescope.measurement.record import Source
from planescope.networks.answer import ran_out
from planescope.networks.load import tensor_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from planescope.criticality.options import ResetOptions
    from planescope.criticality.resets.engine.feed import Feed
    from planescope.criticality.resets.trained import Subject
    from planescope.data.load import Files
    from planescope.data.roles import Unpack

    Data = Images | Files
    OnCell = Callable[[int, int, str], None]


_ON_PICTURES = (
    "inputs are synthetic: disagreement, the mean over sets of pictures, ranks layers and is no "
    "loss of accuracy"
)

# More names of what only a start has are counted.
_NAMED = 10
# Where the whole network is evaluated as it was trained.
TRAINED = "the trained network"


def reset(
    subject: Subject,
    options: ResetOptions,
    judge: Judge,
    on_cell: OnCell | None = None,
    *,
    unpack: Unpack | None = None,
    chance: float | None = None,
) -> Resets:
    """Evaluate all cells; what was finished before is taken from the subject's file.

    Raises
    ------
    UsageError, CheckpointError, NoLayersError, OutputError
        As `planescope.reset`.
    RunError
        If memory ran out.
    """
    work = _prepared(subject, options, judge, unpack)
    judge = work.judge
    with scratch() as folder:
        feed = work.feed
        cells, left_out = _cells(subject, options, work.rows, folder)
        trained = Cell(key=TRAINED, layer=TRAINED, names=(), read=lambda _: {}, bytes=0)
        progress = Progress(subject.keep, work.digest)
        every = (trained, *cells.values())
        try:
            note = Work(work.module, feed, judge, work.plan, progress, every).on(
                work.devices, on_cell
            )
        except (RuntimeError, MemoryError) as exc:
            if not ran_out(exc):
                raise
            raise RunError("memory ran out; give a smaller --memory") from exc
        finally:
            progress.save(now=True)
    table = Table(judge, options, progress[TRAINED], feed.examples, chance, feed.sets)
    tallies = {place: progress[cell.key] for place, cell in cells.items()}
    found = table.cells(tallies)
    notes = (
        note, *subject.notes, *work.groups, *left_out, untouched(found), *feed.notes,
        _rounding(work.plan.precision), *judge.notes, *table.notes(),
        *table.not_numbers(tallies),
    )  # fmt: skip
    return Resets(
        source=subject.source,
        network=subject.network,
        data=feed.name,
        split=feed.split or options.split,
        trained=table.trained_value,
        layers=_layers(subject, work.layers),
        cells=found,
        tolerance=options.tolerance,
        precision=work.plan.precision,
        metric=judge.name,
        chance=table.chance,
        preprocessing=feed.preprocessing,
        needed_steps={} if subject.path is None else table.needed_steps(found),
        positions=table.positions,
        notes=tuple(filter(None, notes)),
    )


def _rounding(precision: str) -> str:
    """Say what a precision does to the answers; "" where nothing is rounded to fewer bits."""
    bits = SIGNIFICANT_BITS.get(precision)
    return "" if bits is None else (
        f"computed in {precision}, the trained network too: products are rounded to {bits} bits, "
        "so that answers on the edge may be others than in 32-true"
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Prepared:
    """All that is settled before a cell is evaluated."""

    layers: list[Layer]
    rows: dict[str, tuple[str, ...]]
    groups: list[str]
    devices: list[torch.device]
    module: nn.Module
    feed: Feed
    judge: Judge
    digest: str
    plan: Plan


def _prepared(
    subject: Subject, options: ResetOptions, judge: Judge, unpack: Unpack | None
) -> _Prepared:
    devices = [chosen_device(name, subject.module, stays=subject.stays) for name in options.devices]
    module = subject.module.to(devices[0])
    found = found_layers(subject)
    layers = chosen_layers(found, options)
    rows, groups = rows_of(subject.module, found.layers, layers, options)
    groups += found.notes
    options = dataclasses.replace(options, precision=chosen_precision(options.precision, devices))
    data = subject.data
    if isinstance(data, InputOptions):
        if judge.metric is not None or subject.keep is not None:
            raise UsageError(
                "a metric, and finished cells that are kept, need data; synthetic pictures have no "
                "labels"
            )
        feed, judge = _on_pictures(module, found.layers, data, judge, options)
        digest = ""
    elif isinstance(data, Loader):
        _check_loader(subject, data, options)
        feed, digest = feed_loader(data, module, judge, unpack, devices), ""
    else:
        data = _chosen_examples(data, options)
        feed = feed_images(data, module, judge, options, devices[0].type, subject.network)
        digest = protocol_digest(subject, data, judge, options, feed)
    judge.heed(module, subject.network)
    return _Prepared(
        layers=layers,
        rows=rows,
        groups=groups,
        devices=devices,
        module=module,
        feed=feed,
        judge=judge,
        digest=digest,
        plan=_plan(feed, options, devices[0]),
    )


def _on_pictures(
    module: nn.Module,
    layers: Sequence[Layer],
    told: InputOptions,
    judge: Judge,
    options: ResetOptions,
) -> tuple[Feed, Judge]:
    """Return synthetic pictures that a network is sure of, and what there is to count on them."""
    judge = Judge(pick=judge.pick, task=judge.task)
    given = synthetic(module, layers, told, judge, options.memory)
    feed = dataclasses.replace(
        given.feed, split=SYNTHETIC, notes=[*given.notes, _ON_PICTURES], sets=given.sets
    )
    return feed, judge


def _cells(
    subject: Subject, options: ResetOptions, rows: Mapping[str, tuple[str, ...]], folder: Path
) -> tuple[dict[tuple[str, int | str, int | None], Cell], list[str]]:
    """Return the cells by their places; and, in sentences, what is left out."""
    names = {name for own in rows.values() for name in own}
    targets = (
        *stepped(subject), *drawn(subject, options, folder),
        *redrawn(subject, names, options, folder),
    )  # fmt: skip
    places, left_out = _places(rows, targets)
    cells = {
        (row, target.snapshot, target.draw): _cell(subject, row, rows[row], target)
        for row, target in places
    }
    return cells, left_out


def forecast(
    subject: Subject, options: ResetOptions, judge: Judge, *, unpack: Unpack | None = None
) -> Forecast:
    """Tell how many cells `reset` would evaluate, and how long the plain way would take.

    Raises
    ------
    UsageError, CheckpointError, NoLayersError, OutputError
        As `planescope.reset`.
    """
    work = _prepared(subject, options, judge, unpack)
    with scratch() as folder:
        cells, left_out = _cells(subject, options, work.rows, folder)
    first = next(iter(work.feed.on(work.devices[0])))
    with computing_in(work.plan.precision, work.devices[0]):
        seconds = seconds_of_a_pass(work.module, first)
    examples = work.feed.examples
    passes = None if examples is None else examples / first.size * seconds
    return Forecast(
        layers=len(work.rows),
        cells=len(cells),
        examples=examples,
        pass_seconds=passes,
        at_most_seconds=None if passes is None else passes * (1 + len(cells)) / len(work.devices),
        left_out=tuple(left_out),
    )


def _check_loader(subject: Subject, data: Loader, options: ResetOptions) -> None:
    """Refuse what only examples that are known, in a known order, allow."""
    for given, option in ((options.tolerance, "a tolerance"), (subject.keep, "keep (--out)")):
        if given is not None:
            raise UsageError(
                f"{option} wants a data set of planescope's by name, whose examples are known; "
                f"{data.name} is taken as it comes"
            )


def _places(
    rows: Mapping[str, tuple[str, ...]], targets: Sequence[Target]
) -> tuple[list[tuple[str, Target]], list[str]]:
    """Return the rows and what they are put back to; and, in sentences, what is left out.

    Raises
    ------
    CheckpointError
        If nothing of some weights fits.
    """
    found, notes = [], []
    for target in targets:
        fits = [row for row, names in rows.items() if target.tensors.keys() >= set(names)]
        if not fits:
            raise CheckpointError(target.odd[0] if target.odd else f"{target.snapshot}: is empty")
        missing = [row for row in rows if row not in fits]
        if missing:
            why = "not drawn by a reset_parameters" if target.snapshot == FRESH else (
                "missing or of another shape there"
            )  # fmt: skip
            verb = "is" if len(missing) == 1 else "are"
            notes.append(f"{target.snapshot}: left out {', '.join(missing)}, which {verb} {why}")
        if more := target.beyond:
            shown = ", ".join(more[:_NAMED])
            shown += f" and {len(more) - _NAMED} more" * (len(more) > _NAMED)
            notes.append(
                f"{target.snapshot}: left out {shown}, which the trained network has not; is it of "
                "the same network?"
            )
        found += [(row, target) for row in fits]
    order = {row: i for i, row in enumerate(rows)}
    found.sort(key=lambda place: order[place[0]])
    return found, list(dict.fromkeys(notes))


def _chosen_examples(data: Data, options: ResetOptions) -> Data:
    """Return a subset, or a random order, where one was asked for."""
    total = len(data.labels)
    count = total if options.subset is None else options.subset
    if count > total:
        raise UsageError(
            f"--subset {count}: {data.name} has {counted(total, 'example')} in the "
            f"{options.split} split"
        )
    if options.subset is None and options.tolerance is None:
        return data
    order = torch.randperm(total, generator=torch.Generator().manual_seed(options.seed))[:count]
    return data.take(order if options.tolerance is not None else order.sort().values)


def _plan(feed: Feed, options: ResetOptions, device: torch.device) -> Plan:
    return Plan(
        examples=feed.examples,
        batch=feed.batch,
        memory=options.memory or default_memory(device),
        precision=options.precision,
        tolerance=options.tolerance,
    )


def _cell(subject: Subject, row: str, names: tuple[str, ...], target: Target) -> Cell:
    own = subject.module.state_dict()
    digest = "" if subject.keep is None else target.digest()
    return Cell(
        key=json.dumps([row, target.snapshot, target.draw, digest]),
        layer=row,
        names=names,
        read=functools.partial(_read, {name: own[name].dtype for name in names}, target),
        bytes=sum(own[name].nbytes for name in names),
    )


def _read(
    dtypes: Mapping[str, torch.dtype], target: Target, device: torch.device
) -> dict[str, torch.Tensor]:
    """Return the tensors as the network would hold them once loaded."""
    return {
        name: tensor_of(target.tensors[name].read()).to(device, dtype)
        for name, dtype in dtypes.items()
    }


def _layers(subject: Subject, layers: Sequence[Layer]) -> tuple[ResetLayer, ...]:
    source = Source(path=subject.source, format="module", bytes=None)
    return tuple(
        ResetLayer(
            name=layer.name,
            kind=layer.kind,
            stage=layer.stage,
            negative_mass=layer.negative_mass,
            agreement=layer.agreement,
            biased=layer.biased,
        )
        for layer in measure_layers(layers, source=source).layers
    )
