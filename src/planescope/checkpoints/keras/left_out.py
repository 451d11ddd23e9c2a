"""Layers of Keras that have weights and are not measured, with the reason."""

from __future__ import annotations

import re

# By the class as Keras 3 writes it into files.
_REASONS = (
    (
        re.compile(r"(\w+_)?(lstm|gru|rnn)(\d*d|_cell|v2)?|conv_lstm\dd|bidirectional|stacked_\w+"),
        "a recurrent layer: its weights act on its own output too",
    ),
    (
        re.compile(r"\w*attention|query|key|value"),
        "queries, keys and values of an attention: several linear maps in one",
    ),
    (
        re.compile(r"\w*embedding"),
        "an embedding: its rows are looked up, they cut nothing",
    ),
    (
        re.compile(r"einsum_dense"),
        "an Einstein sum: several linear maps in one",
    ),
    (
        re.compile(r"locally_connected\dd"),
        "each place of its input has weights of its own: no hyperplane moves over it",
    ),
)
# Their variables are slopes, scales and shifts.
_NO_WEIGHTS = re.compile(r"p_?re_?lu|\w*normalization(_v\d)?|normalization")


def reason_for(kind: str) -> str | None:
    """Say why layers of a class of Keras are left out; None where they have no weights.

    Parameters
    ----------
    kind : str
        The class in snake case.
    """
    if _NO_WEIGHTS.fullmatch(kind):
        return None
    for pattern, reason in _REASONS:
        if pattern.fullmatch(kind):
            return reason
    return f"a {kind}, which is no layer of hyperplanes that are measured"


def reason_for_class(class_name: str) -> str:
    """Say why a layer of somebody's own class is left out."""
    return f"its class {class_name} is not one of Keras: what it does with its weights is not told"


def reason_for_names(names: tuple[str, ...], shapes: list[tuple[int, ...]]) -> str | None:
    """Say why variables that no config describes are left out, by the groups that they lie in."""
    for name in names:
        stem = re.sub(r"_\d+$", "", name)
        if _NO_WEIGHTS.fullmatch(stem):
            return None
        for pattern, reason in _REASONS:
            if pattern.fullmatch(stem):
                return reason
    listed = ", ".join("×".join(map(str, shape)) for shape in shapes)
    return f"its variables, {listed}, are those of no layer that is known"
