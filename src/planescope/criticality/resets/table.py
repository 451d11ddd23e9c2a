"""From a subject to its table of resets.

To import this is to import torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import random
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from planescope.criticality.confidence import (
    accuracy_bounds,
    change_p_value,
    sequential_change_p_value,
    wilson,
)
from planescope.criticality.resets.cells import Cell, Plan, batch_size, default_memory, evaluate
from planescope.criticality.resets.identity import code_digest
from planescope.criticality.resets.prefix import trace
from planescope.criticality.resets.progress import Progress, Tally
from planescope.criticality.resets.record import LEVEL, Accuracy, ResetCell, ResetLayer, Resets
from planescope.criticality.resets.trained import COUNTER, Subject, Target, digest_of, drawn
from planescope.data.batches import batches
from planescope.data.load import Images
from planescope.files.drafts import scratch
from planescope.files.errors import RunError, UsageError, nearest, own_place
from planescope.files.versions import version
from planescope.hyperplanes.chance import benjamini_hochberg
from planescope.hyperplanes.layer import Kind, Layer
from planescope.measurement.assemble import measure_layers
from planescope.measurement.measure import Found, chosen_kinds, compiled, select
from planescope.measurement.record import Source
from planescope.networks.layers import find_layers
from planescope.networks.load import tensor_of
from planescope.networks.module import read_module
from planescope.networks.trace import trace_graph

if TYPE_CHECKING:
    from collections.abc import Mapping

    from planescope.criticality.resets.options import ResetOptions
    from planescope.criticality.resets.prefix import Trace
    from planescope.data.load import Files

    Data = Images | Files
    # (cells done, cells in all, name of what is reset)
    OnCell = Callable[[int, int, str], None]

# What belongs to a layer, behind its name; a weight may be stored in parts.
_OWN = re.compile(r"(weight|bias)(_(g|v|u|orig|mask))?|parametrizations\.(weight|bias)\..*")

# Where the whole network is evaluated as it was trained.
TRAINED = "the trained network"


def reset(subject: Subject, options: ResetOptions, on_cell: OnCell | None = None) -> Resets:
    """Evaluate all cells; what was finished before is taken from the subject's file.

    Random numbers of the caller stay as they are, whatever the network draws.

    Raises
    ------
    UsageError, CheckpointError, NoLayersError, OutputError
        As `planescope.reset_run`.
    RunError
        If memory ran out.
    """
    devices = [_device(name) for name in options.devices]
    with _drawing_apart([device for device in devices if device.type == "cuda"]):
        return _reset(subject, options, devices, on_cell)


def _reset(
    subject: Subject,
    options: ResetOptions,
    devices: Sequence[torch.device],
    on_cell: OnCell | None,
) -> Resets:
    layers = _chosen_layers(subject, options)
    rows = _rows(subject.module, layers, options)
    data = _chosen_examples(subject.data, options)
    _check_fit(subject.module, data, subject.network)
    plan = _plan(subject.module, data, options, devices[0])
    with scratch() as folder:
        targets = (*subject.targets, *drawn(subject, options, folder))
        cells = {
            (row, target.snapshot, target.draw): _cell(subject, row, names, target)
            for row, names in rows.items()
            for target in targets
        }
        trained = Cell(key=TRAINED, layer=TRAINED, names=(), read=lambda _: {}, bytes=0)
        progress = Progress(subject.keep, _protocol(subject, data, options, plan))
        work = _Work(subject.module, data, plan, progress, (trained, *cells.values()))
        try:
            note = work.on(devices, on_cell)
        except (RuntimeError, MemoryError) as exc:
            if not _ran_out(exc):
                raise
            raise RunError("memory ran out; give a smaller --memory") from exc
        finally:
            progress.save(now=True)
    table = _Table(data, options, progress[TRAINED])
    return Resets(
        source=subject.source,
        network=subject.network,
        data=data.name,
        split=options.split,
        trained=table.accuracy(progress[TRAINED], exact=True),
        layers=_layers(subject, layers),
        cells=table.cells({place: progress[cell.key] for place, cell in cells.items()}),
        tolerance=options.tolerance,
        notes=tuple(filter(None, (note, *table.notes(), _not_numbers(progress, cells)))),
    )


@contextlib.contextmanager
def _drawing_apart(devices: Sequence[torch.device]) -> Iterator[None]:
    """Put all random states back: a network may draw in evaluation too."""
    import numpy as np

    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the caller's
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


def _not_numbers(progress: Progress, cells: Mapping[Place, Cell]) -> str:
    """Say where outputs were not numbers; "" where all were."""
    whole = progress[TRAINED].none
    few = {place: progress[cell.key].none for place, cell in cells.items()}
    some = [f"{layer} at {snapshot}" for (layer, snapshot, _), count in few.items() if count]
    if not some and not whole:
        return ""
    where = [*(["the trained network"] if whole else []), *some]
    more = f" and {len(where) - 3} more" if len(where) > 3 else ""
    return f"outputs that are not numbers count as wrong answers: of {', '.join(where[:3])}{more}"


def _ran_out(exc: Exception) -> bool:
    """Whether memory did; torch has no class for the host's."""
    of_memory = isinstance(exc, MemoryError | torch.OutOfMemoryError)
    return of_memory or "can't allocate memory" in str(exc)


