"""Fit the model of `predict_critical` to runs whose layers were reset, and see how well it does.

To import this is to import scikit-learn.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict

from planescope.criticality.prediction import (
    FEATURES,
    CriticalModel,
    Evidence,
    Reach,
    features_of_scores,
)
from planescope.criticality.relate import relate
from planescope.files.errors import UsageError
from planescope.training.run import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from planescope.criticality.relation import Relation

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]

# Strengths of the ridge penalty that are tried, as scikit-learn counts them (inverse).
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
FOLDS = 10
# Fewer runs than this cannot be left out in turn in a way that tells anything.
FEWEST_RUNS = 10
# Share of the fitted layers that count as near.
NEAR = 0.99
# The baseline sees only where a layer stands.
PLACE = [FEATURES.index(name) for name in ("position", "first")]


@dataclass(frozen=True, eq=False)
class _Layers:
    """Features, outcome and run of each layer that has them."""

    rows: Floats
    critical: Flags
    run: NDArray[np.int64]

    @classmethod
    def of(cls, relation: Relation) -> _Layers:
        runs = {path: i for i, path in enumerate(relation.runs)}
        rows = np.array([features_of_scores(x.scores, first=x.first) for x in relation.layers])
        told = np.isfinite(rows).all(axis=1)
        return cls(
            rows[told],
            np.array([layer.critical for layer in relation.layers])[told],
            np.array([runs[layer.run] for layer in relation.layers])[told],
        )

    def standardised(self, centre: Floats, scale: Floats) -> _Layers:
        return _Layers((self.rows - centre) / scale, self.critical, self.run)

    def seeing(self, columns: Sequence[int]) -> _Layers:
        """Return the same with some of the features."""
        return _Layers(self.rows[:, columns], self.critical, self.run)


def fit_critical(
    runs: Sequence[Run | str | os.PathLike[str]],
    /,
    *,
    held_out: Sequence[Run | str | os.PathLike[str]] = (),
    critical: float = 0.10,
    trust: bool | str | Collection[str] = False,
) -> CriticalModel:
    """Fit the probability that a layer is critical to runs whose layers were reset to epoch 0.

    Parameters
    ----------
    runs : sequence of paths or Run
        Ten or more.
    held_out : sequence of paths or Run
        On which the fitted model is only tried.
    critical : float
        Relative drop above which, if significant, a layer is critical.
    trust
        As for a `planescope.training.run.Run`; of those given as paths.

    Returns
    -------
    CriticalModel

    Raises
    ------
    UsageError
        If there are too few runs, a run is in both, or all layers are alike.
    CheckpointError, UsageError
        As `planescope.relate`.

    """
    fitted, others = ([Run.open(run, trust=trust) for run in some] for some in (runs, held_out))
    used, kept = ({run.path.resolve() for run in some} for some in (fitted, others))
    if used & kept:
        raise UsageError(f"{min(used & kept)}: is both fitted and held out")
    tried = relate(others, critical=critical, draws=99) if others else None
    data = sorted({run.about.data for run in fitted})
    return fit_relation(relate(fitted, critical=critical, draws=99), tried, data=data)


def fit_relation(
    relation: Relation, held_out: Relation | None = None, /, *, data: Sequence[str]
) -> CriticalModel:
    """Fit as `fit_critical` does, to layers that were related already.

    Parameters
    ----------
    relation : Relation
        Ten runs or more.
    held_out : Relation, optional
        Of other runs.
    data : sequence of str
        Names of the data sets that the runs were trained on, to be told.

    Raises
    ------
    UsageError
        If there are too few runs, or all layers are alike.

    Notes
    -----
    Ridge-penalised logistic regression on standardised features. The penalty is the one with the
    least log loss when whole runs are left out (10 folds); that is the only choice made on the
    fitted runs, and `held_out` tells what it was worth.
    """
    if len(relation.runs) < FEWEST_RUNS:
        raise UsageError(
            f"{len(relation.runs)} runs are too few to fit a model to; give {FEWEST_RUNS} or more"
        )
    raw = _Layers.of(relation)
    if raw.critical.all() or not raw.critical.any():
        raise UsageError("all layers are alike: none is critical, or every one is; give other runs")
    centre, scale = raw.rows.mean(axis=0), raw.rows.std(axis=0)
    scale[scale == 0] = 1.0
    layers = raw.standardised(centre, scale)
    penalty = min(PENALTIES, key=lambda c: log_loss(layers.critical, _left_out(layers, c)))
    model = _fitted(layers, penalty)
    rate, by_place = float(layers.critical.mean()), layers.seeing(PLACE)
    tried = None
    if held_out is not None:
        others = _Layers.of(held_out).standardised(centre, scale)
        place = _probabilities(_fitted(by_place, penalty), others.seeing(PLACE))
        tried = _evidence(others, _probabilities(model, others), place, rate)
    return CriticalModel(
        critical=relation.critical,
        features=FEATURES,
        centre=tuple(map(float, centre)),
        scale=tuple(map(float, scale)),
        coefficients=tuple(map(float, model.coef_[0])),
        intercept=float(model.intercept_[0]),
        reach=_reach(layers),
        networks=tuple(sorted({layer.network for layer in relation.layers})),
        data=tuple(data),
        cross_validated=_evidence(
            layers, _left_out(layers, penalty), _left_out(by_place, penalty), rate
        ),
        held_out=tried,
    )


def _regression(penalty: float) -> LogisticRegression:
    return LogisticRegression(C=penalty, max_iter=1000)


def _fitted(layers: _Layers, penalty: float) -> LogisticRegression:
    return _regression(penalty).fit(layers.rows, layers.critical)


def _probabilities(model: LogisticRegression, layers: _Layers) -> Floats:
    return np.asarray(model.predict_proba(layers.rows)[:, 1])


def _left_out(layers: _Layers, penalty: float) -> Floats:
    """Return the probabilities of each layer by a fit that did not see its run."""
    folds = GroupKFold(min(FOLDS, len(set(layers.run))))
    found = cross_val_predict(
        _regression(penalty),
        layers.rows,
        layers.critical,
        groups=layers.run,
        cv=folds,
        method="predict_proba",
    )
    return np.asarray(found[:, 1])


def _evidence(layers: _Layers, found: Floats, by_place: Floats, rate: float) -> Evidence:
    critical = layers.critical
    mixed = bool(critical.any() and not critical.all())
    slope = intercept = None
    if mixed:
        odds = np.log(found / (1 - found))[:, None]
        line = LogisticRegression(C=np.inf, max_iter=1000).fit(odds, critical)
        slope, intercept = float(line.coef_[0, 0]), float(line.intercept_[0])
    return Evidence(
        runs=len(set(layers.run)),
        layers=len(critical),
        critical=int(critical.sum()),
        brier=float(brier_score_loss(critical, found)),
        log_loss=float(log_loss(critical, found, labels=[False, True])),
        brier_of_rate=float(np.mean((rate - critical) ** 2)),
        brier_of_position=float(brier_score_loss(critical, by_place)),
        auc=float(roc_auc_score(critical, found)) if mixed else None,
        calibration_slope=slope,
        calibration_intercept=intercept,
    )


def _reach(layers: _Layers) -> Reach:
    precision = np.linalg.pinv(np.cov(layers.rows, rowvar=False))
    square = np.einsum("ij,jk,ik->i", layers.rows, precision, layers.rows)
    counts = np.bincount(layers.run)
    return Reach(
        precision=tuple(tuple(map(float, row)) for row in precision),
        limit=float(np.quantile(square, NEAR)),
        fewest=int(counts[counts > 0].min()),
        most=int(counts.max()),
    )
