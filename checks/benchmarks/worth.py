"""Time what layers are worth: seconds a cell against a bare pass, and of predictions without data.

Processor seconds on one thread. A cell is a layer and what stands in for its weights, on 400 inputs
that lie in memory; making the replacements and the intervals counts, opening the network does not.
The bare pass sends the same inputs through the network once, as it is.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

import planescope as ps
from checks.benchmarks.processes import machine
from checks.benchmarks.resets import Cost, bare_pass, cost
from planescope.criticality.options import InputOptions
from planescope.criticality.replacements import read_ways
from planescope.criticality.sensitivity.job import Job
from planescope.networks.build import build

INPUTS, BATCH = 400, 100
WAYS = "prune:0.5,prune:0.9,filters:0.5,rank:0.25,bits:3"
# By network and width, what is promised of a cell, in bare passes.
NETWORKS = (("vgg11", 0.25), ("vgg11_bn", 0.25), ("resnet20", 1.0), ("lenet", 1.0))
BOUND = 3.0
# Seconds of a criticality without data, VGG11 at a quarter of its width.
MOST_SECONDS = 10.0


def trained(name: str, width: float) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Make a network that gives several answers, and the initialisation that it started from.

    Times do not depend on what it learned: 40 steps on patterns of ten classes.
    """
    torch.manual_seed(0)
    network = build(name, width=width, seed=0)
    start = {key: value.clone() for key, value in network.state_dict().items()}
    patterns = torch.randn(10, 3, 32, 32)
    steps = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(40):
        labels = torch.randint(0, 10, (32,))
        loss = nn.functional.cross_entropy(
            network(patterns[labels] + torch.randn(32, 3, 32, 32)), labels
        )
        steps.zero_grad()
        loss.backward()
        steps.step()
    return network.eval(), start


def cells_of(network: nn.Module, inputs: torch.Tensor) -> tuple[int, Cost]:
    """Return how many cells a ladder has, and what all of them cost."""
    given: dict[str, Any] = dict.fromkeys(("metric", "pick", "unpack", "data_path", "data_options"))
    job = Job.open(
        network, None, kinds=(), layers=None, device="cpu", memory=None, trust=False,
        input_options=InputOptions(),
    )  # fmt: skip
    found: list[Any] = []

    def ours() -> None:
        job.take(inputs, labelled=False, split="val", **given)
        found.append(job.sensitivity(read_ways(WAYS), chance=0.1, on_cell=None))

    seconds = cost(ours, repeats=1)
    there = [one for layer in found[-1].layers for one in layer.ways.values() if one is not None]
    return len(there), seconds


def main() -> None:
    """Print a line a network, and what a criticality without data takes."""
    torch.set_num_threads(1)
    print(f"worth: processor seconds a cell, {INPUTS} inputs ({machine()}, torch "
          f"{torch.__version__}, one thread)")  # fmt: skip
    print(f"{'':14} {'cells':>5} {'planescope':>10} {'bare':>10} {'ratio':>6} {'bound':>5}")
    for name, width in NETWORKS:
        network, start = trained(name, width)
        inputs = torch.randn(INPUTS, 3, 32, 32)
        cells, seconds = cells_of(network, inputs)
        bare = cost(lambda net=network, x=inputs: bare_pass(net, x.split(BATCH)), repeats=2)
        each = seconds.cpu / cells
        print(f"{name:8} {width:5g} {cells:>5} {each:9.4f}s {bare.cpu:9.3f}s "
              f"{each / bare.cpu:6.2f} {BOUND:5.1f}", flush=True)  # fmt: skip
        if (name, width) == NETWORKS[0]:
            began = time.process_time()
            ps.predict_critical(network, init=start, input_shape=(3, 32, 32))
            print(f"{name:8} {width:5g} criticality without data, in all: "
                  f"{time.process_time() - began:.1f}s, at most {MOST_SECONDS:.0f}")  # fmt: skip
