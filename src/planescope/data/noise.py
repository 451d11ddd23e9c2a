"""Images of noise with labels of chance: data from which nothing can be learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from planescope.data.options import Split
    from planescope.data.sets.files import Examples
    from planescope.data.sets.published import Known

# Keeps these draws apart from those of `planescope.data.load`.
_STREAM = 17
# Images that are drawn at once: a twentieth of a second, some 12 MiB of float32.
_TOGETHER = 1000


def examples(known: Known, split: Split, /, *, seed: int) -> Examples:
    """Draw as many images as a data set has, Gaussian, of its size and its channels' moments.

    Values beyond black and white are cut off, as bytes must be. Labels are drawn uniformly from
    its classes, apart from the images.

    Parameters
    ----------
    seed : int
        Of both; each split has draws of its own.

    Returns
    -------
    images : array of uint8, shape (N, channels, size, size)
    labels : array of int64, shape (N,)
    """
    rng = np.random.default_rng([seed, _STREAM, split == "train"])
    count, size = known.counts[split], known.size
    mean, std = (
        np.float32(255) * np.array(m, np.float32)[:, None, None] for m in (known.mean, known.std)
    )
    images = np.empty((count, len(known.mean), size, size), np.uint8)
    for first in range(0, count, _TOGETHER):
        part = images[first : first + _TOGETHER]
        drawn = rng.standard_normal(part.shape, np.float32)
        part[:] = (drawn * std + mean).round().clip(0, 255)
    return images, rng.integers(0, len(known.classes), count)
