"""The contents of a study's file, field by field."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from planescope.criticality.options import BOUNDS, ResetOptions
from planescope.hyperplanes.layer import KindName
from planescope.study.spec import Step

MAX_RUNS = 100_000  # before any is left out


def _listed(value: Any) -> Any:
    """Return one where a list of them is meant."""
    return [value] if isinstance(value, Mapping) else value


def _counted(value: Any) -> Any:
    """Return a number of seeds where they are meant: 3 is 0, 1, 2."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_RUNS
    return list(range(value)) if is_count else value


Fields = dict[str, Any]
Seeds = Annotated[tuple[int, ...], BeforeValidator(_counted), Field(min_length=1)]
Several = Annotated[tuple[Fields, ...], BeforeValidator(_listed)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rule(_Model):
    """A rule: for runs whose fields have these values (or one of a list), others are set."""

    match: Fields = Field(min_length=1)
    set: Fields = Field(min_length=1)


class Block(_Model):
    """A part of the grid: every combination of what its fields list, with each seed.

    All keys but those below are fields of a config; a single value is a list of one. The fields of
    an item of `zip` go together: their first values, then their second ones.
    """

    model_config = ConfigDict(extra="allow")

    zip: Several = ()
    seeds: Seeds | None = None
    exclude: Several = ()

    @property
    def fields(self) -> Fields:
        """Return the fields that are varied or fixed, other than `zip` and `seeds`."""
        return dict(self.model_extra or {})


# A run, or the machine, decides the others.
_OF_STUDIES = {
    field.name: field.default
    for field in dataclasses.fields(ResetOptions)
    if field.name not in ("devices", "memory")
}
# Values of YAML, of which a list comes as one.
_LISTS = {"kinds": tuple[KindName, ...], "together": tuple[str, ...]}


def _reset_settings() -> type[_Model]:
    """Return the model of a study's `reset`: `ResetOptions`, and the snapshots.

    `snapshots` are those of these epochs that the run kept; by default all before the last.
    """
    types = get_type_hints(ResetOptions) | _LISTS
    fields: dict[str, Any] = {
        name: (types[name], Field(default, **BOUNDS.get(name, {})))
        for name, default in _OF_STUDIES.items()
    }
    snapshots = (tuple[int, ...] | None, None)
    made: type[_Model] = create_model(
        "ResetSettings", __base__=_Model, snapshots=snapshots, **fields
    )
    return made


if TYPE_CHECKING:
    ResetSettings = _Model
else:
    ResetSettings = _reset_settings()


class StudyConfig(_Model):
    """The contents of a study's file.

    Attributes
    ----------
    base : dict
        Fields of a config that all runs share.
    grid : tuple of Block
    seeds : tuple of int
        Of blocks that have none of their own.
    when : tuple of Rule
        Applied in turn to each combination.
    exclude : tuple of dict
        Combinations that are left out.
    make : tuple of {"train", "measure", "reset", "relate"}
        What is made of each run: measure puts its layers at every snapshot into the study's table,
        reset puts layers back, relate holds one against the other over the whole study.
    reset : ResetSettings
        Options of resets, as `ResetOptions` has them.
    """

    # "schema" is a method of pydantic's models.
    form: Literal["planescope.study/1"] = Field("planescope.study/1", alias="schema")
    base: Fields = Field(default_factory=dict)
    grid: Annotated[tuple[Block, ...], BeforeValidator(_listed), Field(min_length=1)] = (Block(),)
    seeds: Seeds | None = None
    when: Annotated[tuple[Rule, ...], BeforeValidator(_listed)] = ()
    exclude: Several = ()
    make: tuple[Step, ...] = ("train", "measure", "reset")
    reset: ResetSettings = ResetSettings()
