"""A network in two parts: what comes before a layer, and what follows with other weights in it.

`forward` as a graph (torch.fx) is run node by node, so that it can be left before a layer and gone
on with from there, several times, by the same calls in the same order. Behind the layer the batches
of several snapshots go on as one. A network without a graph is run as a whole each time. No
parameter of the module is ever written. To import this is to import torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from planescope.criticality.resets.parts.inputs import Inputs, Tensors, Values, tensors_in
from planescope.criticality.resets.parts.traced import Trace, Traced, called
from planescope.networks.graph.trace import trace_graph


class Splittable(Protocol):
    """A network that can be left before a step, and gone on with from there."""

    steps: int

    def uses(self, names: Collection[str]) -> tuple[int, int]:
        """Return the steps before which, and from which on, the named tensors play no part."""

    def begin(self, inputs: Inputs) -> Values:
        """Return the values before step 0."""

    def advance(self, values: Values, start: int, stop: int, tensors: Tensors) -> None:
        """Replace the values before step `start` by those before step `stop`.

        Some parameters and buffers are replaced by `tensors` on the way.
        """

    def finish(self, values: Values, start: int, tensors: Tensors) -> Any:
        """Run from the values before step `start`, with some parameters and buffers replaced.

        `values` stays as it is, but what it holds may be changed in place; see `Cut.changes`.
        """


class Whole:
    """A network that has no graph: every output is computed from the inputs on."""

    steps = 1

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def uses(self, names: Collection[str]) -> tuple[int, int]:  # noqa: ARG002
        """Return the whole network: nothing is known to come before or behind."""
        return 0, self.steps

    def begin(self, inputs: Inputs) -> Values:
        """Return the inputs alone."""
        return {"args": inputs.args, "kwargs": dict(inputs.kwargs)}

    def advance(self, values: Values, start: int, stop: int, tensors: Tensors) -> None:
        """Do nothing: there is one step, and no way to stop before it."""

    def finish(self, values: Values, start: int, tensors: Tensors) -> Any:  # noqa: ARG002
        """Run the network."""
        return called(self._module, tensors, values["args"], values["kwargs"])


def trace(module: nn.Module, /) -> Trace:
    """Look for the graph of a network on its device.

    While torch.fx traces, it replaces what every module of the process does when it is called: no
    other thread may run a network.
    """
    try:
        graph, attributes = trace_graph(module)
    except Exception as exc:  # forward is anybody's code and does anything when it is given symbols
        return Trace(nodes=[], attributes={}, problem=_named(exc))
    return Trace(nodes=list(graph.nodes), attributes=attributes)


def _named(exc: Exception) -> str:
    return f"{type(exc).__name__}: {str(exc).partition(chr(10))[0]}"


def split(module: nn.Module, traced: Trace, batch: Inputs, /) -> tuple[Splittable, str]:
    """Prepare a network, which is in evaluation mode, to be left before any layer.

    Parameters
    ----------
    traced : Trace
        Of the module.
    batch : Inputs
        Of the size that batches will have.

    Returns
    -------
    network : Splittable
    note : str
        Why the network has to be run as a whole each time; "" where it has not.
    """
    reason = traced.problem or _options(module, batch)
    if not reason:
        try:
            with torch.inference_mode():
                network, example = Traced(module, traced, batch), batch.example
                output = network.finish(network.begin(example.copied()), 0, {})
                own = example.copied()
                if _is_same(output, module(*own.args, **own.kwargs)):
                    if batch.device.type == "cuda" or torch.is_autocast_enabled("cpu"):
                        network.hasten()
                    return network, ""
            reason = "it gives another output"
        except Exception as exc:  # a graph may be of one size of images, or of one of several ways
            reason = _named(exc)
    return Whole(module), (
        f"the graph of {type(module).__name__} cannot be run by parts ({reason}): the whole "
        "network was run for each cell"
    )


def _options(module: nn.Module, inputs: Inputs) -> str:
    """Say why a graph that has options of forward at their defaults cannot take the inputs."""
    signature = inspect.signature(module.forward)
    given = signature.bind_partial(*inputs.args, **inputs.kwargs).arguments
    parameters = signature.parameters.values()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    odd = [
        p.name
        for p in parameters
        if p.name in given and (p.default is not p.empty or p.kind in several)
    ]
    return f"forward is given its option {odd[0]}" if odd else ""


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two outputs are the same, part by part; what is no number is so in both."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        return bool(((one == other) | ((one != one) & (other != other))).all())
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_is_same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return one is None and other is None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The point at which a network is left, and what that needs.

    Attributes
    ----------
    live_bytes : list of int
        By step: of the values that are kept for one example before it.
    changes : dict of int to bool
        Whether going on from a step changes what was kept in place, so that a second time needs a
        copy.
    output_bytes : int
        Of what the network gives for one example.
    """

    live_bytes: list[int]
    changes: dict[int, bool]
    output_bytes: int


def survey(network: Splittable, example: Inputs, starts: Collection[int], /) -> Survey:
    """Find what it takes to leave a network before some steps."""
    live: list[int] = []
    changes: dict[int, bool] = {}
    # Not in inference mode, where tensors do not count how often they were changed.
    with torch.no_grad():
        values = network.begin(example.copied())
        for step in range(network.steps + 1):
            held = tensors_in(values)
            storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in held}
            live.append(sum(storage.nbytes() for storage in storages.values()) // example.size)
            if step in starts:
                before = [tensor._version for tensor in held]
                network.finish(values, step, {})
                changes[step] = before != [tensor._version for tensor in held]
            if step < network.steps:
                network.advance(values, step, step + 1, {})
        output = network.finish(values, network.steps, {}) if network.steps > 1 else None
        if output is None:
            output = network.finish(network.begin(example.copied()), 0, {})
    given = sum(tensor.nbytes for tensor in tensors_in({"": output})) // example.size
    return Survey(live_bytes=live, changes=changes, output_bytes=given)
