"""Hold what `planescope sensitivity` says of networks that others trained against labels.

    python -m checks.sensitivity make resnet32 --weights FOLDER --data FOLDER --out FOLDER
    python -m checks.sensitivity table FOLDER --out studies/results/sensitivity.csv
    python -m checks.sensitivity results studies/results/sensitivity.csv

FOLDER of weights holds ``resnet32-*.th`` and the like (Y. Idelbayev) or what `checks.imagenet`
names, that of data the folder ``cifar-10-batches-py`` or the pictures of ImageNet. `make` takes
several networks and goes through them twice, three ways each time, so that a part of it is a fair
part; broken off, the same command goes on behind the last whole file. `table` needs no network and
keeps what the table had of others, `results` needs nothing but the table. resnet20 was for
development; the others are the test. Twenty layers of each network, twelve of those of ImageNet,
evenly spaced from the first to the last, are looked at.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

import planescope as ps
from checks import imagenet, planning
from planescope.criticality.relation import ranks
from planescope.criticality.replacements import read_ways, replaced
from planescope.criticality.sensitivity.record import Sensitivity
from planescope.files.writing import replacing
from planescope.hyperplanes.arrays import Floats
from planescope.hyperplanes.chance import NORMAL_95

# Those that cost most in the network of development first.
GROUPS = (("prune:0.95", "rank:0.1", "bits:2"), ("filters:0.5", "prune:0.9", "rank:0.25"))
WAYS = tuple(way for group in GROUPS for way in group)
LAYERS, LAYERS_OF_IMAGENET = 20, 12
# Labelled test images that tell the truth; unlabelled ones, of the training set; labels on few.
TRUTH, UNLABELLED, FEW = 5000, 400, (100, 30, 10)
# Of the thousand pictures of ImageNet; the last hundred are the labelled ones.
TRUTH_OF_IMAGENET, UNLABELLED_OF_IMAGENET = 600, 300
# Of the inputs that are moved until they have the statistics of the batch norms (ZeroQ).
DISTILLED, DISTILLED_OF_IMAGENET, STEPS, RATE = 64, 16, 100, 0.1
KINDS = ("synthetic", "unlabelled", "distilled", *(f"labels_{n}" for n in FEW))
OF_WEIGHTS = ("distance", "magnitude", "agreement", "cosine", "centre")
SCORES = (*KINDS, *OF_WEIGHTS)
FIELDS = ("network", "layer", "way", "loss", "lower", "upper", "expected", "expected_lower",
          "expected_upper", *SCORES)  # fmt: skip
DRAWS = 2000
# Points between the quartiles of the true losses, from which on a way is one that spreads.
SPREAD = 0.05


Labelled = tuple[torch.Tensor, torch.Tensor]


class Subject(NamedTuple):
    """A network and what it is asked with."""

    module: nn.Module
    shape: tuple[int, int, int]
    unlabelled: torch.Tensor
    truth: Labelled
    few: Labelled
    layers: int = LAYERS
    distilled: int = DISTILLED
    chance: float = 0.1

    def chosen(self) -> list[str]:
        """Return the layers that are looked at, in the order of the network."""
        every = [layer.name for layer in ps.measure(self.module).layers]
        places = np.linspace(0, len(every) - 1, min(self.layers, len(every)))
        return [every[place] for place in places.round().astype(int)]

    def save(self, path: Path, ways: Any, data: Any, **options: Any) -> None:
        """Write what inputs say of ways, unless it is there."""
        if path.is_file():
            return
        found = ps.sensitivity(
            self.module, ways=ways, data=data, layers=",".join(self.chosen()),
            **({} if "metric" in options else {"chance": self.chance}), **options,
        )  # fmt: skip
        if isinstance(found, Sensitivity):  # no dry run
            found.save(path)
        print(path, flush=True)


def subject(name: str, weights: Path, data: Path) -> Subject:
    """Load a network, channels last (the same numbers but for rounding, sooner), and its inputs."""
    if name in imagenet.NETWORKS:
        module = imagenet.load(name, weights)
        x, labels = imagenet.images(name, data)
        parts = (TRUTH_OF_IMAGENET, UNLABELLED_OF_IMAGENET, max(FEW))
        (true_x, pool, few_x), (true, _, few) = x.split(parts), labels.split(parts)
        made = Subject(
            module, (3, imagenet.SIDE, imagenet.SIDE), pool, (true_x, true), (few_x, few),
            LAYERS_OF_IMAGENET, DISTILLED_OF_IMAGENET, 1 / imagenet.CLASSES,
        )  # fmt: skip
    else:
        module = planning.load(name, weights)
        x, labels = planning.images(data, "test_batch")
        pool, _ = planning.images(data, "data_batch_5")
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
        few = (x[-max(FEW) :], labels[-max(FEW) :])
        made = Subject(
            module, (3, 32, 32), pool[order[:UNLABELLED]], (x[:TRUTH], labels[:TRUTH]), few
        )
    module.to(memory_format=torch.channels_last)
    return made


def distilled(module: nn.Module, count: int, shape: Sequence[int]) -> torch.Tensor:
    """Move noise until its activations have the mean and variance of each batch norm.

    Cai et al. (2020), section 3.1; our own code.
    """
    torch.manual_seed(0)
    pixels = torch.randn(count, *shape, requires_grad=True)
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


def make(names: Sequence[str], weights: Path, data: Path, out: Path) -> None:
    """Write what is not there yet: what each kind of inputs says, and the truth way by way."""
    for group, name in itertools.product(GROUPS, names):
        one = subject(name, weights, data)
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for kind in KINDS:
            _make_scores(one, group, folder / f"{_file(group[0])}.{kind}.json", kind)
        if not (folder / "weights.csv").is_file():
            _write(folder / "weights.csv", ("layer", "way", *OF_WEIGHTS), list(_of_weights(one)))
        for way in group:
            one.save(folder / f"{_file(way)}.measured.json", (way,), one.truth)


def _file(way: str) -> str:
    return way.replace(":", "-")


def _make_scores(one: Subject, group: Sequence[str], path: Path, kind: str) -> None:
    if kind == "synthetic":
        one.save(path, group, None, input_shape=one.shape)
    elif kind == "unlabelled":
        one.save(path, group, one.unlabelled, labelled=False)
    elif kind == "distilled":
        made = _kept(path.parent / "distilled.pt", one)
        with torch.inference_mode():
            answers = one.module(made).log_softmax(1)
        one.save(path, group, (made, answers.clone()), metric=_less_divergence)
    else:
        n = int(kind.removeprefix("labels_"))
        one.save(path, group, tuple(part[-n:] for part in one.few))


def _less_divergence(outputs: torch.Tensor, batch: Any) -> torch.Tensor:
    """Return -KL(p, p_l) an example, p of the whole network: what ZeroQ ranks layers by."""
    whole = batch[1]
    return -(whole.exp() * (whole - outputs.log_softmax(1))).sum(1)


def _kept(path: Path, one: Subject) -> torch.Tensor:
    if not path.is_file():
        with replacing(path) as draft:
            torch.save(distilled(one.module, one.distilled, one.shape), draft)
    found: torch.Tensor = torch.load(path, weights_only=True)
    return found


def _of_weights(one: Subject) -> Iterator[dict[str, Any]]:
    """Return what weights alone tell: how far they go, what goes, how the hyperplanes face."""
    modules = dict(one.module.named_modules())
    chosen = one.chosen()
    for layer in ps.measure(one.module).layers:
        if layer.name not in chosen:
            continue
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
    """Put the files of all networks together, of ways whose truth is there.

    What the table had of other networks and ways stays.
    """
    rows: list[dict[str, Any]] = []
    for own in sorted(folder.iterdir()):
        if not (own / "weights.csv").is_file():
            continue
        alone = pd.read_csv(own / "weights.csv").set_index(["layer", "way"])
        for group, way in ((ways, way) for ways in GROUPS for way in ways):
            path = own / f"{_file(way)}.measured.json"
            if not path.is_file():
                continue
            said = {kind: _by_layer(own / f"{_file(group[0])}.{kind}.json") for kind in KINDS}
            for layer, ways in _by_layer(path).items():
                truth, expected = ways[way], said["unlabelled"][layer][way]
                if truth is None:
                    continue
                rows.append({
                    "network": own.name, "layer": layer, "way": way, "loss": truth.loss,
                    "lower": truth.lower, "upper": truth.upper, "expected": expected.loss,
                    "expected_lower": expected.lower, "expected_upper": expected.upper,
                    **{kind: said[kind][layer][way].score for kind in KINDS},
                    **alone.loc[layer, way].to_dict(),
                })  # fmt: skip
    _write(out, FIELDS, _earlier(out, rows) + rows)


def _earlier(path: Path, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    new = {(row["network"], row["way"]) for row in rows}
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if (row["network"], row["way"]) not in new]


def _by_layer(path: Path) -> dict[str, dict[str, Any]]:
    return {layer.name: dict(layer.ways) for layer in Sensitivity.load(path).layers}


def results(path: Path) -> None:
    """Print rank correlations over layers by way, networks apart and together, and errors."""
    rows = pd.read_csv(path)
    tested = rows[rows["network"] != "resnet20"]
    for network, own in rows.groupby("network"):
        _print_network(str(network), own)
    for title, own in (("resnet20, development", rows[rows["network"] == "resnet20"]),
                       ("the test, all networks", tested)):  # fmt: skip
        if len(own):
            _print_means(title, own)


def _print_network(network: str, own: pd.DataFrame) -> None:
    print(f"\n{network}: rank correlation over layers with the true loss, by way and between the "
          "quartiles of its losses\n")  # fmt: skip
    ways = [way for way in WAYS if (own["way"] == way).any()]
    by_way = {way: own[own["way"] == way] for way in ways}
    print("| score | " + " | ".join(f"{w} ({_spread(by_way[w]):.2f})" for w in ways) + " |")
    print("|" + " --- |" * (len(ways) + 1))
    for score in SCORES:
        print(f"| {score} | " + " | ".join(_stated(_drawn([by_way[w]], score)) for w in ways)
              + " |")  # fmt: skip
    print("| the truth, measured again | "
          + " | ".join(f"{_ceiling(by_way[w]):.2f}" for w in ways) + " |")  # fmt: skip


def _print_means(title: str, rows: pd.DataFrame) -> None:
    """Print means over the pairs of network and way that spread, and errors of what is expected."""
    pairs = [own for _, own in rows.groupby(["network", "way"], sort=False)]
    spreading = [own for own in pairs if _spread(own) >= SPREAD]
    print(f"\n{title}: {len(spreading)} of {len(pairs)} pairs of network and way spread\n")
    if not spreading:
        return
    print("| score | mean rho | minus distance |\n| --- | --- | --- |")
    against = _drawn(spreading, "distance")
    for score in SCORES:
        found = _drawn(spreading, score)
        print(f"| {score} | {_stated(found)} | {_stated(found - against)} |")
    print(f"| the truth, measured again | {np.mean([_ceiling(p) for p in spreading]):.2f} | |")
    cells = pd.concat(spreading)
    error = (cells["expected"] - cells["loss"]).abs()
    covered = (cells["expected_lower"] <= cells["loss"]) & (
        cells["loss"] <= cells["expected_upper"]
    )
    raw = (cells["synthetic"] - cells["loss"]).abs()
    print(
        f"\n{len(cells)} cells: error of the expected loss {error.mean():.3f} (all cells "
        f"{(rows['expected'] - rows['loss']).abs().mean():.3f}; too high by "
        f"{(cells['expected'] - cells['loss']).mean():.3f} on average), its intervals hold the "
        f"true loss in {covered.mean():.0%}; disagreement without data, were it a loss, "
        f"{raw.mean():.3f}"
    )


def _spread(rows: pd.DataFrame) -> float:
    low, high = np.quantile(rows["loss"], (0.25, 0.75))
    return float(high - low)


def _drawn(pairs: Sequence[pd.DataFrame], score: str) -> Floats:
    """Return the mean rho over pairs of network and way, then that of layers drawn anew.

    All ways of a network, and all scores, have the same layers drawn. A score that is the same for
    all layers tells nothing: its rho is 0.
    """
    found = []
    for own in pairs:
        rng = np.random.default_rng(_seed(own["network"].iloc[0]))
        values, loss = own[score].to_numpy(float), own["loss"].to_numpy(float)
        drawn = rng.integers(0, len(own), (DRAWS, len(own)))
        drawn = np.concatenate([np.arange(len(own))[None], drawn])
        found.append(np.nan_to_num(ranks.spearman(values[drawn], loss[drawn])))
    return np.asarray(np.mean(found, axis=0))


def _seed(network: str) -> int:
    """Return a seed of a network's own: all its ways have the same layers drawn."""
    depth = network.removeprefix("resnet")
    return int(depth) if depth.isdecimal() else zlib.crc32(network.encode())


