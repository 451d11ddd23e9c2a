"""What moved between two checkpoints of a network, layer by layer, and the forms it is kept in."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planescope.files.errors import CheckpointError, one_line
from planescope.files.records import record
from planescope.files.writing import in_utf8, read_saved, write, write_csv, write_parquet
from planescope.hyperplanes.layer import Kind, Skipped, View
from planescope.measurement.matching import Matched
from planescope.measurement.record import Source

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = "planescope.difference/1"
FORMS = (".json", ".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class LayerDifference:
    """What moved in one layer.

    Attributes
    ----------
    name, other : str
        Its name in the first checkpoint, and in the second.
    matched : Matched
        What told that the two are one layer.
    kind, filters, fan_in
        As in `LayerMeasurement`.
    mass_before, mass_after : float or None
        Negative mass.
    cosine_before, cosine_after : float or None
        Mean cosine.
    centre_before, centre_after : float or None
        Mean centre, where a batch norm tells it.
    biased_before, biased_after : bool or None
        By the corrected test, each over the layers of its own checkpoint.
    turned_away, turned_toward : int
        Filters whose normal came to point away from the positive orthant, and toward it, among
        those that have a side in both.
    l2, linf : float or None
        Distances of the weights relative to those of the first checkpoint (METHOD, section 5), in
        the view that was measured; None where the inputs stand in another order.
    zeros_before, zeros_after : float
        Shares of the weights that are 0.
    """

    name: str
    other: str
    matched: Matched
    kind: Kind
    filters: int
    fan_in: int
    mass_before: float | None
    mass_after: float | None
    cosine_before: float | None
    cosine_after: float | None
    centre_before: float | None
    centre_after: float | None
    biased_before: bool | None
    biased_after: bool | None
    turned_away: int
    turned_toward: int
    l2: float | None
    linf: float | None
    zeros_before: float
    zeros_after: float

    @property
    def turned(self) -> int:
        """Filters that changed sides."""
        return self.turned_away + self.turned_toward

    @property
    def same(self) -> bool:
        """Whether every weight is the same."""
        return self.linf == 0.0


@dataclass(frozen=True, kw_only=True)
class Difference:
    """What moved between two checkpoints.

    Attributes
    ----------
    before, after : Source
    view : View
    layers : tuple of LayerDifference
        Those that both have, in the order of the first.
    only_before, only_after : tuple of Skipped
        Layers without a partner, or not measured, each with the reason.
    notes : tuple of str
        What had to be assumed, and what a reader should know.
    """

    before: Source
    after: Source
    view: View
    layers: tuple[LayerDifference, ...]
    only_before: tuple[Skipped, ...] = ()
    only_after: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """What moved most, in a sentence."""
        if not self.layers:
            return "The two have no layer in common."
        count = f"{len(self.layers)} layer{'s' * (len(self.layers) > 1)}"
        moved = [layer for layer in self.layers if not layer.same]
        if not moved:
            return f"Nothing moved: the weights of {count} that both have are the same."
        text = f"{len(moved)} of {count} moved"
        known = [layer for layer in moved if layer.l2 is not None]
        if known:
            most = max(known, key=lambda layer: layer.l2 or 0.0)
            text += f", most of all {most.name} (by {most.l2:.3g} of its length)"
        turned = sum(layer.turned for layer in self.layers)
        filters = sum(layer.filters for layer in self.layers)
        if not turned:
            text += "; no filter changed sides"
        else:
            away = sum(layer.turned_away for layer in self.layers)
            text += (
                f"; {turned} of {filters} filters changed sides, {away} away from the positive "
                f"orthant and {turned - away} toward it"
            )
        return f"{text}; {self._bias()}."

    def _bias(self) -> str:
        before, after = (
            {layer.name for layer in self.layers if getattr(layer, key)}
            for key in ("biased_before", "biased_after")
        )
        if before == after:
            return f"the same {len(after)} layers are biased" if after else "no layer is biased"
        came = [layer.name for layer in self.layers if layer.name in after - before]
        went = [layer.name for layer in self.layers if layer.name in before - after]
        parts = (("came in", came), ("went in", went))
        return "bias " + " and ".join(
            f"{verb} {names[0] if len(names) == 1 else f'{len(names)} layers'}"
            for verb, names in parts
            if names
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data as in the JSON form; no value of it is NaN."""
        return {"schema": SCHEMA, **dataclasses.asdict(self), "verdict": self.verdict}

    def to_json(self, *, indent: int | None = 2) -> str:
        """JSON text by the schema ``planescope.difference/1``."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def to_pandas(self) -> pd.DataFrame:
        """Table with a row a layer that both have."""
        import pandas as pd

        return pd.DataFrame(in_utf8(self._table())).set_index("name")

    def _table(self) -> dict[str, list[Any]]:
        keys = [each.name for each in dataclasses.fields(LayerDifference)]
        return {key: [_plain(getattr(layer, key)) for layer in self.layers] for key in keys}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the difference; the suffix chooses .json, .csv or .parquet.

        CSV holds the layers' table alone; JSON and Parquet hold all that `load` needs.

        Raises
        ------
        UsageError
            If the suffix is none of these.
        OutputError
            If the file cannot be written; nothing is left behind then.
        """

        def as_json(draft: Path) -> None:
            draft.write_text(self.to_json() + "\n", encoding="utf-8")

        def as_csv(draft: Path) -> None:
            write_csv(draft, self._table())

        def as_parquet(draft: Path) -> None:
            whole = {"planescope": self.to_json(indent=None), "schema": SCHEMA}
            write_parquet(draft, self._table(), whole)

        write(path, dict(zip(FORMS, (as_json, as_csv, as_parquet), strict=True)))

    def _repr_html_(self) -> str:
        from html import escape

        shown = ("name", "filters", "mass_before", "mass_after", "turned", "l2")
        head = "".join(f"<th>{key}</th>" for key in shown)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(_short(getattr(x, key)))}</td>" for key in shown) + "</tr>"
            for x in self.layers
        )
        title = f"{self.before.path} → {self.after.path}: {self.verdict}"
        return (
            f"<p>{escape(title)}</p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )


def load(path: str | os.PathLike[str]) -> Difference:
    """Load a difference that `Difference.save` wrote as JSON or Parquet.

    Raises
    ------
    CheckpointError
        If the file is missing, is not such a file, or has another schema version.
    MissingDependencyError
        If a Parquet file needs pyarrow.
    """
    data = read_saved(path, "difference")
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        raise CheckpointError(
            f"{path}: its schema is {found!r:.80}, and this version of planescope reads "
            f"{SCHEMA!r}; compare the checkpoints again"
        )
    try:
        given = {key: each for key, each in data.items() if key not in ("schema", "verdict")}
        return record(Difference, given)
    except ValueError as exc:
        raise CheckpointError(f"{path}: is no whole difference ({one_line(exc)})") from exc


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
