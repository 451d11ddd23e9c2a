"""The second null beside initialisation: masses that are reached where nothing can be learned.

Under losses whose expected gradient pushes weights negative behind activations of positive mean,
masses drift whatever the data (arXiv 2605.17659). How far, no closed form says; runs on Gaussian
noise with random labels, trained alike, do.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from planescope.files.errors import UsageError, counted
from planescope.files.results.result import Table, columns_of, texts_of
from planescope.hyperplanes.chance import CONFIDENCE
from planescope.study.claims.conditions import CENTRED, NOISE, condition_of

if TYPE_CHECKING:
    import pandas as pd

    from planescope.study.folder import Study

# What two runs must share so that one tells how far the other drifts.
ALIKE = (
    "network", "width", "examples", "epochs", "batch_size", "optimiser", "learning_rate",
    "weight_decay", "schedule",
)  # fmt: skip
FEWEST = 3
COVERAGE = CONFIDENCE
COLUMNS = (
    "network", "condition", "layer", "runs", "initial mass", "mass", "drift alone", "beyond drift",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Drifted:
    """One layer of the runs of a condition, against runs on noise that were trained alike.

    Attributes
    ----------
    network, condition, layer : str
    runs : int
    initial, mass : float
        Mean negative mass at epoch 0 and at the last.
    noise_runs : int
    noise : float
        Mean of the runs on noise.
    low, high : float
        Where one further run on noise lies with a probability of 95 %: Student's prediction
        interval, cut to [0, 1]. Its spread is no less than that of as many filters drawn one by
        one: a few runs of few filters may happen to have the same mass.
    beyond : int
        How many of the runs lie outside it.
    """

    network: str
    condition: str
    layer: str
    runs: int
    initial: float
    mass: float
    noise_runs: int
    noise: float
    low: float
    high: float
    beyond: int

    def cells(self) -> tuple[str, ...]:
        """Return the texts of a table's row."""
        return (
            self.network,
            self.condition,
            self.layer,
            str(self.runs),
            f"{self.initial:.2f}",
            f"{self.mass:.2f}",
            f"{self.low:.2f} to {self.high:.2f} ({self.noise_runs})",
            f"{self.beyond} of {self.runs}",
        )


@dataclass(frozen=True, kw_only=True)
class Drift(Table):
    """Masses of a study's runs against the band of drift alone.

    Attributes
    ----------
    study : str
        Path of its folder.
    layers : tuple of Drifted
    notes : tuple of str
        Runs that have no band, and why.
    """

    SCHEMA: ClassVar[str] = "planescope.drift/1"
    WHAT: ClassVar[str] = "drift"
    REMEDY: ClassVar[str] = "compare again"
    DERIVED: ClassVar[tuple[str, ...]] = ("sentence",)

    study: str
    layers: tuple[Drifted, ...]
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """Return how many of the masses lie beyond drift, in words."""
        beyond, whole = (sum(getattr(x, key) for x in self.layers) for key in ("beyond", "runs"))
        text = (
            f"{beyond} of {whole} masses lie beyond what drift alone gives with a probability of "
            f"{COVERAGE:.0%}. Within it, that a layer turned does not show that it learned."
        )
        if wide := sum(layer.runs for layer in self.layers if layer.high >= 1):
            text += (
                f" For {wide} of them the band reaches 1, so that no turn away from the orthant, "
                "however far, lies beyond it; more runs on noise make it narrower."
            )
        return text

    def columns(self) -> dict[str, list[Any]]:
        """Return the table's columns: a row a network, condition and layer."""
        return columns_of(self.layers, Drifted)

    def _summary(self) -> tuple[str, Mapping[str, Sequence[Any]]]:
        """Return what a notebook shows."""
        return self.sentence, texts_of((layer.cells() for layer in self.layers), COLUMNS)


