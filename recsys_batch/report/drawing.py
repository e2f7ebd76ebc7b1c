"""matplotlib figures as SVG in the page's own fonts, with colours that follow light, dark and print."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID, FIRST, SECOND, THIRD, WARN = "#010101", "#010102", "#010103", "#010104", "#010105", "#010106", "#010107"
"""Placeholders of the page's colours; ``to_svg`` replaces them by CSS variables."""
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", FIRST: "first", SECOND: "second", THIRD: "third", WARN: "warn"}
_WIDTH = 4.5  # inches: at 72 units an inch, text has about its own size on a phone
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=[FIRST, SECOND, THIRD]),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 2.0,
    "lines.markersize": 5,
}


@contextmanager
def make_axes(height: float = 3.0) -> Iterator[tuple[Figure, Axes]]:
    """Make a figure with one plot in the page's style, ``height`` inches high."""
    with mpl.rc_context(_SETTINGS):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        yield figure, figure.add_subplot()


def to_svg(figure: Figure, name: str) -> str:
    """Convert a figure to an <svg> element without a size of its own; ``name`` is of it alone in its page. The same gives the same text."""
    stream = io.StringIO()
    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, f"var(--{variable})")
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    text = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    box = re.search(r'viewBox="[^"]+"', text)
    assert box is not None  # matplotlib writes one
    return f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} aria-hidden="true">' + text[text.index(">") + 1 :].strip()
