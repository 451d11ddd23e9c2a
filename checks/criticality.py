"""Hold what `planescope predict` says of layers against resets with labels.

    planescope study studies/critical-development.yaml --out development
    python -m checks.criticality table development --out studies/results/critical-development.csv
    python -m checks.criticality results studies/results/critical-development.csv

`table` writes a line a layer of each finished run: the loss of a reset, measured with labels, and
the scores that look at none; `--plain` takes only runs of all classes, labels and pixels as given.
Broken off, the same command goes on behind the last whole run.
`results` makes the tables of docs/results/critical.md from that file alone, without the weights.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import planescope as ps
from planescope.criticality.prediction.cuts import verdict
from planescope.criticality.relation import ranks
from planescope.data.options import DataOptions, Resize
from planescope.files.errors import PlanescopeError
from planescope.files.writing import replacing
from planescope.hyperplanes.layer import Kind
from planescope.training.folder.status import State

# Unlabelled inputs: of the training examples, so that none is one on which the truth was measured.
INPUTS = 400
DRAWS = 9999
TRUTH = ("loss", "lower", "upper", "critical")
SCORES = ("unlabelled", "synthetic", "l2", "agreement")
FIELDS = (
    *("run", "network", "width", "data", "optimiser", "rate", "augment", "seed", "layer", "kind"),
    *("examples", "trained", "chance", *TRUTH, *SCORES, "expected"),
    *("expected_lower", "expected_upper", "seconds"),
)
# Layers whose loss is decided by the truth itself.
DECIDED = ("yes", "no")


def rows_of(run: ps.Run) -> Iterator[dict[str, Any]]:
    """Give a row for each layer of a run whose layers were put back to epoch 0."""
    resets, config = ps.Resets.load(run.resets), run.config
    cells = {cell.layer: cell for cell in resets.cells if cell.snapshot == 0}
    kinds = {
        layer.name: layer for layer in resets.layers
        if layer.kind is not Kind.LINEAR or config.network.startswith("mlp")
    }  # fmt: skip
    names = ",".join(name for name in cells if name in kinds)
    began = time.perf_counter()
    shape = _shape(config)
    synthetic = ps.predict_critical(run, layers=names, input_shape=shape)
    seconds = time.perf_counter() - began
    unlabelled = ps.predict_critical(
        run, layers=names, data=config.data, data_path=config.data_path, split="train",
        examples=INPUTS,
        data_options=DataOptions(resize=Resize.PAD_32 if shape == (1, 32, 32) else Resize.NATIVE),
    )  # fmt: skip
    files = run.snapshots
    measured = ps.measure(files[max(files)], init=files[0], kinds="all", network=run.structure)
    distances = {layer.name: layer.l2 for layer in measured.layers}
    by_name = {layer.name: layer for layer in synthetic.layers}
    for one in unlabelled.layers:
        cell, layer = cells[one.name], kinds[one.name]
        yield {
            "run": run.path.name, "network": config.network, "width": config.width,
            "data": config.data, "optimiser": config.optimiser, "rate": config.learning_rate,
            "augment": config.augment, "seed": config.seed, "layer": one.name,
            "kind": one.kind.value, "examples": resets.trained.examples,
            "trained": resets.trained.value, "chance": resets.chance, "loss": cell.loss,
            "lower": cell.loss_low, "upper": cell.loss_high,
            "critical": cell.critical.value if cell.critical else "",
            "unlabelled": one.score, "synthetic": by_name[one.name].score,
            "l2": distances[one.name], "agreement": layer.agreement,
            "expected": one.loss, "expected_lower": one.lower, "expected_upper": one.upper,
            "seconds": round(seconds, 2),
        }  # fmt: skip


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _shape(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of what a run's network takes: of the data sets that are used."""
    if config.data == "cifar10":
        return 3, 32, 32
    padded = config.network.startswith("vgg") or config.resize is not None
    side = 32 if padded else 28
    return 1, side, side


def _is_plain(config: Any) -> bool:
    """Tell whether labels and pixels of a run are as given, and of all classes."""
    return (
        config.classes is None and config.labels == "given" and not config.label_noise
        and not config.shuffle_pixels and not config.data.startswith("noise:")
    )  # fmt: skip


