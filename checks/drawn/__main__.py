"""Draw networks, write each into every container, and hold the tables against one another.

    python -m checks.drawn --networks 200 --seed 0 [--only ONNX] [--show]

Of every layer: filters first, weight, bias, groups, kind; where there is a graph, stage, input and
batch norm as the live module has them. And no layer that reads "a ReLU's output" reads anything
below 0 when random images go through.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from checks.drawn.containers import CONTAINERS, GRAPHS, UnfitError, write
from checks.drawn.networks import IMAGE, Drawn, draw
from planescope.files.errors import PlanescopeError
from planescope.hyperplanes.layer import Input, Layer, Tensor
from planescope.measurement.source import Found, find


def _close(one: Any, other: Any) -> bool:
    return bool(np.allclose(np.asarray(one), np.asarray(other), rtol=1e-5, atol=1e-6))


def differences(network: Drawn, name: str, path: Path) -> Iterator[str]:
    """Yield what a container's table has otherwise than the live module's."""
    live, stored = find(network), find(path)
    theirs = list(stored.layers)
    for layer in live.layers:
        twin = _twin(layer, theirs)
        if twin is None:
            if not _is_told(layer, stored):
                yield f"{layer.name} is not there"
            continue
        theirs.remove(twin)
        yield from _unlike(layer, twin, stored, with_graph=name in GRAPHS)
    for extra in theirs:
        yield f"{extra.name} is there too"
    recurrent = [step.name for step in network.steps if step.op == "recurrent"]
    told = " ".join(f"{one.name} {one.reason}" for one in stored.skipped)
    for part in recurrent:
        if part not in told and "recurrent" not in told:
            yield f"{part}, which is recurrent, is not left out by name"


def _twin(layer: Layer, others: list[Layer]) -> Layer | None:
    """Find a layer by its name, else by its weights."""
    for other in others:
        if other.name == layer.name:
            return other
    weight = layer.weight.read()
    for other in others:
        held = np.asarray(other.weight.read())
        if held.shape == weight.shape and _close(held, weight):
            return other
    return None


def _is_told(layer: Layer, stored: Found) -> bool:
    return any(one.name == layer.name for one in stored.skipped)


def _unlike(layer: Layer, twin: Layer, stored: Found, *, with_graph: bool) -> Iterator[str]:
    name = layer.name
    noted = any(name in note for note in stored.notes)
    if twin.kind is not layer.kind and not noted:
        yield f"{name} is a {twin.kind.words}, not a {layer.kind.words}"
    weight, held = np.asarray(layer.weight.read()), np.asarray(twin.weight.read())
    if held.shape != weight.shape or not _close(held, weight):
        if not noted:
            yield f"{name} has other weights, of shape {held.shape}, not {weight.shape}"
        return
    if not noted and not _close(_bias(twin), _bias(layer)):
        yield f"{name} has another bias"
    if twin.groups not in (None, layer.groups):
        yield f"{name} has {twin.groups} groups, not {layer.groups}"
    if not with_graph:
        return
    for what in ("stage", "input"):
        if getattr(twin, what) != getattr(layer, what):
            yield f"{name}: {what} {getattr(twin, what)}, not {getattr(layer, what)}"
    yield from _other_norm(layer, twin)


def _bias(layer: Layer) -> np.ndarray:
    """Return the bias; zeros where there is none, as an exporter may write it."""
    return np.zeros(layer.filters) if layer.bias is None else np.asarray(layer.bias.read())


def _other_norm(layer: Layer, twin: Layer) -> Iterator[str]:
    one, other = layer.norm, twin.norm
    if (one is None) != (other is None):
        yield f"{layer.name} has {'no' if other is None else 'a'} norm"
    if one is None or other is None:
        return
    if abs(one.eps - other.eps) > 1e-9:
        yield f"{layer.name}: its norm has an epsilon of {other.eps}, not {one.eps}"
    for what in ("gamma", "beta", "mean", "variance"):
        mine, theirs = getattr(one, what), getattr(other, what)
        if not _same(mine, theirs):
            yield f"{layer.name}: its norm has another {what}"


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return _close(other.read(), one.read())


def negative(network: Drawn) -> Iterator[str]:
    """Yield layers that read below 0 and are said to read a ReLU's output."""
    least: dict[str, float] = {}

    def look(name: str) -> Any:
        def hook(_: object, given: tuple[torch.Tensor, ...]) -> None:
            least[name] = min(least.get(name, 0.0), float(given[0].min()))

        return hook

    layers = find(network).layers
    hooks = [
        network.get_submodule(layer.name).register_forward_pre_hook(look(layer.name))
        for layer in layers
    ]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for scale in (1.0, 30.0):
            network(torch.randn(8, *IMAGE, generator=generator) * scale)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        if layer.input is Input.RELU and least.get(layer.name, 0.0) < 0:
            yield f"{layer.name} reads {least[layer.name]:.3g}, and is said to read a ReLU's output"


def _check(seed: int, names: list[str], counts: Counter[str], folder: Path) -> list[str]:
    network = draw(seed)
    found = [f"live: {what}" for what in negative(network)]
    for name in names:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                path = write(name, network, folder)
        except UnfitError:
            continue
        except Exception as exc:  # an exporter's own limit, of which it says what it likes
            counts[f"{name}: not written ({type(exc).__name__})"] += 1
            continue
        counts[name] += 1
        try:
            found += [f"{name}: {what}" for what in differences(network, name, path)]
        except PlanescopeError as exc:
            found.append(f"{name}: refused: {exc}")
    return found


def main() -> int:
    """Print what differs, and how many networks each container held."""
    parser = argparse.ArgumentParser(prog="python -m checks.drawn", description=__doc__)
    parser.add_argument("--networks", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first network")
    parser.add_argument("--only", action="append", choices=list(CONTAINERS))
    parser.add_argument("--show", action="store_true", help="the steps of networks that differ")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    wrong = 0
    for seed in range(options.seed, options.seed + options.networks):
        with tempfile.TemporaryDirectory() as folder:
            found = _check(seed, options.only or list(CONTAINERS), counts, Path(folder))
        for what in found:
            print(f"network {seed}: {what}", flush=True)
        if found and options.show:
            for number, step in enumerate(draw(seed).steps, 1):
                print(f"    {number}: {step.op} {step.name} of {step.reads}")
        wrong += bool(found)
    for name, count in counts.items():
        print(f"{name}: {count}")
    print(f"{options.networks} networks, {wrong} of which differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
