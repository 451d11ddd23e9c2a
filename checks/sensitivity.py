"""Hold what `planescope sensitivity` says of networks that others trained against labels.

    python -m checks.sensitivity make resnet32 --weights FOLDER --cifar FOLDER --out FOLDER
    python -m checks.sensitivity table FOLDER --out studies/results/sensitivity.csv
    python -m checks.sensitivity results studies/results/sensitivity.csv

FOLDER of weights holds ``resnet32-*.th`` and the like (Y. Idelbayev), that of CIFAR-10 the folder
``cifar-10-batches-py``. `make` writes a file a way and kind of inputs; broken off, the same command
goes on behind the last whole one. `table` needs no network, `results` nothing but the table.
resnet20 was for development; the others are the test.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

import planescope as ps
from checks.planning import images, load
from planescope.criticality.relation import ranks
from planescope.criticality.replacements import read_ways, replaced
from planescope.criticality.sensitivity.record import Sensitivity
from planescope.files.writing import replacing

# Ways whose true losses spread on the network of development.
WAYS = ("prune:0.9", "prune:0.95", "rank:0.25", "rank:0.1", "bits:2", "filters:0.5")
# Labelled test images that tell the truth; unlabelled ones, of the training set; labels on few.
TRUTH, UNLABELLED, FEW = 2000, 400, (100, 30, 10)
# Of the inputs that are moved until they have the statistics of the batch norms (ZeroQ).
DISTILLED, STEPS, RATE = 64, 100, 0.1
SCORES = (
    "unlabelled", "synthetic", "distilled", "distance", "magnitude", *(f"labels_{n}" for n in FEW),
    "agreement", "cosine", "centre",
)  # fmt: skip
FIELDS = ("network", "layer", "way", "loss", "lower", "upper", "expected", *SCORES)
DRAWS = 2000
# Points between the quartiles of the true losses, from which on a way is one that spreads.
SPREAD = 0.05


def distilled(module: nn.Module) -> torch.Tensor:
    """Move noise until its activations have the mean and variance of each batch norm.

    Cai et al. (2020), section 3.1; our own code.
    """
    torch.manual_seed(0)
    pixels = torch.randn(DISTILLED, 3, 32, 32, requires_grad=True)
    wanted: list[torch.Tensor] = []

    def hook(norm: Any, args: Any, _output: Any) -> None:
        given = args[0]
        mean, var = given.mean((0, 2, 3)), given.var((0, 2, 3), unbiased=False)
        off = (mean - norm.running_mean).square().sum()
        wanted.append(off + (var.sqrt() - norm.running_var.sqrt()).square().sum())

    hooks = [
        m.register_forward_hook(hook) for m in module.modules() if isinstance(m, nn.BatchNorm2d)
    ]
    steps = torch.optim.Adam([pixels], lr=RATE)
    for _ in range(STEPS):
        wanted.clear()
        module(pixels)
        steps.zero_grad()
        torch.stack(wanted).sum().backward()
        steps.step()
    for one in hooks:
        one.remove()
    return pixels.detach()


def make(name: str, weights: Path, cifar: Path, out: Path) -> None:
    """Write what is not there yet: for each way the truth, and what every kind of inputs says."""
    module = load(name, weights)
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    x, labels = images(cifar, "test_batch")
    pool, _ = images(cifar, "data_batch_5")
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
    few = [(f"labels_{n}", (x[-n:], labels[-n:]), True) for n in FEW]
    for way in WAYS:
        for kind, data, labelled in (
            ("synthetic", None, False),
            ("unlabelled", pool[order[:UNLABELLED]], False),
            *few,
            ("distilled", None, False),
            ("measured", (x[:TRUTH], labels[:TRUTH]), True),
        ):
            path = folder / f"{way.replace(':', '-')}.{kind}.json"
            if path.is_file():
                continue
            if kind == "distilled":
                data = _kept(folder / "distilled.pt", module)
            shape = (3, 32, 32) if data is None else None
            found = ps.sensitivity(
                module, ways=way, data=data, labelled=labelled, input_shape=shape, chance=0.1
            )
            if isinstance(found, Sensitivity):  # no dry run
                found.save(path)
            print(name, way, kind, flush=True)
    path = folder / "weights.csv"
    if not path.is_file():
        _write(path, ("layer", "way", "distance", "magnitude", "agreement", "cosine", "centre"),
               list(_of_weights(module)))  # fmt: skip


def _kept(path: Path, module: nn.Module) -> torch.Tensor:
    if not path.is_file():
        with replacing(path) as draft:
            torch.save(distilled(module), draft)
    found: torch.Tensor = torch.load(path, weights_only=True)
    return found


def _of_weights(module: nn.Module) -> Iterator[dict[str, Any]]:
    """What weights alone tell: how far they go, what goes, and how the layer's hyperplanes face."""
    modules = dict(module.named_modules())
    for layer in ps.measure(module).layers:
        weight = modules[layer.name].weight.detach().numpy().astype(np.float64)
        for way in read_ways(",".join(WAYS)):
            changed = np.asarray(replaced(way, weight)[0], dtype=np.float64)
            moved = float(np.linalg.norm(changed - weight))
            yield {
                "layer": layer.name, "way": way.key, "distance": moved / np.linalg.norm(weight),
                "magnitude": moved / np.sqrt(weight.size), "agreement": layer.agreement,
                "cosine": None if layer.mean_cosine is None else -layer.mean_cosine,
                "centre": None if layer.mean_centre is None else -layer.mean_centre,
            }  # fmt: skip


