"""The fifth claim: late layers turn away from the orthant, and then back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from planescope.study.claims.effects import ALL, Effect, Estimate, effect_of, mean, with_all

if TYPE_CHECKING:
    import pandas as pd

# What of a network's layers are its late ones: the last of so many parts.
PARTS = 3
WORDS = {
    "away": "at the turn (of the other runs), against initialised",
    "back": "trained, against the turn (of the other runs)",
}


def turns(inner: pd.DataFrame, /) -> Iterator[Effect]:
    """Compare the mean mass of late layers before, at and after their turn, run by run.

    The turn of a run is the epoch at which the mean of the *other* runs of its network is largest:
    its own largest mean would lie above its first and its last by the choice alone. Networks of
    which there is one run, or fewer than three epochs, have none.

    Parameters
    ----------
    inner : DataFrame
        Layers behind a ReLU of comparable runs: `run`, `network`, `layer`, `epoch` and
        `negative_mass`.
    """
    parts: dict[str, dict[str, list[tuple[float, float]]]] = {part: {} for part in WORDS}
    for network, own in inner.groupby("network"):
        names = list(dict.fromkeys(own["layer"]))
        late = own[own["layer"].isin(names[-max(1, len(names) // PARTS) :])]
        means = late.pivot_table(index="epoch", columns="run", values="negative_mass").dropna()
        if means.shape[1] < 2 or len(means) < 3:
            continue
        for run in means:
            turn = int(means.drop(columns=run).mean(axis=1).to_numpy().argmax())
            first, there, last = (float(means[run].iloc[at]) for at in (0, turn, -1))
            parts["away"].setdefault(str(network), []).append((first, there))
            parts["back"].setdefault(str(network), []).append((there, last))
    for part, networks in parts.items():
        estimates: dict[str, Estimate] = {
            network: mean([after - before for before, after in pairs])
            for network, pairs in networks.items()
        }
        for network, estimate in with_all(estimates):
            chosen = [*networks.values()] if network == ALL else [networks[network]]
            before, after = np.mean([np.mean(pairs, axis=0) for pairs in chosen], axis=0)
            yield effect_of(
                estimate,
                claim=5,
                network=network,
                comparison=WORDS[part],
                measure="negative mass of late layers",
                runs=sum(map(len, chosen)),
                others=0,
                before=float(before),
                after=float(after),
            )
