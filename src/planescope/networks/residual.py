"""ResNets of He et al. (2015) for CIFAR by name: their layers, places and shapes; without torch.

6n + 2 layers in three stages of n blocks, 16, 32 and 64 filters, shortcuts that are thinned and
padded with zeros. Modules are named as in the weights that Yerlan Idelbayev trained and published
(github.com/akamaster/pytorch_resnet_cifar10).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from planescope.hyperplanes.layer import Kind, Place
from planescope.networks.graph.places import Node, Role, follow

FIRST = "conv1"
LAST = "linear"
FILTERS = 16
STAGES = 3
NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution with a kernel of 3 and without bias, and the batch norm behind it."""

    name: str
    norm: str
    inputs: int
    filters: int
    stride: int


@dataclass(frozen=True, slots=True)
class Residual:
    """A ResNet for CIFAR with so many blocks a stage."""

    blocks: int

    @property
    def smallest_image(self) -> int:
        """Return the least height and width of an image that it can take, in pixels."""
        return 1

    def convolutions(self, width: int = FILTERS, /) -> Iterator[tuple[Convolution, Convolution]]:
        """Yield the two convolutions of each block, in order, by the number of first filters."""
        inputs = width
        for stage in range(STAGES):
            filters = width << stage
            for number in range(self.blocks):
                block = f"layer{stage + 1}.{number}"
                stride = 2 if stage and not number else 1
                yield (
                    Convolution(f"{block}.conv1", f"{block}.bn1", inputs, filters, stride),
                    Convolution(f"{block}.conv2", f"{block}.bn2", filters, filters, 1),
                )
                inputs = filters

    def places(self) -> dict[str, Place]:
        """Return the place of each layer by the name of its module, in order."""
        nodes = [Node(role=Role.IMAGE)]
        norms: dict[str, str] = {}

        def add(role: Role, *reads: int, name: str = "", downsamples: bool = False) -> int:
            nodes.append(Node(role=role, reads=reads, name=name, downsamples=downsamples))
            return len(nodes) - 1

        def normed(one: Convolution, read: int) -> int:
            norms[one.name] = one.norm
            layer = add(Role.LAYER, read, name=one.name, downsamples=one.stride > 1)
            return add(Role.NORM, layer)

        at = add(Role.RELU, normed(Convolution(FIRST, "bn1", 3, FILTERS, 1), 0))
        for first, second in self.convolutions():
            inner = normed(second, add(Role.RELU, normed(first, at)))
            if first.inputs != first.filters:
                at = add(Role.VIEW, at)
            at = add(Role.RELU, add(Role.JOIN, at, inner))
        add(Role.LAYER, add(Role.VIEW, at), name=LAST)
        return {
            layer: Place(
                kind=Kind.LINEAR if layer == LAST else Kind.CONV,
                stage=position.stage,
                input=position.input,
                groups=1,
                norm=norms.get(layer),
                eps=NORM_EPS if layer in norms else None,
            )
            for layer, position in follow(nodes).items()
        }

    def misfit(self, shapes: Mapping[str, tuple[int, ...]], /) -> str | None:
        """Return the first difference from shapes of weights, or None; any width will do."""
        first, last = shapes.get(FIRST), shapes.get(LAST)
        if first is None or len(first) != 4 or first[2:] != (3, 3):
            return f"{FIRST} should be a 3×3 convolution, but {_has(first)}"
        if last is None or len(last) != 2:
            return f"{LAST} should be a linear layer, but {_has(last)}"
        width = first[0]
        wanted: dict[str, tuple[int, ...]] = {FIRST: first, "bn1": (width,)}
        for one in (each for pair in self.convolutions(width) for each in pair):
            wanted |= {one.name: (one.filters, one.inputs, 3, 3), one.norm: (one.filters,)}
        wanted[LAST] = (last[0], width << (STAGES - 1))
        for module, shape in wanted.items():
            found = shapes.get(module)
            if found != shape:
                return f"{module} should have shape {shape}, but {_has(found)}"
        return None

    def modules(self) -> set[str]:
        """Return the names of all modules that have a weight."""
        pairs = (one for pair in self.convolutions() for one in pair)
        return {FIRST, "bn1", LAST} | {each for one in pairs for each in (one.name, one.norm)}

    def width_of(self, shapes: Mapping[str, tuple[int, ...]], /) -> float:
        """Return the factor that gives every layer its number of filters."""
        return shapes[FIRST][0] / FILTERS


def _has(shape: tuple[int, ...] | None) -> str:
    return "there is none of that name" if shape is None else f"has shape {shape}"


RESNETS: Mapping[str, Residual] = {
    f"resnet{6 * blocks + 2}": Residual(blocks) for blocks in (3, 5, 7, 9, 18)
}