def table(study: Path, out: Path, *, plain: bool = False) -> None:
    """Write the rows of all finished runs that the file has not yet."""
    kept: list[dict[str, Any]] = []
    if out.is_file():
        with out.open(newline="", encoding="utf-8") as file:
            kept = list(csv.DictReader(file))
    there = {row["run"] for row in kept}
    for path in sorted((study / "runs").iterdir()):
        # Of a study's own architectures, which lie beside this module.
        run = ps.Run(path, trust=True)
        if path.name in there or not run.exists or run.status.state is not State.FINISHED:
            continue
        if not run.resets.is_file() or (plain and not _is_plain(run.config)):
            continue
        try:
            rows = list(rows_of(run))
        except PlanescopeError as exc:  # such as a network of one answer, which is told
            print(f"{path.name}: {exc}", file=sys.stderr)
            continue
        kept += [{key: _short(value) for key, value in row.items()} for row in rows]
        with replacing(out) as draft, draft.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
        print(f"{path.name}: {len(rows)} layers", flush=True)


# --- what the rows say ---------------------------------------------------------------------------


def usable(rows: pd.DataFrame) -> pd.DataFrame:
    """Leave out the layers of networks that are no better than chance, which have no loss."""
    return rows[rows["critical"].isin(("yes", "no", "undecided"))]


def within(rows: pd.DataFrame, score: str, weights: Any = None) -> float:
    """Give the AUC over pairs of layers of one network, runs weighted by their pairs."""
    runs, names = pd.factorize(rows["run"], sort=True)
    counts = np.ones(len(names)) if weights is None else weights
    is_critical = (rows["loss"] > 0.1).to_numpy()
    return float(ranks.auc_within(rows[score].to_numpy(float), is_critical, runs, counts[None])[0])


def pooled(rows: pd.DataFrame, score: str, weights: Any = None) -> float:
    """Give the AUC over all pairs of layers."""
    counts = np.ones(len(rows))
    if weights is not None:
        counts = weights[pd.factorize(rows["run"], sort=True)[0]]
    is_critical = (rows["loss"] > 0.1).to_numpy()
    return float(ranks.auc(rows[score].to_numpy(float), is_critical, counts[None])[0])


Statistic = Callable[[pd.DataFrame, str, Any], float]


