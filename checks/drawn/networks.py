"""Random networks: convolutions of every kind, norms, activations, joins, linear and recurrent."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

IMAGE = (3, 12, 12)  # channels, height, width


@dataclass(frozen=True)
class Step:
    """A step of a network: a module by its name or an operation, and the values that it reads."""

    op: str
    reads: tuple[int, ...]
    name: str = ""
    options: dict[str, Any] = field(default_factory=dict)


# Operations without weights, of one value or more.
OPERATIONS: dict[str, Callable[..., torch.Tensor]] = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "clamp": lambda x: x.clamp(min=0),
    "leaky": lambda x: functional.leaky_relu(x, 0.1),
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "hardswish": functional.hardswish,
    "elu": functional.elu,
    "abs": torch.abs,
    "scaled": lambda x: x * 0.5,
    "turned": lambda x: x * -1.5,
    "shifted": lambda x: x + 0.25,
    "hardtanh": functional.hardtanh,
    "cut_above": lambda x: x.clamp(max=1.5),
    "cut_below": lambda x: x.clamp(min=-0.5),
    "cut": lambda x: x.clamp(-1.0, 1.0),
    "cut_to_unit": lambda x: x.clamp(0.0, 1.0),
    "at_least_0": lambda x: torch.maximum(x, torch.zeros(1)),
    "at_most_1": lambda x: torch.minimum(x, torch.ones(1)),
    "negative": torch.neg,
    "from_one": lambda x: 1.0 - x,
    "square": torch.square,
    "power": lambda x: x**2,
    "times_itself": lambda x: x * x,
    "root": lambda x: torch.sqrt(x.abs() + 1e-3),
    "divided": lambda x: x / 2.5,
    "softplus": functional.softplus,
    "hardsigmoid": functional.hardsigmoid,
    "mish": functional.mish,
    "selu": functional.selu,
    "softsign": functional.softsign,
    "softmax": lambda x: torch.softmax(x, 1),
    "log_softmax": lambda x: torch.log_softmax(x, 1),
    "threshold": lambda x: functional.threshold(x, 0.0, 0.0),
    "where": lambda x: torch.where(x > 0, x, torch.zeros(1)),
    "masked": lambda x: x * (x > 0),
    "bell": lambda x: torch.exp(-x.abs()),
    "sine": torch.sin,
    "max_pool": lambda x: functional.max_pool2d(x, 2),
    "avg_pool": lambda x: functional.avg_pool2d(x, 2),
    "pad": lambda x: functional.pad(x, (1, 0, 0, 1)),
    "nearest": lambda x: functional.interpolate(x, scale_factor=2.0, mode="nearest"),
    "bilinear": lambda x: functional.interpolate(
        x, scale_factor=2.0, mode="bilinear", align_corners=False
    ),
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "max": torch.maximum,
    "min": torch.minimum,
    "cat": lambda x, y: torch.cat([x, y], 1),
    "flatten": lambda x: torch.flatten(x, 1),
    "mean": lambda x: x.mean((2, 3)),
}
_ACTIVATIONS = (
    *("relu",) * 14, "relu6", "clamp", "leaky", "gelu", "silu", "tanh", "sigmoid", "hardswish",
    "elu", "abs", "hardtanh", "cut_above", "cut_below", "cut", "cut_to_unit", "at_least_0",
    "at_most_1", "negative", "from_one", "square", "power", "times_itself", "root", "divided",
    "softplus", "hardsigmoid", "mish", "selu", "softsign", "softmax", "log_softmax", "threshold",
    "where", "masked", "bell", "sine",
)  # fmt: skip
_HALVE = ("max_pool", "avg_pool")
_JOINS = ("add", "add", "add", "sub", "mul", "max", "min", "cat")


class Drawn(nn.Module):
    """A network of steps, each of which reads values of those before it; 0 is the image."""

    def __init__(self, steps: list[Step], parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.steps = steps
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the value of the last step."""
        values = [image]
        for step in self.steps:
            given = [values[number] for number in step.reads]
            if step.op == "recurrent":
                # The channels in turn, each a row of positions.
                answer = getattr(self, step.name)(given[0].flatten(2))[0]
            elif step.name:
                answer = getattr(self, step.name)(*given)
            else:
                answer = OPERATIONS[step.op](*given)
            values.append(answer)
        return values[-1]


