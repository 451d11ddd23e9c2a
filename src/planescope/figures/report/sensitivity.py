"""Sensitivity on the page: a table in colours, and curves, both plain text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planescope.criticality.sensitivity.record import LayerSensitivity, Sensitivity
from planescope.figures.sensitivity import MOST, STRENGTHS, cost_words

# Of a panel, in its own units: width and height, and the margins of what is drawn in it.
WIDTH, HEIGHT = 270, 190
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 12, 38


@dataclass(frozen=True, kw_only=True)
class CellShown:
    """A cell: its text, how much of the colour it has (0 to 1), and what is said of it at length.

    Texts are empty where the way does not apply.
    """

    text: str
    share: float
    title: str


@dataclass(frozen=True, kw_only=True)
class RowShown:
    """A layer of the table."""

    name: str
    parameters: str
    multiply_adds: str
    cells: tuple[CellShown, ...]


@dataclass(frozen=True, kw_only=True)
class CurveShown:
    """Costs of a layer against the strength of a way; points in units of the panel."""

    name: str
    points: tuple[tuple[float, float], ...]
    depth: float  # 0 for the first layer, 1 for the last
    is_most: bool


@dataclass(frozen=True, kw_only=True)
class PanelShown:
    """A way: what its strength is, where its steps stand, and the curves, the dearest last."""

    kind: str
    strength: str
    steps: tuple[tuple[float, str], ...]
    curves: tuple[CurveShown, ...]
    most: str


@dataclass(frozen=True, kw_only=True)
class SensitivityShown:
    """The part of a sensitivity that a page shows.

    `heights` are the marks of the upright axis of all panels: where, and what stands there.
    """

    cost: str
    sentence: str
    about: str
    ways: tuple[str, ...]
    rows: tuple[RowShown, ...]
    panels: tuple[PanelShown, ...]
    heights: tuple[tuple[float, str], ...]
    notes: tuple[str, ...]
    skipped: tuple[tuple[str, tuple[str, ...]], ...]


def sensitivity_shown(found: Sensitivity, /) -> SensitivityShown:
    """Gather what a page shows of a sensitivity."""
    values = [v for layer in found.layers for key in found.ways if (v := found.value(layer, key))]
    most = max(values, default=1.0)
    # Of shares a colour means the same on every page; of other costs the largest is the darkest.
    top = 1.0 if found.is_share else min(MOST, most)
    height = max(0.05, min(top, most))
    reasons: dict[str, list[str]] = {}
    for skipped in found.skipped:
        reasons.setdefault(skipped.reason, []).append(skipped.name)
    return SensitivityShown(
        cost=cost_words(found),
        sentence=found.sentence,
        about=_about(found),
        ways=found.ways,
        rows=tuple(_row(found, layer, top) for layer in found.layers),
        panels=tuple(
            _panel(found, kind, steps, height) for kind, steps in found.ladders.items()
        ),
        heights=tuple((_y(share * height, height), _text(share * height, found))
                      for share in (0.0, 0.5, 1.0)),
        notes=found.notes,
        skipped=tuple((reason, tuple(names)) for reason, names in reasons.items()),
    )  # fmt: skip


def _about(found: Sensitivity) -> str:
    parts = [f"{found.network} on {found.data}"]
    if found.trained is not None:
        parts.append(f"whole network: {found.metric} {found.trained:.4g}")
    if found.expected is not None:
        parts.append(f"whole network: expects itself to be right in {found.expected:.1%}")
    return "; ".join(parts)


def _row(found: Sensitivity, layer: LayerSensitivity, top: float) -> RowShown:
    work = layer.multiply_adds
    return RowShown(
        name=layer.name,
        parameters=f"{layer.parameters:,}",
        multiply_adds="–" if work is None else f"{work:,}",
        cells=tuple(_cell(found, layer, key, top) for key in found.ways),
    )


def _cell(found: Sensitivity, layer: LayerSensitivity, key: str, top: float) -> CellShown:
    value, one = found.value(layer, key), layer.ways.get(key)
    if value is None or one is None:
        return CellShown(text="", share=0.0, title=f"{key} does not apply to {layer.name}")
    title = f"{layer.name}, {key}: {cost_words(found)} {_text(value, found, digits=1)}"
    if found.has_loss and one.lower is not None and one.upper is not None:
        low, high = (_text(bound, found, digits=1) for bound in (one.lower, one.upper))
        title += f", 95 % interval {low} to {high}"
    if one.scope is not None:
        title += "; this branch alone"
    return CellShown(
        text=_text(value, found), share=round(min(1.0, max(0.0, value / top)), 3), title=title
    )


def _text(value: float, found: Sensitivity, digits: int = 0) -> str:
    if found.is_share:
        return f"{100 * value:.{digits}f} %".replace("-0 %", "0 %")
    return f"{value:.2g}" if value < 1e6 else "∞"


def _panel(
    found: Sensitivity, kind: str, steps: Sequence[tuple[str, float]], height: float
) -> PanelShown:
    width = WIDTH - LEFT - RIGHT
    gap = width / max(1, len(steps) - 1)
    x = [LEFT + (gap * i if len(steps) > 1 else width / 2) for i in range(len(steps))]
    last = max(1, len(found.layers) - 1)
    most, name = -1.0, ""
    curves = []
    for number, layer in enumerate(found.layers):
        values = [found.value(layer, key) for key, _ in steps]
        points = tuple(
            (round(at, 1), _y(value, height))
            for at, value in zip(x, values, strict=True)
            if value is not None
        )
        if points:
            curves.append(
                CurveShown(name=layer.name, points=points, depth=number / last, is_most=False)
            )
            if values[-1] is not None and values[-1] > most:
                most, name = values[-1], layer.name
    dearest = [
        CurveShown(name=c.name, points=c.points, depth=c.depth, is_most=True)
        for c in curves
        if c.name == name
    ]
    return PanelShown(
        kind=kind,
        strength=STRENGTHS[kind].replace("\n", " "),
        steps=tuple(
            (round(at, 1), f"{amount:g}") for at, (_, amount) in zip(x, steps, strict=True)
        ),
        curves=(*(c for c in curves if c.name != name), *dearest),
        most=name,
    )


def _y(value: float, height: float) -> float:
    share = min(1.0, max(0.0, value / height))
    return round(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP), 1)
