"""The updates of a Tracker: taken, kept, and where one fails told, in any framework's loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch

from planescope.data.roles import moved
from planescope.files.errors import PlanescopeError, UsageError, printable
from planescope.hyperplanes.layer import Structure
from planescope.measurement.activations import measure_activations
from planescope.measurement.choice import Choice
from planescope.measurement.measure import data_notes, lost_notes
from planescope.measurement.record import Measurement, Source
from planescope.networks.live.copies import same_random_states, without_autocast
from planescope.networks.live.module import read_module, unwrapped
from planescope.networks.live.shared import stand_in_by_parts
from planescope.training.tracker import distributed, live
from planescope.training.tracker.history import History, nulls
from planescope.training.tracker.reference import Reference, Starts

if TYPE_CHECKING:
    from torch import nn

    from planescope.data.roles import Unpack
    from planescope.measurement.assemble import Observed
    from planescope.training.tracker.folder import Folder


NO_WEIGHTS = "the run has no snapshots: only Keras itself lays out the weights of its networks"


class Errors(StrEnum):
    """The handling of an update that fails after one that did not."""

    WARN = "warn"
    RAISE = "raise"


class Recorder:
    """Follow one network through its training, as `Tracker` says.

    Attributes
    ----------
    history : History
    folder : Folder or None
        Where a run is written.
    pending : dict of str to float
        Figures of the training that go with the next update there.
    """

    def __init__(
        self,
        *,
        every: int | str,
        choice: Choice,
        reference: Reference | None,
        inputs: list[Any] | None,
        filters: bool,
        errors: Errors,
        drift: bool = False,
        folder: Folder | None = None,
        unpack: Unpack | None = None,
    ) -> None:
        self.history = History(drift=drift)
        self.folder = folder
        self.pending: dict[str, float] = {}  # figures for the run's next row
        self._every, self._choice = every, choice
        self._starts = Starts(reference)
        self._inputs, self._filters, self._errors = inputs, filters, errors
        self._unpack = unpack
        self._live: live.Live | None = None
        self._anew: frozenset[str] = frozenset()  # layers replaced since the last update
        self._last_step: int | None = None
        self._root: ref[nn.Module] | None = None  # the network of the last update
        self._state: list[tuple[int, int]] = []  # that of its weights then
        self._told: set[str] = set()
        self._shared = False  # weights are shared out among processes, or were
        self._begun = False
        self._resumed = False

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled, as with a model that holds its Tracker: not the network."""
        return vars(self) | {"_live": None, "_root": None}

    def update(self, model: nn.Module, step: int, epoch: int | None) -> None:
        """Measure a module if it is due."""
        if step == self._last_step:
            self._guarded(lambda: self._pass_over(model, step), step, epoch)
        elif self.is_due(step):
            self.record(model, step, epoch)

    def is_due(self, step: int) -> bool:
        """Tell whether an update measures: the first, then one in each run of `every` steps."""
        last = self._last_step
        if last is None or self._every == "epoch" or step < last:
            return True
        return step // int(self._every) > last // int(self._every)

    def record(self, model: nn.Module, step: int, epoch: int | None) -> None:
        """Measure a module as it is now, due or not; no step twice."""
        self._guarded(lambda: self._record(model, step, epoch), step, epoch)

    def begin(self, model: nn.Module, step: int, epoch: int | None) -> None:
        """Measure a module at the start of a fit; of another network than before, any step."""
        if self._root is not None and self._root() is not unwrapped(model):
            self._last_step = None
        self.record(model, step, epoch)

    def _record(self, model: nn.Module, step: int, epoch: int | None) -> None:
        root = unwrapped(model)
        if step == self._last_step:
            self._refuse_second(root, step)
            return
        self._root, self._state = ref(root), live.state(root)
        like = _like(model)
        # A process that has lost its shared weights still has the others not wait for it.
        self._shared = self._shared or distributed.is_sharded(model)
        if self._shared:
            self._take_shared(model, like, step, epoch)
            return
        with without_autocast(like.device):
            network = self._found(model)
            if distributed.is_first():
                with distributed.alone():
                    observed = self._observe(model, network.parts, like)
                threads = torch.get_num_threads() if like.device.type == "cpu" else 1
                self._keep(network, step, epoch, observed, threads=threads)
                self._write(step, epoch, _weights(root), lambda: _structure(root))
        self._last_step = step

    def _refuse_second(self, root: nn.Module, step: int) -> None:
        if self._root is not None and self._root() is not root:
            raise _PassedOverError(
                f"a Tracker follows one network, and at step {step} was given a second one; "
                "give that a Tracker of its own"
            )

    def _pass_over(self, model: nn.Module, step: int) -> None:
        """Measure nothing at a step that was measured; what is lost by that is told."""
        root = unwrapped(model)
        self._refuse_second(root, step)
        if self.folder is not None and distributed.is_first():
            self.folder.amend(self.pending)
            self.pending = {}
        if self._root is not None and live.state(root) != self._state:
            raise _PassedOverError(
                f"step {step} was measured, and its weights have changed since: a step is measured "
                "once; count the steps of all optimisers, or update once all of them have stepped"
            )

    def _found(self, model: nn.Module) -> live.Live:
        if self._live is None or self._live.signature != live.signature(model):
            self._live = live.find_live(model, self._choice)
            self._anew |= self._starts.follow(self._live.owners)
        return self._live

    def _take_shared(
        self, model: nn.Module, like: torch.Tensor, step: int, epoch: int | None
    ) -> None:
        """Put weights together with all processes, each of which tells the others if it fails."""
        first, parts = distributed.is_first(), []
        with (
            distributed.in_step(model, f"step {step}") as come_to,
            without_autocast(like.device),
        ):
            if self.folder is not None:
                raise UsageError(
                    "out= writes whole weights, and these are shared out among processes; leave "
                    "out= out, and give tracker.save(...) a file"
                )
            network = self._found(model)
            observed: Mapping[str, Observed] = {}
            if self._inputs is not None:
                twin, names = stand_in_by_parts(unwrapped(model), come_to)
                within = {layer: names[part] for layer, part in network.parts.items()}
                observed = self._observe(twin, within, like)
            for layer in network.layers:
                come_to(f"layer {layer.name}")
                held = distributed.held(layer)
                if first:
                    view, starts = self._choice.view, self._starts
                    parts.append(live.read_layers([held], view, starts, observed, threads=1))
        if first:
            self._add(
                network, step, epoch, lambda: [one for part in parts for one in part()], observed
            )
        self._last_step = step

    def keep(self, network: live.Live, step: int, epoch: int | None) -> None:
        """Measure layers that were found, whatever framework they are of; no step twice."""

        def kept() -> None:
            if replaced := self._starts.follow(network.owners):
                self._anew |= replaced
                self._last_step = None  # of another network
            if step != self._last_step:
                self._live = network
                self._keep(network, step, epoch, {}, threads=1)
                name = network.found.source.path
                empty = Structure(network=name, names=(), places={}, note=NO_WEIGHTS)
                self._write(step, epoch, None, lambda: empty)

        self._guarded(kept, step, epoch)

    def _keep(
        self,
        network: live.Live,
        step: int,
        epoch: int | None,
        observed: Mapping[str, Observed],
        *,
        threads: int,
    ) -> None:
        view = self._choice.view
        readings = live.read_layers(network.layers, view, self._starts, observed, threads=threads)
        self._add(network, step, epoch, readings, observed)
        self._last_step = step

    def _add(
        self,
        network: live.Live,
        step: int,
        epoch: int | None,
        readings: live.Readings,
        observed: Mapping[str, Observed],
    ) -> None:
        if step and not self.history.records:
            self._starts.note(
                f"the first update was at step {step}: distances are from the weights of then"
            )
        elif self._last_step is not None and step < self._last_step:
            self._starts.note(
                f"step {step} came after step {self._last_step}: distances go on from the first "
                "weights of all"
            )
        view, notes = self._choice.view, (*self._starts.notes, *lost_notes(observed))

        def settle() -> Measurement:
            try:
                measured = live.settle(readings, network.found, view, notes)
            except Exception as exc:
                if self._errors is Errors.RAISE:
                    raise
                return self._nulls(network.layers, network.found.source, step, exc)
            return measured if self._filters else _slim(measured)

        self.history.add(step, epoch, settle, self._anew)
        self._anew = frozenset()

    def _write(
        self,
        step: int,
        epoch: int | None,
        weights: Mapping[str, torch.Tensor] | None,
        structure: Callable[[], Structure],
    ) -> None:
        """Write the last update to the run's folder; once begun, a training goes on without it."""
        if self.folder is None:
            return
        by_epoch = self._every == "epoch" and epoch is not None
        number = epoch if by_epoch and epoch is not None else step
        try:
            self.folder.write(
                number,
                self.history.records[-1].read(),
                weights,
                structure,
                self.pending,
                unit="epoch" if by_epoch else "step",
                goes_on=self._resumed,
            )
        except (PlanescopeError, OSError) as exc:
            if self._errors is Errors.RAISE or not self._begun:
                raise
            self._warn(f"planescope could not write at step {step}, and goes on: {_reason(exc)}")
        self.pending = {}

    def _guarded(self, action: Callable[[], None], step: int, epoch: int | None) -> None:
        """Measure; a failure after the first success is a row of nulls, and a warning."""
        try:
            action()
            self._begun = True
        except Exception as exc:
            if self._errors is Errors.RAISE or not self._begun:
                if isinstance(exc, PlanescopeError):
                    raise
                raise UsageError(f"the network cannot be measured: {_reason(exc)}") from exc
            if isinstance(exc, _PassedOverError):
                self._warn(str(exc), str(exc).replace(str(step), "N", 1))
                return
            self._last_step = step
            if distributed.is_first() and self.history.records:
                last = self.history.records[-1].read()
                layers = self._live.layers if self._live is not None else last.layers
                failed = self._nulls(layers, last.source, step, exc)
                self.history.add(step, epoch, lambda: failed)

    def _nulls(
        self, layers: Sequence[Any], source: Source, step: int, exc: Exception
    ) -> Measurement:
        reason = _reason(exc)
        self._warn(f"planescope could not measure at step {step}, and goes on: {reason}", reason)
        return nulls(layers, source, self._choice.view, f"could not be measured: {reason}")

    def _warn(self, text: str, reason: str | None = None) -> None:
        if (reason or text) not in self._told:
            self._told.add(reason or text)
            warnings.warn(printable(text), stacklevel=5)

    def _observe(
        self, model: nn.Module, parts: Mapping[str, str], like: torch.Tensor
    ) -> Mapping[str, Observed]:
        if self._inputs is None:
            return {}
        with same_random_states():
            batches = (moved(batch, like.device, like.dtype) for batch in self._inputs)
            try:
                seen = measure_activations(
                    model, batches, parts, device=like.device, unpack=self._unpack
                )
            except PlanescopeError:
                raise
            except Exception as exc:  # forward is anybody's code
                raise UsageError(f"data= do not fit the network: {_reason(exc)}") from exc
        for note in data_notes(list(parts), seen)[1:]:
            if note not in self._starts.notes:
                self._starts.notes += (note,)
        return seen

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "updates": self.history.updates(),
            "starts": self._starts.state_dict(),
            "notes": list(self._starts.notes),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._starts.load_state_dict(state["starts"], tuple(state.get("notes", ())))
        self.history.resume(state["updates"])
        records = self.history.records
        self._live, self._last_step = None, records[-1].step if records else None
        self._begun = self._resumed = bool(records)


