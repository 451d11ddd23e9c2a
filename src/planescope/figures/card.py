"""A section for a model card: the table of a measurement in Markdown, and its figure beside it."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from planescope.figures.canvas import save
from planescope.figures.overview import overview
from planescope.files.errors import printable
from planescope.files.targets import CARDS, check_target
from planescope.files.writing import replacing
from planescope.measurement.record import LayerMeasurement, Measurement

_HEAD = ("layer", "filters", "fan-in", "negative mass", "mean cosine", "q mass", "biased")
_METHOD = "https://arxiv.org/abs/2003.07797"


def write_card(measurement: Measurement, path: str | os.PathLike[str], /) -> None:
    """Write a section for a model card, as those of the Hugging Face hub: Markdown and a picture.

    The picture lies beside it, of the same name with the suffix .png.

    Parameters
    ----------
    measurement : Measurement
    path : path
        Its name ends in .md.

    Raises
    ------
    UsageError
        If the name ends otherwise.
    OutputError
        If a file cannot be written; that file is left as it was then.
    """
    check_target(path, CARDS)
    picture = picture_of(path)
    save(overview(measurement), picture)
    with replacing(path) as draft:
        draft.write_text(card(measurement, picture.name), encoding="utf-8", newline="\n")


def picture_of(path: str | os.PathLike[str], /) -> Path:
    """Return where the picture of a card lies."""
    return Path(path).with_suffix(".png")


def card(measurement: Measurement, picture: str, /) -> str:
    """Return the Markdown of a section; names that a file has given cannot mark anything up.

    Parameters
    ----------
    picture : str
        What the section's picture is called, as seen from the card.
    """
    lines = [
        "## Hyperplanes of the layers",
        "",
        f"![Negative mass of each layer, and the cosines of one]({quote(picture)})",
        "",
        *_table(measurement),
        "",
        _text(measurement.verdict),
        "",
        "*Negative mass*: share of filters whose normals point away from the positive orthant, "
        "where the data behind a ReLU lie; chance gives 1/2. *Mean cosine*: of the normals with "
        "(1, …, 1). *q*: corrected p-value of the mass. That a layer has turned away says that "
        "it was moved, not that it has learned.",
        "",
        f"Measured with planescope from the weights alone, {measurement.view} view; [method]"
        f"({_METHOD}).",
        *_left_out(measurement),
    ]
    return "\n".join(lines) + "\n"


def _table(measurement: Measurement) -> Iterator[str]:
    yield f"| {' | '.join(_HEAD)} |"
    yield f"| --- {'| ---: ' * (len(_HEAD) - 2)}| --- |"
    for layer in measurement.layers:
        yield f"| {' | '.join(_cells(layer))} |"


def _cells(layer: LayerMeasurement) -> list[str]:
    turned = "" if not layer.biased or layer.negative_mass is None else (
        "away" if layer.negative_mass > 0.5 else "toward"
    )  # fmt: skip
    return [
        _text(layer.name),
        str(layer.filters),
        str(layer.fan_in),
        _number(layer.negative_mass, ".3f"),
        _number(layer.mean_cosine, "+.4f"),
        _number(layer.q_mass, ".1e"),
        turned,
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _left_out(measurement: Measurement) -> Iterator[str]:
    for note in measurement.notes:
        yield ""
        yield f"Note: {_text(note)}"
    if measurement.skipped:
        yield ""
        names = ", ".join(f"{_text(one.name)} ({_text(one.reason)})" for one in measurement.skipped)
        yield f"Left out: {names}"


def _text(text: str) -> str:
    """Return text as Markdown shows it, whatever signs it holds."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~$:])", r"\\\1", html.escape(printable(text), quote=False))
