"""A study's YAML: a grid of configs, and the list of runs that it comes to."""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_origin

from pydantic import ValidationError

from planescope.data.sets.sources import check_name
from planescope.files.errors import PlanescopeError, UsageError, nearest
from planescope.files.yaml import Document, read_document, shown
from planescope.networks import paper
from planescope.study.config import MAX_RUNS, Block, Fields, ResetSettings, StudyConfig
from planescope.study.spec import DEFAULTS, Spec, name_of
from planescope.training.config import FieldError, RunConfig

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    # A rule to match configs by, and the values that each of its fields may have.
    Values = Mapping[str, Any]

MAX_QUESTIONS = 5_000_000  # conditions that are asked of a block's combinations


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A study's file, and the runs it comes to, each under a name of its own."""

    document: Document
    config: StudyConfig
    specs: tuple[Spec, ...]


def read_plan(path: str | os.PathLike[str], /) -> Plan:
    """Read a study's YAML and list its runs.

    Raises
    ------
    UsageError
        If a field is unknown or a value is invalid, if no run is left, or two are one; the message
        has the line.
    CheckpointError
        If the file cannot be read.
    """
    document = read_document(path)
    config = _study_config(document)
    return Plan(document=document, config=config, specs=tuple(_Planner(document, config).specs()))


def _study_config(document: Document) -> StudyConfig:
    try:
        return StudyConfig(**document.values)
    except ValidationError as exc:
        error = exc.errors()[0]
    except TypeError:  # a field that is no Python name all the same
        raise document.error("there is a field without a name") from None
    raise document.error(_sentence(error), *error["loc"])


def _sentence(error: ErrorDetails) -> str:
    field = ".".join(str(step) for step in error["loc"] if isinstance(step, str))
    match error["type"]:
        case "extra_forbidden":
            known = ResetSettings if error["loc"][0] == "reset" else StudyConfig
            names = [field.alias or name for name, field in known.model_fields.items()]
            name = str(error["loc"][-1])
            return f"{name}: there is no such field; {nearest(name, names)}"
        case "too_short":
            return f"{field}: is empty; give a value, or leave it out"
    return f"{field}: {error['msg'].removeprefix('Input ')}, not {shown(error['input'])}"


