"""Charts for pages: matplotlib's SVG, without anything from elsewhere, in the colours and letters of its page."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 3.9
"""Inches; at 72 points an inch about what a telephone shows, so that letters keep their size on every screen."""

_ROW, _MARGIN = 0.27, 0.15
_LETTERS = 12
# Colours that stand for the variables of a page's stylesheet, which differ in light and dark.
_VARIABLES = {"#010101": "ink", "#020202": "quiet", "#030303": "bar", "#040404": "mark"}
_INK, _QUIET, _BAR, _MARK = _VARIABLES


@dataclass(frozen=True)
class Bars:
    """A chart of horizontal bars: `labels`, `values`, and what is written behind each bar (`texts`).

    `limit` is the value of the full width, the greatest by default. A line stands at `reference`.
    """

    title: str
    labels: Sequence[str]
    values: Sequence[int | float]
    texts: Sequence[str]
    limit: float | None = None
    reference: float | None = None


def draw(chart: Bars, name: str) -> str:
    """Return a chart as an SVG element to stand in a page; its `name` keeps ids of several charts apart.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}):
        figure = Figure(figsize=(WIDTH, _MARGIN + _ROW * len(chart.labels)), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        _draw_bars(axes, chart)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue(), name)


def _draw_bars(axes: Any, chart: Bars) -> None:
    rows = range(len(chart.labels))
    limit = chart.limit or max(chart.values, default=0) or 1
    axes.barh(rows, chart.values, height=0.62, color=_BAR, linewidth=0)
    for row, value, text in zip(rows, chart.values, chart.texts, strict=True):
        axes.text(value + 0.015 * limit, row, text, va="center", fontsize=_LETTERS, color=_INK)
    axes.set_yticks(rows, chart.labels, fontsize=_LETTERS, color=_INK)
    # Room behind the longest bar for what is written there.
    axes.set_xlim(0, 1.22 * limit)
    axes.set_ylim(len(chart.labels) - 0.4, -0.6)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.axvline(0, color=_QUIET, linewidth=1)
    if chart.reference is not None:
        axes.axvline(chart.reference, color=_MARK, linewidth=1.5, linestyle=(0, (4, 3)))


def _for_page(svg: str, name: str) -> str:
    """The svg element of a file of matplotlib's, of any width, with the page's colours and letters."""
    svg = svg[svg.index("<svg") :]
    # Its style would be that of the whole page.
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    # A page needs no names of XML; without them it has no address of another place.
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| version="[^"]*"', "", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\1{name}-", svg)
    # Letters are those of the page, in the size that was drawn.
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.strip()