def _chosen_layers(subject: Subject, options: ResetOptions) -> list[Layer]:
    found = _found(subject)
    names = [layer.name for layer in found.layers]
    default = "all" if options.layers else _usual_kinds(found.layers)
    kinds = chosen_kinds(options.kinds or default)
    pattern = None
    if options.layers:
        parts = [_pattern(part.strip(), names) for part in options.layers.split(",")]
        pattern = compiled("|".join(parts), "layers")
    chosen, _ = select(found, kinds, pattern)
    return chosen


def _found(subject: Subject) -> Found:
    layers, _ = find_layers(read_module(subject.module))
    source = Source(path=subject.source, format="module", bytes=None)
    return Found(source=source, layers=tuple(layers))


def _usual_kinds(layers: Iterable[Layer]) -> list[Kind]:
    """Convolutions as in the paper, or else what a fully connected network has."""
    return [Kind.CONV if any(layer.kind is Kind.CONV for layer in layers) else Kind.LINEAR]


def _pattern(part: str, names: Sequence[str]) -> str:
    """A name, or a regular expression that finds some."""
    if part in names:
        return f"^{re.escape(part)}$"
    pattern = compiled(part, "layers")
    if not part or pattern is None or not any(map(pattern.search, names)):
        raise UsageError(f"no layer is called {part!r}; {nearest(part, names)}")
    return f"(?:{part})"


def _rows(
    module: nn.Module, layers: Sequence[Layer], options: ResetOptions
) -> dict[str, tuple[str, ...]]:
    """What is reset, by name: each with the names of its parameters and buffers."""
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
    """A subset, or a random order, where one was asked for."""
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


