"""Draws overview.svg, the two models and the loop in which they are trained: `python docs/draw_overview.py`.

The picture has a card of its own as its background, so that it can be read on a page of any colour; where the reader's
screen is dark, so is the card. Letters are large, for on a telephone the picture is shown at a third of its size.
"""

from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 900, 640
LEFT, MIDDLE, RIGHT = 160, 450, 740
TOP_ROW, BOTTOM_ROW = 120, 520
HALF_WIDTH, HALF_HEIGHT = 130, 75

LIGHT = {
    "card": "#ffffff",
    "edge": "#d0d7de",
    "text": "#1f2328",
    "quiet": "#59636e",
    "generator": "#ddf4ff",
    "generator-edge": "#0969da",
    "recommender": "#fff1e5",
    "recommender-edge": "#bc4c00",
    "plain": "#f6f8fa",
}
DARK = {
    "card": "#0d1117",
    "edge": "#3d444d",
    "text": "#f0f6fc",
    "quiet": "#a4adb8",
    "generator": "#0c2d4d",
    "generator-edge": "#58a6ff",
    "recommender": "#3d1d06",
    "recommender-edge": "#f0883e",
    "plain": "#161b22",
}


def style() -> str:
    """Return the stylesheet: every colour by name, in its light and its dark value."""

    def variables(colours: dict[str, str]) -> str:
        return " ".join(
            f".{name} {{ fill: {value} }} .{name}-line {{ stroke: {value} }}" for name, value in colours.items()
        )

    font = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, 'DejaVu Sans', sans-serif"
    return (
        f"text {{ font-family: {font}; text-anchor: middle }} {variables(LIGHT)} "
        f"@media (prefers-color-scheme: dark) {{ {variables(DARK)} }}"
    )


def text(x: float, y: float, words: str, *, size: int, colour: str = "text", bold: bool = False) -> str:
    """Return one line of text, centred on `x`, with its baseline at `y`."""
    weight = ' font-weight="600"' if bold else ""
    return f'<text class="{colour}" x="{x}" y="{y}" font-size="{size}"{weight}>{escape(words)}</text>'


def box(x: float, y: float, name: str, lines: list[str], *, colour: str, edge: str, bold: bool = False) -> list[str]:
    """Return a box centred on (x, y): its name, and smaller lines below it."""
    thick = 4 if bold else 2
    first = y - 22 if len(lines) == 2 else y - 4
    return [
        f'<rect class="{colour} {edge}-line" x="{x - HALF_WIDTH}" y="{y - HALF_HEIGHT}" width="{2 * HALF_WIDTH}" '
        f'height="{2 * HALF_HEIGHT}" rx="14" stroke-width="{thick}"/>',
        text(x, first, name, size=29, bold=True),
        *(
            text(x, first + 36 + 30 * number, words, size=24, colour="quiet")
            for number, words in enumerate(lines)
        ),
    ]


def arrow(points: list[tuple[float, float]], *, colour: str, dashed: bool = False) -> list[str]:
    """Return a line through the points with a head at the last of them; its last piece is level or upright."""
    (x0, y0), (x1, y1) = points[-2:]
    across, down = (x1 > x0) - (x1 < x0), (y1 > y0) - (y1 < y0)
    neck = x1 - 16 * across, y1 - 16 * down
    path = " L ".join(f"{x} {y}" for x, y in [*points[:-1], neck])
    corners = [(x1, y1), (neck[0] - 9 * down, neck[1] - 9 * across), (neck[0] + 9 * down, neck[1] + 9 * across)]
    dashes = ' stroke-dasharray="12 8"' if dashed else ""
    return [
        f'<path class="{colour}-line" d="M {path}" fill="none" stroke-width="4"{dashes}/>',
        f'<polygon class="{colour}" points="{" ".join(f"{x},{y}" for x, y in corners)}"/>',
    ]


def drawing() -> str:
    """Return the picture as SVG."""
    generator, recommender = "generator-edge", "recommender-edge"
    right_of = HALF_WIDTH + 2
    parts = [
        f'<rect class="card edge-line" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="18"/>',
        *box(LEFT, TOP_ROW, "item text", ["Verano Brio", "Espresso Machine"], colour="plain", edge="edge"),
        *box(MIDDLE, TOP_ROW, "ID generator", ["a T5"], colour="generator", edge=generator, bold=True),
        *box(RIGHT, TOP_ROW, "textual ID", ["devices verano", "espresso machine"], colour="plain", edge="edge"),
        *box(RIGHT, BOTTOM_ROW, "history", ["the IDs of what", "a user bought"], colour="plain", edge="edge"),
        *box(MIDDLE, BOTTOM_ROW, "recommender", ["a T5"], colour="recommender", edge=recommender, bold=True),
        *box(LEFT, BOTTOM_ROW, "next ID", ["held by a trie", "to valid IDs"], colour="plain", edge="edge"),
        *arrow([(LEFT + right_of, TOP_ROW), (MIDDLE - right_of, TOP_ROW)], colour="quiet"),
        *arrow([(MIDDLE + right_of, TOP_ROW), (RIGHT - right_of, TOP_ROW)], colour="quiet"),
        *arrow([(RIGHT - right_of, BOTTOM_ROW), (MIDDLE + right_of, BOTTOM_ROW)], colour="quiet"),
        *arrow([(MIDDLE - right_of, BOTTOM_ROW), (LEFT + right_of, BOTTOM_ROW)], colour="quiet"),
        *arrow([(RIGHT, TOP_ROW + HALF_HEIGHT), (RIGHT, BOTTOM_ROW - HALF_HEIGHT - 2)], colour=recommender),
        *arrow(
            [(MIDDLE, BOTTOM_ROW - HALF_HEIGHT - 2), (MIDDLE, TOP_ROW + HALF_HEIGHT + 4)], colour=generator, dashed=True
        ),
        text(225, 292, "ID phase", size=29, bold=True),
        text(225, 330, "the loss flows back", size=26, colour="quiet"),
        text(225, 364, "through soft IDs", size=26, colour="quiet"),
        text(595, 275, "recommender", size=29, bold=True),
        text(595, 309, "phase", size=29, bold=True),
        text(595, 347, "it learns from", size=26, colour="quiet"),
        text(595, 381, "unique IDs", size=26, colour="quiet"),
    ]
    title = "An ID generator writes textual IDs; a recommender reads a history of IDs and writes the next one."
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            'role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{style()}</style>",
            *parts,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    Path(__file__).with_name("overview.svg").write_text(drawing(), encoding="utf-8")