def _weights(root: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state that a snapshot keeps of a network: all that is a plain tensor."""
    held = root.state_dict().items()
    return {
        name: value
        for name, value in held
        if isinstance(value, torch.Tensor) and value.layout is torch.strided
    }


def _structure(root: nn.Module) -> Structure:
    """Return the places of a network's layers, to be kept beside its weights."""
    state = read_module(root)
    return Structure(
        network=type(root).__name__,
        names=tuple(state.tensors),
        places=dict(state.places),
        note=state.note,
    )


def _slim(measurement: Measurement) -> Measurement:
    """Leave out the values of single filters."""
    layers = tuple(replace(layer, values=None) for layer in measurement.layers)
    return replace(measurement, layers=layers)


def _like(model: nn.Module) -> torch.Tensor:
    """Return a floating tensor of the network, whose device and type its inputs have."""
    held = [*model.parameters(), *model.buffers()]
    floating = (tensor for tensor in held if tensor.is_floating_point())
    return next(floating, held[0] if held else torch.zeros(()))


def _reason(exc: Exception) -> str:
    text = str(exc).partition("\n")[0]
    return text if isinstance(exc, PlanescopeError) else f"{type(exc).__name__}: {text}"


class _PassedOverError(UsageError):
    """A second network at one step, or the same one once more after it was trained."""
