"""Labels beside points, placed so that none covers another or a point."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

# Right, left, above, below, then the corners, each nearer ring first: (x, y) in points.
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
_DISTANCES_PT = (6, 11, 17, 24)
_POINT_RADIUS_PX = 5


def place_labels(axes: Axes, texts: dict[tuple[float, float], str], **style: Any) -> None:
    """Write each text beside its point (data coordinates), at the nearest free place.

    An empty text keeps the others off its point and writes nothing.
    The result depends on the points and their order alone. A text without a free place takes the last one tried.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    taken = [_around(axes, point) for point in texts]
    for point, text in texts.items():
        if text:
            taken.append(_placed(axes, point, text, taken, style))


def _around(axes: Axes, point: tuple[float, float]) -> Bbox:
    x, y = axes.transData.transform(point)
    return Bbox.from_bounds(x - _POINT_RADIUS_PX, y - _POINT_RADIUS_PX, 2 * _POINT_RADIUS_PX, 2 * _POINT_RADIUS_PX)


def _placed(axes: Axes, point: tuple[float, float], text: str, taken: list[Bbox], style: dict[str, Any]) -> Bbox:
    """Write `text` at the first place whose box is free and inside the axes; return the box."""
    label = axes.annotate(text, point, xytext=(0, 0), textcoords="offset points", **style)
    inside = axes.get_window_extent()
    box = inside
    for distance in _DISTANCES_PT:
        for x, y in _DIRECTIONS:
            label.set(ha={1: "left", 0: "center", -1: "right"}[x], va={1: "bottom", 0: "center", -1: "top"}[y])
            label.xyann = (x * distance, y * distance)
            box = label.get_window_extent()
            if box.x0 > inside.x0 and box.x1 < inside.x1 and not any(box.overlaps(other) for other in taken):
                return box
    return box
