"""Text that a figure really draws, and whether it can be read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from matplotlib.text import Text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def texts(figure: Figure) -> list[Text]:
    """All text that is drawn."""
    unseen = {label for axes in figure.axes for label in _labels_beyond(axes)}
    found = [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible()]
    return [text for text in found if text not in unseen]


def _labels_beyond(axes: Axes) -> Iterator[Text]:
    """Ticks beyond the limits of an axis are kept, and not drawn."""
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low <= tick.get_loc() <= high:
                yield from (tick.label1, tick.label2)


def assert_inside(figure: Figure) -> None:
    """No text reaches over the edge of the figure."""
    canvas = figure.bbox.padded(1.5)
    for text in texts(figure):
        box = text.get_window_extent()
        assert canvas.x0 <= box.x0, text
        assert canvas.y0 <= box.y0, text
        assert box.x1 <= canvas.x1, text
        assert box.y1 <= canvas.y1, text


def assert_apart(figure: Figure) -> None:
    """No two texts lie over one another."""
    boxes = [(text, text.get_window_extent()) for text in texts(figure)]
    for i, (text, box) in enumerate(boxes):
        for other, over in boxes[:i]:
            across = min(box.x1, over.x1) - max(box.x0, over.x0)
            down = min(box.y1, over.y1) - max(box.y0, over.y0)
            assert min(across, down) < 2.5, (text, other)
