"""A pass over several batches at once that stops before one layer after the other.

Layers that are repaired in the order in which they run need no pass from the inputs on for each:
what was computed for the layers before stays as it is. To import this is to import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from planescope.criticality.plan.fit.observation import Anatomy
from planescope.data.roles import Batch
from planescope.networks.graph.trace import trace_graph

# Bytes of values that may wait for the next layer.
_HELD_BYTES = 512 << 20


class _Walk(fx.Interpreter):  # type: ignore[misc]
    """One batch on its way through a network's graph."""

    def __init__(self, module: nn.Module, graph: fx.Graph, batch: Batch) -> None:
        super().__init__(module, graph=graph)
        self.batch = batch
        self.position = 0
        self.start_again()

    def start_again(self) -> None:
        """Go back to the inputs, and let go of what was computed."""
        self.env: dict[fx.Node, Any] = {}
        self.position = 0
        # A network may write into its inputs.
        self.args_iter = iter([_copied(value) for value in self.batch.args])

    def advance(self, nodes: Sequence[fx.Node], stop: int) -> None:
        """Run the nodes up to one; a value is let go after its last use."""
        for node in nodes[self.position : stop]:
            self.env[node] = self.run_node(node)
            for dead in self.user_to_last_uses.get(node, ()):
                del self.env[dead]
        self.position = stop

    def held(self) -> int:
        """Count the bytes of the tensors that are waiting."""
        tensors = [value for value in self.env.values() if isinstance(value, torch.Tensor)]
        return sum(one.nelement() * one.element_size() for one in tensors)


class Passage:
    """Passes of a network whose layers change one after the other, in the order in which they run.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode. A layer, and the norm behind it, may be changed in place when the pass
        stands before that layer.
    graph : torch.fx.Graph
        Of it.
    batches : sequence of Batch
    places : dict of str to int
        Of layers that are called once: the number of their node.
    """

    def __init__(
        self, module: nn.Module, graph: fx.Graph, batches: Sequence[Batch], places: dict[str, int]
    ) -> None:
        self._module, self._nodes, self._places = module, list(graph.nodes), places
        self._walks = [_Walk(module, graph, batch) for batch in batches]

    @classmethod
    def of(
        cls, module: nn.Module, batches: Sequence[Batch], anatomy: Anatomy,
        like: nn.Module | None = None,
    ) -> Passage | None:  # fmt: skip
        """Prepare the passes; None where a pass cannot be left and gone on with.

        Parameters
        ----------
        anatomy : Anatomy
            Of the network: its layers in the order in which they will be changed.
        like : torch.nn.Module, optional
            A network of the same parts and code, whose graph it then has.
        """
        if any(batch.kwargs for batch in batches):
            return None
        try:
            graph, _ = trace_graph(module if like is None else like)
            places = _places(list(graph.nodes), anatomy)
            if places is None:
                return None
            made = cls(module, graph, batches, places)
            made._check(graph)
        except Exception:  # forward is anybody's code, given symbols for tensors
            return None
        return made

    def _check(self, graph: fx.Graph) -> None:
        """Refuse a graph that gives other answers than the network itself."""
        walk = _Walk(self._module, graph, self._walks[0].batch)
        walk.advance(self._nodes, len(self._nodes) - 1)
        (output,) = self._nodes[-1].all_input_nodes
        args = [_copied(value) for value in walk.batch.args]
        if not torch.equal(walk.env[output], self._module(*args)):
            raise ValueError("the graph gives other answers")

    def before(self, name: str, number: int, /) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Give a layer's input and output for one batch.

        None where the layer is called several times.
        """
        if name not in self._places:
            return None
        walk, stop = self._walks[number], self._places[name]
        walk.advance(self._nodes, stop)
        (source,) = self._nodes[stop].all_input_nodes
        given = walk.env[source]
        output: torch.Tensor = self._module.get_submodule(name)(given)
        if sum(one.held() for one in self._walks) > _HELD_BYTES:
            walk.start_again()
        return given, output


def _places(nodes: Sequence[fx.Node], anatomy: Anatomy) -> dict[str, int] | None:
    """Find the nodes of layers; None where they do not run in the order of the names."""
    calls: dict[str, list[int]] = {name: [] for name in anatomy.calls}
    changing = {*calls, *anatomy.norms.values()}
    for number, node in enumerate(nodes):
        if node.op == "call_module" and node.target in calls:
            calls[str(node.target)].append(number)
        # What is computed from a weight beside its layer would be that of the weight of before.
        if node.op == "get_attr" and str(node.target).rpartition(".")[0] in changing:
            return None
    firsts = [min(found, default=-1) for found in calls.values()]
    if -1 in firsts or firsts != sorted(firsts):
        return None
    return {
        name: found[0]
        for name, found in calls.items()
        if len(found) == 1 and len(nodes[found[0]].all_input_nodes) == 1
    }


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
