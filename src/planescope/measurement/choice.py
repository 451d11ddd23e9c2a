"""The choice of layers and of their hyperplanes, and hints about a file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self, TypeVar

from planescope.files.errors import NoLayersError, UsageError, nearest
from planescope.hyperplanes.layer import Kind, Layer, Layout, Skipped, View
from planescope.measurement.source import Found
from planescope.networks.state.axes import Wanted
from planescope.networks.state.layers import Hints

E = TypeVar("E", bound=StrEnum)

DEFAULT_KINDS = (Kind.CONV,)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A choice of layers, by kind and name, and of their hyperplanes."""

    kinds: tuple[Kind, ...] = DEFAULT_KINDS
    pattern: re.Pattern[str] | None = None
    view: View = View.RAW

    @classmethod
    def of(cls, kinds: Iterable[Kind | str] | str, layers: str | None, view: View | str) -> Self:
        """Make a choice of what a user gave.

        Raises
        ------
        UsageError
            If a kind or view is unknown, or the regular expression is broken.
        """
        return cls(
            kinds=chosen_kinds(kinds),
            pattern=compiled(layers, "layers"),
            view=member(View, view, "view"),
        )


def select(found: Found, choice: Choice, /) -> tuple[list[Layer], list[Skipped]]:
    """Choose the layers to measure; the others are given with the reason.

    Raises
    ------
    NoLayersError
        If none is left; the message says which kinds there are.
    """
    chosen, skipped = [], []
    for layer in found.layers:
        if layer.kind not in choice.kinds:
            reason = f"a {layer.kind.words}; measured with --kinds {layer.kind}"
            skipped.append(Skipped(name=layer.name, reason=reason))
        elif choice.pattern is not None and not choice.pattern.search(layer.name):
            skipped.append(Skipped(name=layer.name, reason="its name was not chosen by --layers"))
        else:
            chosen.append(layer)
    if not chosen:
        raise no_layers(found)
    return chosen, skipped


def wanted_layers(
    layers: Sequence[Layer], kinds: Iterable[Kind | str] | str, pattern: str | None, /
) -> set[str]:
    """Return the names of the layers that a user asks for.

    Raises
    ------
    UsageError
        If the pattern or a kind is none, or finds nothing.
    """
    names = [layer.name for layer in layers]
    if pattern:
        parts = [part.strip() for part in pattern.split(",")]
        found: set[str] = set()
        for part in parts:
            match = compiled(part, "layers")
            own = {part} if part in names else {n for n in names if match and match.search(n)}
            if not own:
                raise UsageError(f"no layer is called {part!r}; {nearest(part, names)}")
            found |= own
        if not kinds:
            return found
        allowed = chosen_kinds(kinds)
        return {layer.name for layer in layers if layer.name in found and layer.kind in allowed}
    usual = Kind.CONV if any(layer.kind is Kind.CONV for layer in layers) else Kind.LINEAR
    allowed = chosen_kinds(kinds or [usual])
    return {layer.name for layer in layers if layer.kind in allowed}


def unwanted(layer: Layer, kinds: Iterable[Kind | str] | str, pattern: str | None, /) -> Skipped:
    """Return a layer that `wanted_layers` leaves out, with the reason."""
    reason = f"{layer.kind.value}; taken with --kinds all"
    if pattern:
        reason = f"not chosen by {'--layers and --kinds' if kinds else '--layers'}"
    return Skipped(name=layer.name, reason=reason)


def no_layers(found: Found, /) -> NoLayersError:
    """Return the error of a choice that leaves none; it says which kinds there are."""
    return NoLayersError(f"{found.source.path}: no layer to measure; {_what_there_is(found)}")


def _what_there_is(found: Found) -> str:
    counts = {kind: sum(layer.kind is kind for layer in found.layers) for kind in Kind}
    held = [f"{count} {kind}" for kind, count in counts.items() if count]
    if held:
        return f"it holds layers of the kinds {', '.join(held)} (choose by --kinds and --layers)"
    if not found.skipped:
        return "it holds no weights of convolutions or linear layers"
    first, *others = found.skipped
    rest = f"; and {len(others)} more" if others else ""
    return f"what looks like one was left out: {first.name} ({first.reason}){rest}"


def hints_of(
    *,
    transposed: str | None = None,
    layout: str | Sequence[str] = (),
    norms: Mapping[str, str | None] | Sequence[str] = (),
    eps: float | None = None,
) -> Hints:
    """Read what a user says of a file, as `measure` takes it.

    Raises
    ------
    UsageError
        If an option is invalid.
    """
    layouts = [layout] if isinstance(layout, str) else layout
    if not isinstance(norms, Mapping):
        halves = [pair.rpartition("=") for pair in norms]
        if wrong := next(
            (pair for pair, half in zip(norms, halves, strict=True) if not half[1]), None
        ):
            raise UsageError(f"--norms {wrong!r}: give LAYER=NORM, or LAYER= for none")
        norms = {name: norm or None for name, _, norm in halves}
    if eps is not None and not (0.0 <= eps < math.inf):
        raise UsageError(f"--eps {eps}: give a number that is not negative, as 1e-5")
    axes = Wanted(
        layouts=[_layout(text) for text in layouts],
        transposed=compiled(transposed, "transposed"),
    )
    return Hints(axes=axes, norms=norms, eps=eps)


def _layout(text: str) -> tuple[re.Pattern[str] | None, Layout]:
    pattern, _, name = text.rpartition("=")
    return compiled(pattern or None, "layout"), member(Layout, name, "layout")


def chosen_kinds(kinds: Iterable[Kind | str] | str, /) -> tuple[Kind, ...]:
    """Return the kinds by their names; "all" stands for every one.

    Raises
    ------
    UsageError
        If a name is unknown.
    """
    names = [kinds] if isinstance(kinds, str) else list(kinds)
    if "all" in names:
        return tuple(Kind)
    return tuple(member(Kind, name, "kind") for name in names)


def member(enum: type[E], value: str, option: str, /) -> E:
    """Return the member of a closed choice by its value.

    Raises
    ------
    UsageError
        If there is none.
    """
    try:
        return enum(value)
    except ValueError:
        known = ", ".join(str(member) for member in enum)
        raise UsageError(f"unknown {option} {value!r}; there are {known}") from None


def compiled(pattern: str | None, option: str, /) -> re.Pattern[str] | None:
    """Compile a user's regular expression.

    Raises
    ------
    UsageError
        If it is broken.
    """
    if pattern is None:
        return None
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as exc:
        raise UsageError(f"--{option} {pattern!r}: broken regular expression: {exc}") from exc