class _Planner:
    """Lists the runs of a study; each value is checked once, however many runs have it."""

    def __init__(self, document: Document, config: StudyConfig) -> None:
        self._document, self._config = document, config
        self._combined = 0

    def specs(self) -> Iterator[Spec]:
        config = self._config
        if "train" not in config.make:
            problem = "make: leaves out train, which all else is made from; add it"
            raise self._document.error(problem, "make")
        base = {**DEFAULTS, **self._fields(config.base, "base")}
        rules = [
            (_Condition(self, rule.match, "when", i, "match"),
             self._fields(rule.set, "when", i, "set"))
            for i, rule in enumerate(config.when)
        ]  # fmt: skip
        excluded = [_Condition(self, e, "exclude", i) for i, e in enumerate(config.exclude)]
        lines: dict[str, int] = {}
        for index, block in enumerate(config.grid):
            excluded_here = [
                _Condition(self, fields, "grid", index, "exclude", i)
                for i, fields in enumerate(block.exclude)
            ]
            line = self._document.line("grid", index)
            for settings in self._combinations(block, index):
                full = base | settings
                for condition, changes in rules:
                    if condition.holds(full):
                        full |= changes
                # All are asked, so that one which never holds is found.
                held = [condition.holds(full) for condition in (*excluded, *excluded_here)]
                if any(held):
                    continue
                spec = self._spec(full)
                self._check_new(spec, line, lines)
                yield spec
            for condition in excluded_here:
                condition.must_have_held()
        if not lines:
            raise self._document.error("exclude: leaves no run", "exclude")
        for condition in (*(condition for condition, _ in rules), *excluded):
            condition.must_have_held()

    def _spec(self, full: Values) -> Spec:
        settings = tuple(
            (field, value) for field, value in full.items() if value != DEFAULTS[field]
        )
        return Spec(
            name=name_of(full),
            settings=settings,
            make=self._config.make,
            reset=self._reset,
        )

    @functools.cached_property
    def _reset(self) -> tuple[tuple[str, Any], ...]:
        return tuple(self._config.reset.model_dump().items())

    def _check_new(self, spec: Spec, line: int, lines: dict[str, int]) -> None:
        if spec.name in lines:
            raise UsageError(
                f"{self._document.path}, line {line}: makes {spec.name} a second time, which line "
                f"{lines[spec.name]} makes already; take it out of one, by exclude for example"
            )
        lines[spec.name] = line

    def _combinations(self, block: Block, index: int) -> Iterator[Fields]:
        """Yield every combination of a block's values."""
        axes: list[list[Fields]] = []
        for field, values in block.fields.items():
            place = ("grid", index, field)
            axes.append([{field: value} for value in self._many(field, values, *place)])
        for number, zipped in enumerate(block.zip):
            axes.append(self._zipped(zipped, "grid", index, "zip", number))
        if block.seeds is not None:
            axes.append(self._seeds(block.seeds, "grid", index, "seeds"))
        elif self._config.seeds is not None:
            axes.append(self._seeds(self._config.seeds, "seeds"))
        self._check_once(axes, index)
        self._check_count(math.prod(map(len, axes)), block, index)
        for parts in itertools.product(*axes):
            yield {field: value for part in parts for field, value in part.items()}

    def _check_count(self, combinations: int, block: Block, index: int) -> None:
        """Refuse lists of more combinations than anybody can wait for: few are enough."""
        self._combined += combinations
        conditions = len(self._config.when) + len(self._config.exclude) + len(block.exclude)
        if self._combined > MAX_RUNS or combinations * conditions > MAX_QUESTIONS:
            problem = f"comes to more than {MAX_RUNS:,} runs; make several studies of it"
            raise self._document.error(problem, "grid", index)

    def _seeds(self, seeds: Sequence[int], *place: str | int) -> list[Fields]:
        return [{"seed": seed} for seed in self._many("seed", list(seeds), *place)]

    def _zipped(self, zipped: Fields, *place: str | int) -> list[Fields]:
        columns = {
            field: self._many(field, values, *place, field, again=True)
            for field, values in zipped.items()
        }
        lengths = {field: len(values) for field, values in columns.items()}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{field} {length}" for field, length in lengths.items())
            problem = f"zip: its lists must be of one length, and have {found} values"
            raise self._document.error(problem, *place)
        rows = zip(*columns.values(), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def _check_once(self, axes: Iterable[Sequence[Fields]], index: int) -> None:
        """Refuse a field that is varied in two places."""
        seen: set[str] = set()
        for axis in axes:
            for field in axis[0] if axis else ():
                if field in seen:
                    where = "seed, seeds" if field == "seed" else field
                    problem = f"{where}: is varied in two places of one block; keep one"
                    raise self._document.error(problem, "grid", index, field)
                seen.add(field)

    def _fields(self, fields: Fields, *place: str | int) -> Fields:
        return {field: self._value(field, value, *place, field) for field, value in fields.items()}

    def _many(self, field: str, values: Any, *place: str | int, again: bool = False) -> list[Any]:
        """Return the values of a list, or one that is alone.

        `again`: whether they may be repeated.
        """
        if not _is_list_of(field, values):
            return [self._value(field, values, *place)]
        if not values:
            problem = f"{field}: is empty; give a value, or leave it out"
            raise self._document.error(problem, *place)
        found: list[Any] = []
        seen: set[str] = set()  # as text: a value may be a list
        for index, value in enumerate(values):
            checked = self._value(field, value, *place, index)
            if repr(checked) in seen and not again:
                problem = f"{field}: {value!r} is there twice, which makes two runs of one name"
                raise self._document.error(problem, *place, index)
            seen.add(repr(checked))
            found.append(checked)
        return found

    def _value(self, field: str, value: Any, *place: str | int) -> Any:
        try:
            checked = getattr(RunConfig(**{str(field): value}), str(field))
            _check_meaning(str(field), checked)
        except FieldError as exc:
            raise self._document.error(exc, *place) from None
        except PlanescopeError as exc:
            raise self._document.error(f"{field}: {exc}", *place) from None
        return checked

    def refuse(self, problem: str, *place: str | int) -> None:
        """Raise what is wrong at a place of the file."""
        raise self._document.error(problem, *place)

    def values_of(self, field: str, values: Any, *place: str | int) -> list[Any]:
        """Return the values that a condition lets a field have."""
        return self._many(field, values, *place)


class _Condition:
    """Fields and the values that they must have."""

    def __init__(self, planner: _Planner, fields: Fields, *place: str | int) -> None:
        self._planner, self._place = planner, place
        self._wanted = [
            (field, planner.values_of(field, values, *place, field))
            for field, values in fields.items()
        ]
        self._held = False

    def holds(self, full: Values) -> bool:
        """Return whether a combination has these values."""
        if all(full[field] in values for field, values in self._wanted):
            self._held = True
            return True
        return False

    def must_have_held(self) -> None:
        """Refuse a condition that no combination met: it would be a slip without a word."""
        if not self._held:
            said = ", ".join(f"{field} {values}" for field, values in self._wanted)
            self._planner.refuse(f"no run has {said}; correct it or take it out", *self._place)


def _is_list_of(field: str, values: Any) -> bool:
    """Tell values of a field from one value, which may be a list itself."""
    if not isinstance(values, list):
        return False
    known = RunConfig.model_fields.get(str(field))
    if known is None or get_origin(known.annotation) is not tuple:
        return True
    return bool(values) and all(isinstance(value, list) for value in values)


def _check_meaning(field: str, value: Any) -> None:
    """Refuse now what every run would be refused for."""
    if field == "network" and ":" not in value:
        paper.network(value)
    elif field == "data":
        check_name(value)
    elif field == "devices" and value > 1:
        raise UsageError("a run of a study has one device; leave it out")