def _stated(found: Floats) -> str:
    low, high = ranks.interval(found[1:])
    return f"{found[0]:.2f}" if low is None else f"{found[0]:.2f} ({low:.2f} to {high:.2f})"


def _ceiling(rows: pd.DataFrame) -> float:
    """Return the mean rho of the truth with itself, moved by as much as its intervals are wide."""
    loss = rows["loss"].to_numpy(float)
    deviation = (rows["upper"] - rows["lower"]).to_numpy(float) / (2 * NORMAL_95)
    noise = np.random.default_rng(0).standard_normal((DRAWS, len(rows)))
    return float(ranks.spearman(loss + noise * deviation, np.tile(loss, (DRAWS, 1))).mean())


def main() -> None:
    """Make files, put them together, or say what they tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    of_network = commands.add_parser("make")
    of_network.add_argument(
        "networks",
        nargs="+",
        choices=["resnet20", "resnet32", "resnet44", "resnet56", *imagenet.NETWORKS],
    )
    for option in ("--weights", "--data", "--out"):
        of_network.add_argument(option, type=Path, required=True)
    of_folder = commands.add_parser("table")
    of_folder.add_argument("folder", type=Path)
    of_folder.add_argument("--out", type=Path, required=True)
    commands.add_parser("results").add_argument("table", type=Path)
    given = parser.parse_args()
    run: dict[str, Callable[[], None]] = {
        "make": lambda: make(given.networks, given.weights, given.data, given.out),
        "table": lambda: table(given.folder, given.out),
        "results": lambda: results(given.table),
    }
    run[given.command]()


if __name__ == "__main__":
    main()