def _check_fit(module: nn.Module, data: Data, network: str) -> None:
    """Send an empty image through the network."""
    shape, classes = data.input_shape, len(data.classes)
    images = f"{data.name} has images of {'×'.join(map(str, shape))}"
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype is not torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UsageError(
                f"{network} holds {name} as {kind}, and resets are evaluated in float32; give "
                "module.float()"
            )
    try:
        with torch.inference_mode():
            out = module(torch.zeros(1, *shape))
    except Exception as exc:  # forward is anybody's code
        if _ran_out(exc):
            raise
        reason = str(exc).partition("\n")[0]
        if place := own_place(exc):
            raise UsageError(
                f"{network} fails in code of its own, {place}: {type(exc).__name__}: {reason}; "
                f"{images}"
            ) from exc
        raise UsageError(f"{images}, which {network} does not take ({reason})") from exc
    found = tuple(getattr(out, "shape", ()))
    if found != (1, classes):
        raise UsageError(
            f"{data.name} has {classes} classes, but {network} gives an output of shape {found} "
            f"for an image, not (1, {classes}); give the data that it was trained on"
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as exc:
        reason = str(exc).partition("\n")[0]
        raise UsageError(f"device {name!r} cannot be used ({reason}); cpu always can") from exc
    return device


def _plan(module: nn.Module, data: Data, options: ResetOptions, device: torch.device) -> Plan:
    example = torch.zeros(1, *data.input_shape)
    return Plan(
        examples=len(data.labels),
        batch=batch_size(module, example, options.memory, device.type),
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
    """Tensors as the network would hold them once loaded."""
    return {
        name: tensor_of(target.tensors[name].read()).to(device, dtype)
        for name, dtype in dtypes.items()
    }


def _protocol(subject: Subject, data: Data, options: ResetOptions, plan: Plan) -> str:
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
        version(), code_digest(subject.module, graph), subject.network,
        digest_of(subject.module.state_dict()), examples, data.mean, data.std,
        options.with_norm, options.devices, options.precision, options.tolerance, plan.batch,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(settled).encode()).hexdigest()


def _as_it_is(path: str | os.PathLike[str]) -> str:
    """A file with what changes when it is written."""
    about = Path(path).stat()
    return f"{os.fspath(path)} {about.st_size} {about.st_mtime_ns}"


@dataclasses.dataclass(frozen=True, eq=False)
class _Work:
    """All cells, to be shared out over devices."""

    module: nn.Module
    data: Data
    plan: Plan
    progress: Progress
    cells: Sequence[Cell]

    def on(self, devices: Sequence[torch.device], on_cell: OnCell | None) -> str:
        """Evaluate the cells; a note, where there is something to say."""
        stop, lock = threading.Event(), threading.Lock()

        def tell(name: str) -> None:
            if on_cell is not None:
                seen = sum(self.progress[cell.key].examples for cell in self.cells)
                with lock:
                    on_cell(seen // self.plan.examples, len(self.cells), name)

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
            batches(self.data, batch_size=self.plan.batch, device=ready.device),
            cells,
            self.plan,
            self.progress,
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


Place = tuple[str, int | str, int | None]


@dataclasses.dataclass(frozen=True, eq=False)
class _Table:
    """What tallies mean."""

    data: Data
    options: ResetOptions
    trained: Tally

    @property
    def _chance(self) -> float:
        """Accuracy of the best constant answer."""
        return int(self.data.labels.bincount().max()) / len(self.data.labels)

    @property
    def _learned(self) -> bool:
        """Whether the trained network can be told from a constant answer."""
        low, _ = wilson(self.trained.right.count(1), self.trained.examples)
        return low > self._chance

    def notes(self) -> Iterable[str]:
        """What a reader should know."""
        right, total = self.trained.right.count(1), self.trained.examples
        if not self._learned:
            yield (
                f"no relative drops: the trained network's accuracy, {right} of {total}, is no "
                f"better than chance (the most frequent class gives {self._chance:.1%})"
            )
        if self.options.tolerance is not None:
            yield (
                f"each cell was ended once its accuracy on all {total} examples was known to "
                f"±{self.options.tolerance:g}, with 95 % confidence at every moment"
            )

    def accuracy(self, tally: Tally, *, exact: bool) -> Accuracy:
        """Shares and interval; `exact` where all examples were looked at for certain."""
        seen, right = tally.examples, tally.right.count(1)
        bounds = (
            wilson(right, seen) if exact else accuracy_bounds(right, seen, len(self.data.labels))
        )
        loss = tally.loss / seen
        return Accuracy(
            top1=right / seen,
            top5=tally.top5 / seen,
            loss=loss if math.isfinite(loss) else None,
            examples=seen,
            low=bounds[0],
            high=bounds[1],
        )

    def cells(self, tallies: Mapping[Place, Tally]) -> tuple[ResetCell, ...]:
        """Cells of the result, with p-values corrected over all of them."""
        exact = self.options.tolerance is None
        test = change_p_value if exact else sequential_change_p_value
        before = self.trained.flags
        p_values = [test(before[: t.examples], t.flags) for t in tallies.values()]
        corrected = benjamini_hochberg(p_values)
        return tuple(
            self._cell(place, self.accuracy(tally, exact=exact), p, q)
            for (place, tally), p, q in zip(tallies.items(), p_values, corrected, strict=True)
        )

    def _cell(self, place: Place, found: Accuracy, p: float, q: float | None) -> ResetCell:
        trained = self.trained.right.count(1) / self.trained.examples
        return ResetCell(
            **vars(found),
            layer=place[0],
            snapshot=place[1],
            draw=place[2],
            relative_drop=(trained - found.top1) / trained if self._learned else None,
            p_value=p,
            significant=q is not None and q < LEVEL,
        )