def interval(rows: pd.DataFrame, of: Callable[[pd.DataFrame, Any], float]) -> str:
    """Give a statistic with its 95 % interval, runs drawn anew."""
    runs = rows["run"].nunique()
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(runs, np.full(runs, 1 / runs), DRAWS // 10).astype(float)
    values = np.array([of(rows, weights) for weights in drawn])
    low, high = np.nanquantile(values, (0.025, 0.975))
    return f"{of(rows, None):.3f} ({low:.3f} to {high:.3f})"


def areas(rows: pd.DataFrame) -> Iterator[Sequence[str]]:
    """Yield lines of the table of areas: pooled, decided, within networks, and against l2."""
    decided = rows[rows["critical"].isin(DECIDED)]

    def ahead(score: str) -> Callable[[pd.DataFrame, Any], float]:
        return lambda r, w: pooled(r, score, w) - pooled(r, "l2", w)

    for score in SCORES:
        yield (
            score,
            interval(rows, lambda r, w, s=score: pooled(r, s, w)),  # type: ignore[misc]
            interval(decided, lambda r, w, s=score: pooled(r, s, w)),  # type: ignore[misc]
            interval(rows, lambda r, w, s=score: within(r, s, w)),  # type: ignore[misc]
            "" if score == "l2" else interval(decided, ahead(score)),
        )


def verdicts(rows: pd.DataFrame) -> Iterator[Sequence[str]]:
    """Yield how often a verdict is right, of layers that the truth itself decides."""
    decided = rows[rows["critical"].isin(DECIDED)]
    by_definition = np.where(
        decided["expected_lower"] > 0.1, "yes",
        np.where(decided["expected_upper"] < 0.1, "no", "undecided"),
    )  # fmt: skip
    told = {"unlabelled": by_definition, "synthetic": decided["synthetic"].map(verdict).to_numpy()}
    for name, said in told.items():
        for word in DECIDED:
            own = decided[said == word]
            right = int((own["critical"] == word).sum())
            yield name, word, f"{len(own)}", f"{right / len(own):.1%}" if len(own) else ""
        yield name, "undecided", f"{int((said == 'undecided').sum())}", ""


def results(paths: Sequence[Path]) -> None:
    """Print the tables of the page of results."""
    for path in paths:
        rows = usable(pd.read_csv(path))
        decided = rows["critical"].isin(DECIDED).sum()
        critical = int((rows["critical"] == "yes").sum())
        print(
            f"{path.stem}: {rows['run'].nunique()} runs, {len(rows)} layers, {decided} decided, "
            f"{critical} of them critical\n"
        )
        _print(
            ("score", "AUC, all layers", "decided layers", "within networks", "decided, minus l2"),
            areas(rows),
        )
        _print(("inputs", "verdict", "layers", "right"), verdicts(rows))
        _print(("part", "runs", "layers", "unlabelled", "synthetic", "l2"), parts(rows))
        error = (rows["expected"] - rows["loss"]).abs().mean()
        raw = (rows["synthetic"] - rows["loss"]).abs().mean()
        print(
            f"error of the expected loss, unlabelled: {error:.3f}; of the disagreement, were it a "
            f"loss: {raw:.3f}"
        )
        _print(("score", "mean rho with the loss, within networks", "minus l2"), rhos(rows))
        print(f"seconds without data, all set-up included: median {rows['seconds'].median():.1f}\n")


def rhos(rows: pd.DataFrame) -> Iterator[Sequence[str]]:
    """Yield the mean over runs of Spearman's rho with the loss, and what it is ahead of l2."""
    of_run = pd.DataFrame({
        score: {
            run: float(ranks.spearman(own[score].to_numpy(float), own["loss"].to_numpy(float)))
            for run, own in rows.groupby("run") if len(own) >= ranks.FEWEST
        }
        for score in SCORES
    })  # fmt: skip
    of_run = of_run.reset_index(names="run")
    for score in SCORES:
        ahead = of_run.assign(ahead=of_run[score] - of_run["l2"])
        yield (
            score,
            interval(of_run, lambda r, w, s=score: _weighted(r[s], w)),  # type: ignore[misc]
            "" if score == "l2" else interval(ahead, lambda r, w: _weighted(r["ahead"], w)),
        )


def _weighted(values: pd.Series, weights: Any) -> float:
    there = values.notna().to_numpy()
    kept = None if weights is None else weights[there]
    return float(np.average(values.to_numpy()[there], weights=kept))


def parts(rows: pd.DataFrame) -> Iterator[Sequence[str]]:
    """Yield areas on decided layers by network, norm and data."""
    decided = rows[rows["critical"].isin(DECIDED)]
    normed = decided["network"].str.contains("_bn|_gn|resnet|norm", regex=True)
    for by in (decided["network"], decided["data"], normed.map({True: "norm", False: "no norm"})):
        for name, own in decided.groupby(by):
            found = (f"{pooled(own, s):.3f}" for s in ("unlabelled", "synthetic", "l2"))
            yield str(name), str(own["run"].nunique()), str(len(own)), *found


def _print(titles: Sequence[str], lines: Iterator[Sequence[str]]) -> None:
    print("| " + " | ".join(titles) + " |\n|" + " --- |" * len(titles))
    for line in lines:
        print("| " + " | ".join(line) + " |")
    print()


def main() -> None:
    """Make the table of a study, or say what tables tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    of_study = commands.add_parser("table")
    of_study.add_argument("study", type=Path)
    of_study.add_argument("--plain", action="store_true")
    of_study.add_argument("--out", type=Path, required=True)
    commands.add_parser("results").add_argument("tables", type=Path, nargs="+")
    given = parser.parse_args()
    if given.command == "table":
        table(given.study, given.out, plain=given.plain)
    else:
        results(given.tables)


if __name__ == "__main__":
    main()
