"""From a subject to its table of resets.

To import this is to import torch.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from planescope.criticality.resets.cells import (
    Cell,
    Plan,
    chosen_device,
    default_memory,
    evaluate,
    seconds_of_a_pass,
)
from planescope.criticality.resets.feed import feed_images, feed_loader, ran_out
from planescope.criticality.resets.identity import code_digest, value_digest
from planescope.criticality.resets.options import Forecast
from planescope.criticality.resets.prefix import trace
from planescope.criticality.resets.progress import Progress
from planescope.criticality.resets.record import FRESH, SYNTHETIC, ResetLayer, Resets
from planescope.criticality.resets.tell import Table
from planescope.criticality.resets.trained import (
    COUNTER,
    Subject,
    Target,
    digest_of,
    drawn,
    redrawn,
    stepped,
)
from planescope.criticality.sensitivity.inputs import InputOptions, synthetic
from planescope.data.load import Images
from planescope.data.loaders import Loader
from planescope.files.drafts import scratch
from planescope.files.errors import CheckpointError, RunError, UsageError, nearest
from planescope.files.versions import version
from planescope.hyperplanes.layer import Kind, Layer
from planescope.measurement.assemble import measure_layers
from planescope.measurement.choice import Choice, chosen_kinds, compiled, select
from planescope.measurement.record import Source
from planescope.measurement.source import Found
from planescope.networks.layers import find_layers
from planescope.networks.load import tensor_of
from planescope.networks.module import read_module
from planescope.networks.trace import trace_graph

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planescope.criticality.resets.answers import Judge
    from planescope.criticality.resets.feed import Feed
    from planescope.criticality.resets.options import ResetOptions
    from planescope.criticality.resets.prefix import Trace
    from planescope.data.load import Files
    from planescope.data.loaders import Unpack

    Data = Images | Files
    # (cells done, cells in all, name of what is reset)
    OnCell = Callable[[int, int, str], None]

# What belongs to a layer, behind its name; a weight may be stored in parts.
_OWN = re.compile(r"(weight|bias)(_(g|v|u|orig|mask))?|parametrizations\.(weight|bias)\..*")

_ON_PICTURES = (
    "inputs are synthetic: disagreement, the mean over sets of pictures, ranks layers and is no "
    "loss of accuracy"
)

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
            note = _Work(work.module, feed, judge, work.plan, progress, every).on(
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
    return Resets(
        source=subject.source,
        network=subject.network,
        data=feed.name,
        split=feed.split or options.split,
        trained=table.trained_value,
        layers=_layers(subject, work.layers),
        cells=found,
        tolerance=options.tolerance,
        metric=judge.name,
        chance=table.chance,
        preprocessing=feed.preprocessing,
        needed_steps={} if subject.path is None else table.needed_steps(found),
        notes=tuple(
            filter(
                None, (note, *left_out, *feed.notes, *table.notes(), *table.not_numbers(tallies))
            )
        ),
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Prepared:
    """All that is settled before a cell is evaluated."""

    layers: list[Layer]
    rows: dict[str, tuple[str, ...]]
    devices: list[torch.device]
    module: nn.Module
    feed: Feed
    judge: Judge
    digest: str
    plan: Plan


def _prepared(
    subject: Subject, options: ResetOptions, judge: Judge, unpack: Unpack | None
) -> _Prepared:
    layers = _chosen_layers(subject, options)
    rows = _rows(subject.module, layers, options)
    devices = [chosen_device(name, subject.module, stays=subject.stays) for name in options.devices]
    module = subject.module.to(devices[0])
    data = subject.data
    if isinstance(data, InputOptions):
        if judge.metric is not None or subject.keep is not None:
            raise UsageError(
                "a metric, and finished cells that are kept, need data; synthetic pictures have no "
                "labels"
            )
        feed, judge = _on_pictures(subject, module, data, judge, options)
        digest = ""
    elif isinstance(data, Loader):
        _check_loader(subject, data, options)
        feed, digest = feed_loader(data, module, judge, unpack, devices), ""
    else:
        data = _chosen_examples(data, options)
        feed = feed_images(data, module, judge, options, devices[0].type, subject.network)
        digest = _protocol(subject, data, judge, options, feed)
    return _Prepared(
        layers=layers,
        rows=rows,
        devices=devices,
        module=module,
        feed=feed,
        judge=judge,
        digest=digest,
        plan=_plan(feed, options, devices[0]),
    )


def _on_pictures(
    subject: Subject, module: nn.Module, told: InputOptions, judge: Judge, options: ResetOptions
) -> tuple[Feed, Judge]:
    """Return synthetic pictures that a network is sure of, and what there is to count on them."""
    given = synthetic(module, _found(subject).layers, told, judge.pick, options.memory)
    feed = dataclasses.replace(
        given.feed, split=SYNTHETIC, notes=[*given.notes, _ON_PICTURES], sets=given.sets
    )
    return feed, given.judge


def _cells(
    subject: Subject, options: ResetOptions, rows: Mapping[str, tuple[str, ...]], folder: Path
) -> tuple[dict[tuple[str, int | str, int | None], Cell], list[str]]:
    """Cells by their places; and, in sentences, what is left out."""
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
            why = "are not drawn by a reset_parameters" if target.snapshot == FRESH else (
                "are missing or of another shape there"
            )  # fmt: skip
            notes.append(f"{target.snapshot}: left out {', '.join(missing)}, which {why}")
        found += [(row, target) for row in fits]
    order = {row: i for i, row in enumerate(rows)}
    found.sort(key=lambda place: order[place[0]])
    return found, list(dict.fromkeys(notes))


def _chosen_layers(subject: Subject, options: ResetOptions) -> list[Layer]:
    found = _found(subject)
    names = [layer.name for layer in found.layers]
    default = "all" if options.layers else _usual_kinds(found.layers)
    kinds = chosen_kinds(options.kinds or default)
    pattern = None
    if options.layers:
        parts = [_pattern(part.strip(), names) for part in options.layers.split(",")]
        pattern = compiled("|".join(parts), "layers")
    chosen, _ = select(found, Choice(kinds=kinds, pattern=pattern))
    return chosen


def _found(subject: Subject) -> Found:
    layers, _ = find_layers(read_module(subject.module))
    source = Source(path=subject.source, format="module", bytes=None)
    return Found(source=source, layers=tuple(layers))


def _usual_kinds(layers: Iterable[Layer]) -> list[Kind]:
    """Return the convolutions as in the paper, or else what a fully connected network has."""
    return [Kind.CONV if any(layer.kind is Kind.CONV for layer in layers) else Kind.LINEAR]


def _pattern(part: str, names: Sequence[str]) -> str:
    """Return a name, or a regular expression that finds some."""
    if part in names:
        return f"^{re.escape(part)}$"
    pattern = compiled(part, "layers")
    if not part or pattern is None or not any(map(pattern.search, names)):
        raise UsageError(f"no layer is called {part!r}; {nearest(part, names)}")
    return f"(?:{part})"


def _rows(
    module: nn.Module, layers: Sequence[Layer], options: ResetOptions
) -> dict[str, tuple[str, ...]]:
    """Return what is reset, by name: each with the names of its parameters and buffers."""
    known = {layer.name: layer for layer in find_layers(read_module(module))[0]}
    rows = {layer.name: [layer] for layer in layers}
    for text in options.together:
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:
                raise UsageError(f"no layer is called {name!r}; {nearest(name, known)}")
        if len(set(names)) < 2:
            raise UsageError(f"--together {text}: give two layers or more, with commas between")
        rows[",".join(names)] = [known[name] for name in names]
    return {
        row: _tensor_names(module, several, with_norm=options.with_norm)
        for row, several in rows.items()
    }


def _tensor_names(
    module: nn.Module, layers: Sequence[Layer], *, with_norm: bool
) -> tuple[str, ...]:
    """Names of the parameters and buffers of layers; all names of those that have several."""
    held = module.state_dict(keep_vars=True)
    names: set[str] = set()
    for layer in layers:
        names.update(_own_names(layer.name, held))
        if with_norm and layer.norm is not None:
            norm = f"{layer.norm.name}."
            names.update(n for n in held if n.startswith(norm) and not n.endswith(COUNTER))
    own = {id(held[name]) for name in names}
    return tuple(name for name, tensor in held.items() if id(tensor) in own)


def _own_names(layer: str, held: Mapping[str, object]) -> list[str]:
    """Names of what a layer is made of: its weight and bias, or all that its module holds.

    Raises
    ------
    UsageError
        If it holds nothing that could be put back.
    """
    prefix = "" if layer == "weight" and layer in held else f"{layer}."  # "" where it is the module
    inner = [name for name in held if name.startswith(prefix)]
    usual = [name for name in inner if _OWN.fullmatch(name.removeprefix(prefix))]
    # A layer that a forward computes is called after the parameter that it computes it from.
    found = usual or inner or [name for name in held if name == layer.partition("@")[0]]
    if not found:
        raise UsageError(f"layer {layer!r} holds nothing that could be reset; leave it out")
    return found


def _chosen_examples(data: Data, options: ResetOptions) -> Data:
    """Return a subset, or a random order, where one was asked for."""
    total = len(data.labels)
    count = total if options.subset is None else options.subset
    if count > total:
        raise UsageError(
            f"--subset {count}: {data.name} has {total} examples in the {options.split} split"
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


def _protocol(subject: Subject, data: Data, judge: Judge, options: ResetOptions, feed: Feed) -> str:
    """Digest of all that decides what a tally must be, but for the cell's own weights."""
    if subject.keep is None:
        return ""
    examples = (
        digest_of({"images": data.images, "labels": data.labels, str(data.resize): None})
        if isinstance(data, Images)
        else digest_of({"labels": data.labels, **dict.fromkeys(map(_as_it_is, data.paths))})
    )
    try:
        graph, _ = trace_graph(subject.module)
    except Exception:  # forward is anybody's code, and does anything when it is given symbols
        graph = None
    settled = [
        version(), code_digest(subject.module, graph), value_digest((judge.metric, judge.pick)),
        subject.network, digest_of(subject.module.state_dict()), examples, data.mean, data.std,
        options.with_norm, options.devices, options.precision, options.tolerance, feed.batch,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(settled).encode()).hexdigest()


