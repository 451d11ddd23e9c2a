"""Small data sets of other libraries, to be given as ``planescope.data.small:NAME``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from planescope.files.errors import MissingDependencyError

if TYPE_CHECKING:
    Examples = tuple[np.ndarray, np.ndarray]


def sklearn_digits() -> tuple[Examples, Examples]:
    """Return the digits of 8 × 8 pixels that come with scikit-learn (UCI ML, 1,797 of 43 writers).

    Returns
    -------
    two pairs of images (bytes, N × 1 × 8 × 8) and labels
        Of every five the first four train, the last one validates.

    Raises
    ------
    MissingDependencyError
        If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as exc:
        if exc.name != "sklearn":
            raise
        raise MissingDependencyError(
            "these digits come with scikit-learn: pip install scikit-learn"
        ) from exc
    found = load_digits()
    # Grey values are 0 ... 16; 16 becomes 240.
    images = (15 * found.images).astype(np.uint8)[:, None]
    labels = found.target.astype(np.int64)
    trains = np.arange(len(labels)) % 5 != 4
    return (images[trains], labels[trains]), (images[~trains], labels[~trains])
