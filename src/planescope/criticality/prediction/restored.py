"""Layers put back to the initialisation, on the engine of other weights in a layer.

To import this is to import torch.
"""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from planescope.criticality.definition import decide
from planescope.criticality.prediction.cuts import LEARNED, uncovered, verdict
from planescope.criticality.prediction.record import LayerPrediction, Method, Prediction
from planescope.criticality.resets.engine.tensors import Cell, names_of, under_all_names
from planescope.criticality.resets.targets import target_of
from planescope.criticality.sensitivity.engine import OnCell, count
from planescope.criticality.sensitivity.job import onnx_file
from planescope.files.errors import CheckpointError, NoLayersError, UsageError
from planescope.hyperplanes.layer import Skipped
from planescope.networks.graph.file_graph import FileGraph
from planescope.networks.load import tensor_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from planescope.criticality.definition import Critical
    from planescope.criticality.sensitivity.estimate import Estimates
    from planescope.criticality.sensitivity.job import Job
    from planescope.criticality.sensitivity.parts import Part
    from planescope.criticality.sensitivity.record import Estimate
    from planescope.hyperplanes.layer import Tensor

# Standard deviations of chance that the cosine of some layer's weights then and now is to pass.
_KIN = 4.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """The initialisation of a network.

    Attributes
    ----------
    name : str
        Where it comes from.
    tensors : dict of str to torch.Tensor
        Weights and biases of the layers that it has, by the names of the trained network.
    skipped : tuple of Skipped
        Layers that it has not, and why.
    is_kin : bool
        Whether any layer's weights still go with those that they started from.
    """

    name: str
    tensors: Mapping[str, torch.Tensor]
    skipped: tuple[Skipped, ...]
    is_kin: bool


def open_start(init: Any, job: Job, /) -> Start:
    """Read what the layers of a network are put back to.

    Raises
    ------
    CheckpointError
        If it is of another network, or holds values that are not finite.
    UsageError
        If the network equals it.
    NoLayersError
        If it has none of the layers.
    """
    module = job.network.module
    name = _name_of(init)
    own = module.state_dict()
    there: Mapping[str, Tensor]
    if isinstance(module, FileGraph):  # its weights have the names of the graph
        from planescope.criticality.sensitivity.onnx import weights_of

        there = weights_of(_graph_of(init, job), job.parts)
    else:
        there = target_of(name, init, module).tensors
    tensors: dict[str, torch.Tensor] = {}
    skipped = []
    for part in job.parts:
        names = _names(part)
        missing = [one for one in names if one not in there]
        if missing:
            what = "bias" if missing[0] == part.bias else "weight"
            lacks = f"such {what}" if isinstance(module, FileGraph) else missing[0]
            reason = f"{name} has no {lacks} of its shape"
            skipped.append(Skipped(name=part.layer.name, reason=reason))
            continue
        for one in names:
            tensors[one] = tensor_of(there[one].read()).to(own[one].dtype)
            if not bool(torch.isfinite(tensors[one]).all()):
                raise CheckpointError(f"{name}: {one} holds values that are not finite")
    if not tensors:
        raise NoLayersError(f"{name}: has none of the layers of {job.network.source}")
    now = {one: own[one].detach().cpu() for one in tensors}
    if all(torch.equal(now[one], tensors[one]) for one in tensors):
        raise UsageError(
            f"{job.network.source}: equals its initialisation {name} in every layer; give the "
            "trained network"
        )
    weights = [part.weight for part in job.parts if part.weight in tensors]
    is_kin = any(_is_kin(now[one], tensors[one]) for one in weights)
    return Start(name=name, tensors=tensors, skipped=tuple(skipped), is_kin=is_kin)


def _graph_of(init: Any, job: Job) -> Path:
    path = onnx_file(init) if isinstance(init, str | os.PathLike) else None
    if path is None:
        raise UsageError(
            f"{job.network.source}: layers of an ONNX graph go back to those of another ONNX file; "
            "export the initialisation as the network was, or give the checkpoint and --network"
        )
    return path


def _name_of(init: Any) -> str:
    return str(init) if isinstance(init, str | Path) else "init"


def _names(part: Part) -> tuple[str, ...]:
    return tuple(filter(None, (part.weight, part.bias)))


def _is_kin(now: torch.Tensor, then: torch.Tensor) -> bool:
    """Tell whether weights go with others beyond chance; of weights drawn anew they do not."""
    a, b = now.double().flatten(), then.double().flatten()
    a, b = a - a.mean(), b - b.mean()
    size = float(a.norm() * b.norm())
    return size > 0 and abs(float(a @ b)) / size * math.sqrt(len(a)) > _KIN


def predicted(
    job: Job, start: Start, /, *, chance: float | None, on_cell: OnCell | None
) -> Prediction:
    """Put each layer back, and say which are critical; `planescope.predict_critical` has more."""
    parts = [part for part in job.parts if part.weight in start.tensors]
    names = names_of(job.network.module)
    cells = {(part.layer.name, "init"): [_cell(part, start, names)] for part in parts}
    counted = count(
        job.network.module, job.inputs, cells, device=job.device, memory=job.memory,
        on_cell=on_cell,
    )  # fmt: skip
    found = job.estimates(counted, chance)
    layers = []
    for part in parts:
        one = found.of(counted.draws[part.layer.name, "init"])
        layers.append(
            LayerPrediction(
                name=part.layer.name, kind=part.layer.kind, score=one.score, loss=one.loss,
                lower=one.lower, upper=one.upper, critical=_verdict(found, one),
            )
        )  # fmt: skip
    whole = job.whole(found)
    return Prediction(
        source=job.network.source,
        network=job.network.name,
        method=Method(found.method.value),
        layers=tuple(layers),
        init=start.name,
        data=job.inputs.feed.name,
        inputs=counted.whole.examples,
        input_shape=job.inputs.shape,
        assumed=job.inputs.assumed,
        expected=whole["expected"],
        chance=whole["chance"],
        skipped=(*job.skipped, *start.skipped),
        notes=(*_notes(job, start, found), *job.notes(counted, found, ())),
    )


def _cell(part: Part, start: Start, names: Mapping[str, tuple[str, ...]]) -> Cell:
    tensors = under_all_names({name: start.tensors[name] for name in _names(part)}, names)
    return Cell(
        key=f"{part.layer.name} init",
        layer=part.layer.name,
        names=tuple(tensors),
        read=functools.partial(_on, tensors),
        bytes=sum(tensor.nbytes for tensor in tensors.values()),
    )


def _on(tensors: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _verdict(found: Estimates, one: Estimate) -> Critical | None:
    if found.method.value == Method.SYNTHETIC:
        return verdict(one.score) if found.judge.is_softmax else None
    if one.lower is None or one.upper is None:
        return None
    return decide(one.lower, one.upper)


def _notes(job: Job, start: Start, found: Estimates) -> Iterator[str]:
    if isinstance(job.network.module, FileGraph):
        yield "a batch norm that an exporter folded into a layer goes back with it"
    if not start.is_kin:
        yield (
            f"no layer's weights go with those of {start.name} beyond chance: it may be a fresh "
            "draw, or another seed's; put back to those, nearly every layer is critical, which is "
            "another question"
        )
    if found.method.value == Method.SYNTHETIC and found.judge.is_softmax:
        odd = uncovered(found.judge.classes, job.inputs.shape)
        if odd is not None:
            yield odd
        yield LEARNED