def _as_it_is(path: str | os.PathLike[str]) -> str:
    """Return a file with what changes when it is written."""
    about = Path(path).stat()
    return f"{os.fspath(path)} {about.st_size} {about.st_mtime_ns}"


@dataclasses.dataclass(frozen=True, eq=False)
class _Work:
    """All cells, to be shared out over devices."""

    module: nn.Module
    feed: Feed
    judge: Judge
    plan: Plan
    progress: Progress
    cells: Sequence[Cell]

    def on(self, devices: Sequence[torch.device], on_cell: OnCell | None) -> str:
        """Evaluate the cells; a note, where there is something to say."""
        stop, lock = threading.Event(), threading.Lock()

        def tell(name: str) -> None:
            if on_cell is not None:
                seen = sum(self.progress[cell.key].examples for cell in self.cells)
                total = self.plan.examples or seen + 1  # where nobody knows: none is done
                with lock:
                    on_cell(seen // total, len(self.cells), name)

        # Every network is traced before any is run: a trace bears no other thread beside it.
        copies = [self.module, *(deepcopy(self.module) for _ in devices[1:])]
        ready = [_Ready.on(device, own) for device, own in zip(devices, copies, strict=True)]
        if len(devices) == 1:
            return self._share(self.cells, ready[0], tell, stop)
        shares = [self.cells[i :: len(devices)] for i in range(len(devices))]
        with ThreadPoolExecutor(len(devices)) as pool:
            try:
                done = [
                    pool.submit(self._share, share, one, tell, stop)
                    for share, one in zip(shares, ready, strict=True)
                ]
                return next(filter(None, [future.result() for future in done]), "")
            finally:
                stop.set()

    def _share(
        self,
        cells: Sequence[Cell],
        ready: _Ready,
        tell: Callable[[str], None],
        stop: threading.Event,
    ) -> str:
        if not cells:
            return ""
        return evaluate(
            ready.module,
            ready.trace,
            self.feed.on(ready.device),
            cells,
            self.plan,
            self.progress,
            self.judge,
            device=ready.device,
            on_cell=tell,
            stop=stop,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class _Ready:
    """A network on its device, traced."""

    device: torch.device
    module: nn.Module
    trace: Trace

    @classmethod
    def on(cls, device: torch.device, module: nn.Module) -> _Ready:
        module = module.to(device)
        return cls(device, module, trace(module))


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