def _write(path: Path, fields: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()}
            )


def table(folder: Path, out: Path) -> None:
    """Put the files of all networks together, of ways that have all of them."""
    rows: list[dict[str, Any]] = []
    for own in sorted(folder.iterdir()):
        if not (own / "weights.csv").is_file():
            continue
        alone = pd.read_csv(own / "weights.csv").set_index(["layer", "way"])
        for way in WAYS:
            kinds = ("measured", "unlabelled", "synthetic", "distilled",
                     *(f"labels_{n}" for n in FEW))  # fmt: skip
            paths = {kind: own / f"{way.replace(':', '-')}.{kind}.json" for kind in kinds}
            if not all(path.is_file() for path in paths.values()):
                continue
            found = {kind: Sensitivity.load(path) for kind, path in paths.items()}
            by = {k: {layer.name: layer.ways[way] for layer in f.layers} for k, f in found.items()}
            for layer, truth in by["measured"].items():
                if truth is None:
                    continue
                rows.append({
                    "network": own.name, "layer": layer, "way": way, "loss": truth.loss,
                    "lower": truth.lower, "upper": truth.upper,
                    "expected": by["unlabelled"][layer].loss,
                    **{k: by[k][layer].score for k in kinds if k != "measured"},
                    **alone.loc[layer, way].to_dict(),
                })  # fmt: skip
    _write(out, FIELDS, rows)


def results(path: Path) -> None:
    """Print rank correlations over layers by way, networks apart and together, and errors."""
    rows = pd.read_csv(path)
    for network, own in rows.groupby("network"):
        print(f"\n{network}, rank correlation over layers with the true loss\n")
        ways = [way for way in WAYS if (own["way"] == way).any()]
        print("| score | " + " | ".join(f"{w} ({_spread(own, w):.2f})" for w in ways) + " |")
        print("|" + " --- |" * (len(ways) + 1))
        for score in SCORES:
            print(f"| {score} | " + " | ".join(_rho(own[own["way"] == w], score) for w in ways)
                  + " |")  # fmt: skip
        spreads = own[own["way"].isin([w for w in ways if _spread(own, w) >= SPREAD])]
        if not len(spreads):
            continue
        error = (spreads["expected"] - spreads["loss"]).abs()
        raw = (spreads["synthetic"] - spreads["loss"]).abs()
        print(
            f"\nways that spread: error of the expected loss {error.mean():.3f}, of the "
            f"disagreement without data, were it a loss {raw.mean():.3f}; mean rho "
            + ", ".join(f"{s} {_mean(spreads, s):.2f}" for s in SCORES)
        )


def _spread(rows: pd.DataFrame, way: str) -> float:
    low, high = np.quantile(rows[rows["way"] == way]["loss"], (0.25, 0.75))
    return float(high - low)


def _mean(rows: pd.DataFrame, score: str) -> float:
    return float(np.mean([
        ranks.spearman(own[score].to_numpy(float), own["loss"].to_numpy(float))
        for _, own in rows.groupby("way")
    ]))  # fmt: skip


def _rho(rows: pd.DataFrame, score: str) -> str:
    """Spearman's rho with its 95 % interval, layers drawn anew."""
    values, loss = rows[score].to_numpy(float), rows["loss"].to_numpy(float)
    drawn = np.random.default_rng(0).integers(0, len(rows), (DRAWS, len(rows)))
    low, high = ranks.interval(ranks.spearman(values[drawn], loss[drawn]))
    whole = float(ranks.spearman(values, loss))
    return f"{whole:.2f}" if low is None else f"{whole:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Make files, put them together, or say what they tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    of_network = commands.add_parser("make")
    of_network.add_argument("network", choices=["resnet20", "resnet32", "resnet44", "resnet56"])
    for option in ("--weights", "--cifar", "--out"):
        of_network.add_argument(option, type=Path, required=True)
    of_folder = commands.add_parser("table")
    of_folder.add_argument("folder", type=Path)
    of_folder.add_argument("--out", type=Path, required=True)
    commands.add_parser("results").add_argument("table", type=Path)
    given = parser.parse_args()
    run: dict[str, Callable[[], None]] = {
        "make": lambda: make(given.network, given.weights, given.cifar, given.out),
        "table": lambda: table(given.folder, given.out),
        "results": lambda: results(given.table),
    }
    run[given.command]()


if __name__ == "__main__":
    main()