class _Author:
    """Draws the steps of a network, and keeps the shape of each value."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311
        self.shapes: list[tuple[int, ...]] = [IMAGE]
        self.steps: list[Step] = []
        self.parts: dict[str, nn.Module] = {}

    def do(self, op: str, *reads: int, shape: tuple[int, ...], **options: Any) -> int:
        self.steps.append(Step(op, reads, options=options))
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def put(self, op: str, part: nn.Module, read: int, shape: tuple[int, ...]) -> int:
        name = f"{op}{len(self.parts)}"
        self.parts[name] = part
        self.steps.append(Step(op, (read,), name=name))
        self.shapes.append(shape)
        return len(self.shapes) - 1

    def convolution(self, read: int, *, same: bool = False) -> int:
        """Add a convolution: plain, grouped, depthwise, dilated, with a stride, 1x1, transposed."""
        rng, (channels, height, width) = self.rng, self.shapes[read]
        kind = rng.choice(("plain",) * 5 + ("point", "depthwise", "grouped", "dilated", "stride"))
        kernel = 1 if kind == "point" else rng.choice((3, 3, 3, 5))
        filters = channels if same or kind == "depthwise" else rng.choice((4, 6, 8, 8, 12))
        groups = {"depthwise": channels, "grouped": 2}.get(kind, 1)
        if channels % groups or filters % groups:
            groups = 1
        dilation = 2 if kind == "dilated" and height > kernel * 2 else 1
        stride = 2 if kind == "stride" and height > 4 and not same else 1
        part = nn.Conv2d(
            channels, filters, kernel, stride, dilation * (kernel // 2), dilation, groups,
            bias=rng.random() < 0.6,
        )  # fmt: skip
        shape = (filters, -(-height // stride), -(-width // stride))
        return self.put("conv", part, read, shape)

    def transposed(self, read: int) -> int:
        channels, height, width = self.shapes[read]
        filters = self.rng.choice([n for n in (4, 5, 6, 8, 12) if n != channels])
        part = nn.ConvTranspose2d(channels, filters, 2, 2, bias=self.rng.random() < 0.7)
        return self.put("up", part, read, (filters, height * 2, width * 2))

    def normed(self, read: int) -> int:
        """Add a norm behind a value, mostly a batch norm."""
        channels = self.shapes[read][0]
        kind = self.rng.choice(("batch",) * 6 + ("group", "instance"))
        part: nn.Module
        if kind == "batch":
            part = nn.BatchNorm2d(channels, eps=self.rng.choice((1e-5, 1e-3)))
        elif kind == "group":
            part = nn.GroupNorm(2 if channels % 2 == 0 else 1, channels)
        else:
            part = nn.InstanceNorm2d(channels, affine=True)
        return self.put(f"{kind}norm", part, read, self.shapes[read])

    def block(self, read: int) -> int:
        """Add a convolution with what mostly stands around one."""
        rng = self.rng
        value = read
        before = rng.random() < 0.15  # norm and activation stand in front of it
        if before:
            value = self.normed(value)
            value = self.do(rng.choice(_ACTIVATIONS), value, shape=self.shapes[value])
        small = self.shapes[value][1] < 10
        value = self.transposed(value) if small and rng.random() < 0.12 else self.convolution(value)
        if not before and rng.random() < 0.5:
            value = self.normed(value)
        if not before and rng.random() < 0.85:
            value = self.do(rng.choice(_ACTIVATIONS), value, shape=self.shapes[value])
        return value

    def joined(self, read: int) -> int:
        """Join a value with what convolutions make of it, or with another of its shape."""
        rng, shape = self.rng, self.shapes[read]
        op = rng.choice(_JOINS)
        other = self.convolution(read, same=True)
        if rng.random() < 0.5:
            other = self.normed(other)
        if rng.random() < 0.6:
            other = self.do(rng.choice(_ACTIVATIONS), other, shape=self.shapes[other])
        if self.shapes[other] != shape:
            return other
        reads = (other, read) if rng.random() < 0.5 else (read, other)
        after = (shape[0] * 2, *shape[1:]) if op == "cat" else shape
        return self.do(op, *reads, shape=after)

    def changed(self, read: int) -> int:
        """Do something without weights."""
        rng, (channels, height, width) = self.rng, self.shapes[read]
        if height >= 6 and rng.random() < 0.6:
            return self.do(rng.choice(_HALVE), read, shape=(channels, height // 2, width // 2))
        if rng.random() < 0.3:  # two activations in a row
            return self.do(rng.choice(_ACTIVATIONS), read, shape=self.shapes[read])
        if height <= 4 and rng.random() < 0.4:
            op = rng.choice(("nearest", "bilinear"))
            return self.do(op, read, shape=(channels, height * 2, width * 2))
        op = rng.choice(("scaled", "turned", "shifted", "pad"))
        by = 1 if op == "pad" else 0
        return self.do(op, read, shape=(channels, height + by, width + by))

    def head(self, read: int) -> int:
        """Add linear layers, or a recurrent one before them."""
        rng, (channels, height, width) = self.rng, self.shapes[read]
        if rng.random() < 0.12:
            kind = rng.choice((nn.LSTM, nn.GRU, nn.RNN))
            part = kind(height * width, 6, batch_first=True)
            value = self.put("recurrent", part, read, (channels, 6))
            value = self.do("flatten", value, shape=(channels * 6,))
        elif rng.random() < 0.5 or channels * height * width > 700:
            value = self.do("mean", read, shape=(channels,))
        else:
            value = self.do("flatten", read, shape=(channels * height * width,))
        for _ in range(rng.choice((0, 1, 1, 2))):
            size = rng.choice((7, 9, 10))
            part = nn.Linear(self.shapes[value][0], size, bias=rng.random() < 0.7)
            value = self.put("linear", part, value, (size,))
            if rng.random() < 0.3:
                value = self.put("batchnorm", nn.BatchNorm1d(size), value, (size,))
            value = self.do(rng.choice(_ACTIVATIONS), value, shape=(size,))
        return self.put("linear", nn.Linear(self.shapes[value][0], 3), value, (3,))


def draw(seed: int) -> Drawn:
    """Draw a network and its weights; the same seed gives the same."""
    author = _Author(seed)
    value = author.block(0)
    for _ in range(author.rng.randint(1, 5)):
        make = author.rng.choice(
            (author.block,) * 3 + (author.joined, author.joined, author.changed)
        )
        value = make(value)
    author.head(value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Drawn(author.steps, author.parts)
        for part in network.modules():
            held = {
                **dict(part.named_parameters(recurse=False)),
                **dict(part.named_buffers(recurse=False)),
            }
            for name, tensor in held.items():
                if not tensor.is_floating_point():
                    continue
                drawn = torch.randn_like(tensor)
                # Trained norms are not 1 and 0, and some turn filters round.
                tensor.data = drawn.abs() + 0.5 if name == "running_var" else drawn * 0.4 + 0.05
    return network.eval()
