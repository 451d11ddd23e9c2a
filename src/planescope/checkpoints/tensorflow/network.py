"""A graph as it is put together: its nodes, the layers and norms among them, what is left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from planescope.hyperplanes.layer import Described, Layer, Norm, Skipped, Tensor
from planescope.networks.graph.places import Node, Role, follow
from planescope.networks.state.sharing import notes_of_calls


class Network:
    """A graph in the making, for a format whose operations come in order."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.skipped: dict[str, str] = {}  # why, by name
        self.notes: list[str] = []
        self._layers: dict[str, Layer] = {}
        self._names: dict[Hashable, str] = {}  # of layers, by the root of their weights
        self._norms: dict[int, Norm] = {}
        self._biases: defaultdict[str, list[Tensor | None]] = defaultdict(list)
        self._taken: Counter[str] = Counter()

    def add(
        self,
        role: Role,
        reads: Sequence[int] = (),
        *,
        downsamples: bool = False,
        is_non_negative: Callable[[], bool] = lambda: False,
    ) -> int:
        """Add a node; its number."""
        self.nodes.append(
            Node(
                role=role,
                reads=tuple(reads),
                downsamples=downsamples,
                is_non_negative=is_non_negative,
            )
        )
        return len(self.nodes) - 1

    def add_layer(
        self, layer: Layer, root: Hashable, reads: Sequence[int], *, downsamples: bool = False
    ) -> int:
        """Add a layer; one whose weights are used twice is still one."""
        name = self._names.get(root)
        if name is None:
            name = self._free(layer.name)
            self._names[root] = name
            self._layers[name] = replace(layer, name=name)
        self._biases[name].append(layer.bias)
        number = self.add(Role.LAYER, reads, downsamples=downsamples)
        self.nodes[number] = replace(self.nodes[number], name=name)
        return number

    def add_norm(self, norm: Norm, reads: Sequence[int]) -> int:
        """Add a batch norm."""
        number = self.add(Role.NORM, reads)
        self.nodes[number] = replace(self.nodes[number], name=norm.name)
        self._norms[number] = norm
        return number

    def skip(self, name: str, reason: str) -> None:
        """Leave out what looks like a layer."""
        self.skipped[self._free(name)] = reason

    def described(self) -> Described:
        """Give the layers in their places."""
        layers = []
        positions = follow(self.nodes)
        for name, position in positions.items():
            layer = self._layers[name]
            norm = None if position.norm is None else self._norms.get(position.norm)
            if norm is not None and norm.mean.shape != layer.weight.shape[:1]:
                norm = None
            layers.append(replace(layer, stage=position.stage, input=position.input, norm=norm))
        return Described(
            layers=tuple(layers),
            skipped=tuple(Skipped(name=name, reason=why) for name, why in self.skipped.items()),
            notes=(*self.notes, *notes_of_calls(positions, self._biases)),
        )

    def _free(self, wanted: str) -> str:
        name = wanted
        while self._taken[name]:
            self._taken[wanted] += 1
            name = f"{wanted}_{self._taken[wanted]}"
        self._taken[name] = 1
        return name