def drift_band(study: Study | str | os.PathLike[str], /) -> Drift:
    """Hold the masses of a study's runs against those of its runs on noise.

    Parameters
    ----------
    study : Study or path
        Some of its runs have ``data: noise:NAME``. Each of them stands for the runs of its network
        with the same width, examples, epochs, batch size, optimiser, rate, decay and schedule.

    Raises
    ------
    CheckpointError
        If there is no study, nothing of it is made yet, or a file is damaged.
    UsageError
        If no network has three runs on noise, and other runs to hold against them.
    """
    from planescope.study.folder import Study

    whole = study if isinstance(study, Study) else Study(study)
    return drift_of(whole.table(), study=str(whole.path))


def drift_of(table: pd.DataFrame, /, *, study: str = "") -> Drift:
    """Hold the masses of a table's runs against those of its runs on noise.

    Parameters
    ----------
    table : DataFrame
        As `Study.table` gives it.
    study : str
        What to call it.

    Raises
    ------
    UsageError
        As `drift_band`.
    """
    runs = table.assign(condition=condition_of(table))
    # Where filters are centred the sign of a mass is rounding.
    centred = runs["condition"].str.contains(CENTRED)
    notes: list[str] = []
    if count := runs.loc[centred, "run"].nunique():
        verb = "is" if count == 1 else "are"
        notes.append(
            f"{counted(count, 'run')} with centred filters {verb} left out: these have no side"
        )
    runs = runs[~centred]
    layers: list[Drifted] = []
    for _, alike in runs.groupby(list(ALIKE), observed=True, dropna=False, sort=False):
        network = str(alike["network"].iloc[0])
        noise = _ends(alike[alike["condition"] == NOISE])
        others = alike[alike["condition"] != NOISE]
        if len(noise) < FEWEST:
            if len(others):
                notes.append(
                    f"{network}: {counted(len(noise), 'run')} on noise, and {FEWEST} are "
                    "needed for a band"
                )
            continue
        for condition, own in others.groupby("condition", sort=False):
            layers += _against(network, str(condition), own, noise)
    if not layers:
        raise UsageError(
            f"{study}: has no network with {FEWEST} runs on noise (data: noise:NAME) and others "
            "that were trained alike"
        )
    return Drift(study=study, layers=tuple(layers), notes=tuple(notes))


def _against(
    network: str, condition: str, own: pd.DataFrame, noise: pd.DataFrame
) -> Iterator[Drifted]:
    ends, starts = _ends(own), _starts(own)
    for name in ends:
        values = noise[name].dropna().to_numpy(float)
        masses = ends[name].dropna().to_numpy(float)
        if len(values) < FEWEST or not len(masses):
            continue
        rows = own[own["layer"].astype(str) == str(name)]
        low, high = prediction(values, filters=int(rows["filters"].max()))
        yield Drifted(
            network=network,
            condition=condition,
            layer=str(name),
            runs=len(masses),
            initial=float(starts[name].mean()),
            mass=float(masses.mean()),
            noise_runs=len(values),
            noise=float(values.mean()),
            low=low,
            high=high,
            beyond=int(((masses < low) | (masses > high)).sum()),
        )


def prediction(
    values: Sequence[float] | np.ndarray[Any, Any], /, *, filters: int
) -> tuple[float, float]:
    """Return where one more mass lies with a probability of 95 %, by Student's law.

    Parameters
    ----------
    values : sequence of float
        At least two, of runs that are alike but for their seeds.
    filters : int
        Of the layer.
    """
    from scipy.special import stdtrit

    count, centre = len(values), float(np.mean(values))
    # Laplace's estimate: where all filters of all runs face one way, one of the next may not.
    share = (centre * filters * count + 1) / (filters * count + 2)
    spread = max(float(np.std(values, ddof=1)), math.sqrt(share * (1 - share) / filters))
    half = float(stdtrit(count - 1, 0.5 + COVERAGE / 2)) * spread * math.sqrt(1 + 1 / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def _ends(rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row a run: the masses of its layers after its last epoch, where it is finished."""
    return _masses(rows[rows["epoch"] == rows["epochs"]])


def _starts(rows: pd.DataFrame) -> pd.DataFrame:
    return _masses(rows[rows["epoch"] == 0])


def _masses(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.assign(run=rows["run"].astype(str), layer=rows["layer"].astype(str))
    order = list(dict.fromkeys(rows["layer"]))
    return rows.pivot(index="run", columns="layer", values="negative_mass")[order]
