"""A network, its layers and its inputs, ready for cells of any kind.

To import this is to import torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from planescope.checkpoints import read_contents
from planescope.checkpoints.locate import locate
from planescope.criticality.options import InputOptions, ResetOptions
from planescope.criticality.replacements import Way, WayKind
from planescope.criticality.resets.engine.answers import Judge
from planescope.criticality.resets.engine.devices import chosen_device, seconds_of_a_pass
from planescope.criticality.sensitivity import Cost
from planescope.criticality.sensitivity.engine import (
    Counted,
    OnCell,
    cells_of,
    count,
)
from planescope.criticality.sensitivity.estimate import Estimates
from planescope.criticality.sensitivity.inputs.given import Given, handed_over
from planescope.criticality.sensitivity.inputs.pictures import synthetic
from planescope.criticality.sensitivity.network import LIBRARIES, Network, open_network
from planescope.criticality.sensitivity.parts import Part, count_work, find_parts, some_of
from planescope.criticality.sensitivity.record import (
    Estimate,
    LayerSensitivity,
    Method,
    Sensitivity,
)
from planescope.data.loaders import generators_of
from planescope.files.errors import UsageError
from planescope.hyperplanes.layer import Kind, Layer, Skipped
from planescope.networks.graph.file_graph import FileGraph
from planescope.networks.live.copies import same_random_states

if TYPE_CHECKING:
    from collections.abc import Iterator

# Inputs, below which a bootstrap over them is a rough one.
FEW = 30
# Of the layers of the tests (docs/results), so many had their true loss within the interval.
EXPECTED = (
    "expected losses take the network's own probabilities for right, and their intervals are of "
    "the inputs alone: in tests they held the true loss of 54 to 92 % of the layers, not of 95 %"
)


# What the test of synthetic pictures covered (docs/results/sensitivity.md).
CLASSES = (10, 1000)
SHAPES = ((3, 32, 32), (3, 224, 224))


@dataclass(eq=False)
class Job:
    """A network, its layers and its inputs.

    Attributes
    ----------
    network : Network
    parts : list of Part
        The layers that are replaced.
    skipped : list of Skipped
    every : list of Layer
        All layers, in the order of the network.
    device : torch.device
    memory : int or None
    input_options : InputOptions
    given : Given or None
        The inputs, once they are there.
    """

    network: Network
    parts: list[Part]
    skipped: list[Skipped]
    every: list[Layer]
    device: torch.device
    memory: int | None
    input_options: InputOptions
    given: Given | None = field(default=None)

    @classmethod
    def open(
        cls,
        model: Any,
        network: Any,
        *,
        kinds: Iterable[Kind | str] | str,
        layers: str | None,
        device: str,
        memory: int | None,
        trust: Any,
        input_options: InputOptions,
    ) -> Job:
        """Open the network and find its layers; `planescope.sensitivity` says what is raised."""
        if memory is not None and memory < 1:
            raise UsageError(f"memory must be 1 byte or more, not {memory}")
        if network is None and (path := onnx_file(model)) is not None:
            from planescope.criticality.sensitivity.onnx import open_onnx

            if device not in ("auto", "cpu"):
                raise UsageError(f"an ONNX graph is run on the CPU, not on {device}")
            opened, parts, skipped, every = open_onnx(path, kinds, layers)
            where = torch.device("cpu")
            return cls(opened, parts, skipped, every, where, memory, input_options)
        opened = open_network(model, network, trust)
        where = chosen_device(device, opened.module, stays=opened.stays)
        module = opened.module.to(where)
        parts, skipped, every = find_parts(module, kinds, layers)
        return cls(opened, parts, skipped, every, where, memory, input_options)

    @contextlib.contextmanager
    def undisturbed(self, data: Any) -> Iterator[None]:
        """Leave all states of random numbers as they were."""
        with same_random_states(*generators_of(data)):
            yield

    def take(
        self,
        data: Any,
        *,
        labelled: bool,
        metric: Any,
        pick: Any,
        task: Any,
        unpack: Any,
        split: Any,
        data_path: Any,
        data_options: Any,
    ) -> None:
        """Take inputs of the user's, or choose synthetic ones where `data` is None."""
        module = self.network.module
        judge = Judge(metric=metric, pick=pick, task=task)
        if data is None:
            if metric is not None:
                raise UsageError("a metric needs data; synthetic pictures have no labels")
            options = self.input_options
            if options.shape is None:
                options = dataclasses.replace(options, shape=self.network.input_shape)
            self.given = synthetic(module, self.every, options, judge, self.memory)
            judge.heed(module, self.network.name)
            return
        self.given = handed_over(
            data, module, self.input_options, labelled=labelled, judge=judge, unpack=unpack,
            data_path=data_path, data_options=data_options,
            resets=ResetOptions(split=split, memory=self.memory), network=self.network.name,
        )  # fmt: skip

    @property
    def inputs(self) -> Given:
        """Return the inputs, which `take` took."""
        assert self.given is not None  # noqa: S101
        return self.given

    def cost(self, ways: Sequence[Way], /) -> Cost:
        """Tell what the cells of some ways would take."""
        cells = cells_of(self.network.module, self.parts, ways)
        return self.cost_of(len(self.parts), sum(map(len, cells.values())))

    def cost_of(self, layers: int, cells: int, /) -> Cost:
        """Tell what so many cells of so many layers would take."""
        seconds = seconds_of_a_pass(self.network.module, self.inputs.first)
        inputs = self.inputs.feed.examples
        passes = None if inputs is None else math.ceil(inputs / self.inputs.feed.batch)
        return Cost(
            layers=layers, cells=cells, inputs=inputs,
            seconds=None if passes is None else seconds * passes * (cells + 1),
        )  # fmt: skip

    def estimates(self, counted: Counted, chance: float | None, /) -> Estimates:
        """Return what tallies mean."""
        judge = self.inputs.judge
        own = chance if chance is not None or judge.metric is not None else judge.chance
        return Estimates(
            method=self.inputs.method, judge=judge, whole=counted.whole, chance=own,
            sets=self.inputs.sets,
        )  # fmt: skip

    def work(self) -> dict[str, int | None]:
        """Count the multiply-adds of each layer for one input."""
        batch = self.inputs.first
        module = self.network.module
        if isinstance(module, FileGraph):
            return dict(module.work)

        def run() -> Any:
            return module(*batch.args, **batch.kwargs)

        return dict(count_work(module, self.parts, run, batch.size))

    def sensitivity(
        self, ways: Sequence[Way], *, chance: float | None, on_cell: OnCell | None
    ) -> Sensitivity:
        """Evaluate all ways in all layers; `planescope.sensitivity` says what is raised."""
        work = self.work()
        cells = cells_of(self.network.module, self.parts, ways)
        counted = count(
            self.network.module, self.inputs, cells, device=self.device, memory=self.memory,
            on_cell=on_cell,
        )  # fmt: skip
        found = self.estimates(counted, chance)
        layers = []
        for part in self.parts:
            name, layer = part.layer.name, part.layer
            by_way: dict[str, Estimate | None] = {}
            for way in ways:
                draws = counted.draws.get((name, way.key))
                scope = "branch" if way.kind is WayKind.FILTERS else None
                by_way[way.key] = None if draws is None else found.of(draws, scope=scope)
            layers.append(
                LayerSensitivity(
                    name=name, kind=layer.kind, multiply_adds=work[name],
                    parameters=layer.filters
                    * (layer.fan_in + (bool(part.bias) or layer.bias is not None)),
                    ways=by_way,
                )
            )  # fmt: skip
        return Sensitivity(
            source=self.network.source,
            network=self.network.name,
            method=self.inputs.method,
            data=self.inputs.feed.name,
            inputs=counted.whole.examples,
            layers=tuple(layers),
            input_shape=self.inputs.shape,
            assumed=self.inputs.assumed,
            of_classes=self.inputs.judge.is_softmax,
            skipped=tuple(self.skipped),
            notes=tuple(self.notes(counted, found, ways)),
            **self.whole(found),
        )

    def whole(self, found: Estimates, /) -> dict[str, Any]:
        """Return what is said of the network as it is."""
        is_measured = found.method is Method.MEASURED
        is_expected = found.method is Method.UNLABELLED and self.inputs.judge.is_softmax
        mean = found.mean if found.mean is not None and math.isfinite(found.mean) else None
        return {
            "metric": self.inputs.judge.name if is_measured else None,
            "trained": mean if is_measured else None,
            "expected": mean if is_expected else None,
            "chance": found.chance if is_measured or is_expected else None,
        }

    def notes(self, counted: Counted, found: Estimates, ways: Sequence[Way], /) -> Iterator[str]:
        """Return what a reader should know."""
        given = self.inputs
        if given.feed.preprocessing is not None:
            yield f"inputs: {given.feed.preprocessing}"
        yield from given.notes
        yield from given.feed.notes
        yield from self.network.notes
        yield from self.network.unheeded
        if counted.note and not self.network.notes:
            yield counted.note
        yield from given.judge.notes
        if given.method is Method.SYNTHETIC and (odd := untested(given.judge, given.shape)):
            yield odd
        if given.method is not Method.SYNTHETIC and counted.whole.examples < FEW:
            yield (
                f"few inputs ({counted.whole.examples}): costs and their intervals are rough; give "
                f"{FEW} or more"
            )
        is_told = found.method is Method.MEASURED or (
            found.method is Method.UNLABELLED and given.judge.is_softmax
        )
        if is_told and not found.learned:
            what = "accuracy" if given.judge.counts_right else "metric"
            yield (
                f"no losses: the network's {what} cannot be told from chance; is its input "
                "prepared as in training?"
                if found.chance is not None
                else f"no losses: give chance=, what {given.judge.name} is by chance"
            )
        if found.method is Method.UNLABELLED and given.judge.is_softmax and found.learned:
            yield EXPECTED
        coupled = [part.layer.name for part in self.parts if part.is_coupled]
        if coupled and any(way.kind is WayKind.FILTERS for way in ways):
            yield (
                f"filters of one branch alone went; channels are coupled with others' behind "
                f"{some_of(coupled)}"
            )
        left = [part.layer.name for part in self.parts if part.leaves_norm]
        if left and any(way.kind is WayKind.FILTERS for way in ways):
            yield (
                "filters went without scale and shift of the norm, which is not of one layer's "
                f"channels alone, behind {some_of(left)}"
            )


def untested(judge: Judge, shape: Sequence[int] | None, /) -> str | None:
    """Name what the test of synthetic pictures did not cover; None where there is nothing."""
    odd = []
    if not judge.is_softmax:
        odd.append("outputs that are no classes")
    elif judge.classes not in CLASSES:
        odd.append(f"{judge.classes} classes")
    if shape is not None and tuple(shape) not in SHAPES:
        odd.append(f"inputs of {'×'.join(map(str, shape))}")
    if not odd:
        return None
    return (
        "the order by synthetic pictures was tested on networks of 10 and 1,000 classes and colour "
        f"pictures of 32×32 and 224×224, not on {' and '.join(odd)}"
    )


def onnx_file(model: Any, /) -> Path | None:
    """Return the path of an ONNX file; None of whatever else."""
    if not isinstance(model, str | os.PathLike) or str(model).startswith(LIBRARIES):
        return None
    if Path(model).is_dir():
        return None
    path = locate(model)
    form, _ = read_contents(path)
    return path if form == "onnx" else None
