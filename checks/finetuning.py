"""Fine-tuning for an epoch, behind a repair and without one: what the repair is still worth.

    python -m checks.finetuning resnet32 --weights FOLDER --data FOLDER --out FOLDER

Global magnitude, as it is and repaired (by nothing but the network, by 400 images without labels),
trained for an epoch on CIFAR-10 with labels; weights that were pruned stay 0. A line of
``NETWORK-finetuned.csv`` a moment; broken off, the same command goes on behind the last start.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import nn

from checks import cifar, resnets
from checks.planning import SYNTHETIC, accuracy, drawn, parser_of, read, write
from checks.subjects import subject
from planescope.criticality.plan.bench import Bench
from planescope.criticality.plan.cuts import Knife
from planescope.criticality.plan.examples import synthetic
from planescope.data.batches import CROP_PADDING, crop_and_flip

SIZES = (0.2, 0.1, 0.05)
# What a start was made by; None: as it is.
STARTS = (None, 400, 0)
RIVAL = "global magnitude"
BATCH, RATE, MOMENTUM, DECAY = 128, 0.01, 0.9, 1e-4
# Steps after which right answers are counted, and at the end of the epoch.
LOOKS = (0, 20, 100, 200)
FIELDS = ("network", "size", "start", "seed", "step", "accuracy")


def batches(
    pixels: torch.Tensor, labels: torch.Tensor, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield an epoch of images, moved by up to four pixels, half of them mirrored."""
    draw = torch.Generator().manual_seed(seed)
    most = 2 * CROP_PADDING
    for rows in torch.randperm(len(pixels), generator=draw).split(BATCH):
        top, left = torch.randint(most + 1, (len(rows), 2), generator=draw).unbind(1)
        flips = torch.rand(len(rows), generator=draw) < 0.5
        left = torch.where(flips, most - left, left)  # of what is cut first, and mirrored then
        yield crop_and_flip(pixels[rows], top, left, flips.long()), labels[rows]


def tuned(
    module: nn.Module, pixels: torch.Tensor, labels: torch.Tensor, seed: int
) -> Iterator[tuple[int, nn.Module]]:
    """Train for an epoch, the rate falling to 0; yield the network where it is to be looked at."""
    weights = [p for p in module.parameters() if p.ndim > 1]
    masks = [p != 0 for p in weights]
    steps = -(-len(pixels) // BATCH)
    descent = torch.optim.SGD(
        module.requires_grad_().parameters(), RATE, MOMENTUM, weight_decay=DECAY
    )
    fall = torch.optim.lr_scheduler.LinearLR(descent, 1.0, 0.0, steps)
    for step, (x, wanted) in enumerate(batches(pixels, labels, seed)):
        if step in LOOKS:
            yield step, module.eval()
        module.train()
        descent.zero_grad()
        nn.functional.cross_entropy(module(x), wanted).backward()
        descent.step()
        fall.step()
        with torch.no_grad():
            for weight, mask in zip(weights, masks, strict=True):
                weight *= mask
    yield steps, module.eval()


def main(argv: list[str]) -> None:
    """Fill the table of one network, start by start."""
    parser = parser_of(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    one = subject(given.network, given.weights, given.data)
    parts = [f"data_batch_{n}" for n in range(1, 6)]
    pixels, labels = cifar.images(given.data, parts, resnets.MEAN, resnets.STD)
    path = given.out / f"{given.network}-finetuned.csv"
    rows = read(path)
    done = {(row["size"], row["start"], row["seed"]) for row in rows}
    made, _ = synthetic(one.module, one.shape, most=SYNTHETIC)
    for size in SIZES:
        for count in STARTS:
            start = "as it is" if count is None else f"repaired, {count} images"
            if (f"{size:g}", start, str(given.seed)) in done:
                continue
            data = drawn(one.pool, given.seed)[:count] if count else made
            with torch.no_grad():
                bench = Bench.of(one.module, data, Knife(way="prune"), examples=len(data))
                tries = bench.tries(size, repair=count is not None)
            (first,) = [
                t.module
                for t in tries
                if (t.rival.name, t.rival.repaired) == (RIVAL, count is not None)
            ]
            for step, module in tuned(first, pixels, labels, given.seed):
                right = accuracy(module, *one.truth)
                values = (given.network, f"{size:g}", start, given.seed, step, right)
                rows.append(dict(zip(FIELDS, values, strict=True)))
                print(values, flush=True)
            write(path, rows, FIELDS)


if __name__ == "__main__":
    main(sys.argv[1:])
