"""What all plots share: their width, text that is never mathematics, axes that can be read.

A page shows a figure at about half of its pixels on a telephone and at three quarters beside
another one: at six inches its text stays legible on both. No torch.
"""

import io
import math
import textwrap
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

WIDTH = 6.0
DPI = 150
TEXT = 9.0
SMALL = 8.0
#: Names hold ``$`` and ``_``: matplotlib must not read formulas in them.
STYLE: Any = {
    "text.parse_math": False,
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.labelsize": TEXT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.formatter.use_mathtext": False,
    "axes.formatter.useoffset": False,
}
#: Characters of the text's size in an inch.
_PER_INCH = 14


def styled(draw: Callable[..., Figure | None]) -> Callable[..., Figure | None]:
    """Draw a figure in the common style."""

    def drawn(*arguments: Any, **keywords: Any) -> Figure | None:
        with rc_context(STYLE):
            return draw(*arguments, **keywords)

    drawn.__doc__, drawn.__name__ = draw.__doc__, draw.__name__
    return drawn


def png(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    buffer = io.BytesIO()
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a name in any script
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def headed(height: float, title: str, width: float = WIDTH) -> Figure:
    """Return a figure in inches, its title over its whole width."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    lines = textwrap.wrap(title, int(_PER_INCH * width))
    figure.suptitle("\n".join(lines), fontsize=TEXT, ha="left", x=0.01, fontweight="bold")
    figure.set_size_inches(width, height + 0.16 * len(lines))
    return figure


def label(name: str) -> str:
    """Return a name as a legend takes it: one that begins with ``_`` would be left out."""
    return f" {name}" if name.startswith("_") else name


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Put a legend under a figure, in as many columns as its names leave room for."""
    columns = next(n for n in (4, 3, 2, 1) if n == 1 or _fits(labels, n))
    rows = math.ceil(len(labels) / columns)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.17 * rows + 0.1)
    figure.legend(
        list(handles),
        [label(text) for text in labels],
        loc="outside lower left",
        ncols=columns,
        frameon=False,
    )


def _fits(labels: Sequence[str], columns: int) -> bool:
    """Whether so many columns of these labels, filled one after the other, fit in the width."""
    rows = math.ceil(len(labels) / columns)
    longest = [max(map(len, labels[i : i + rows])) for i in range(0, len(labels), rows)]
    return len(longest) == columns and sum(n + 8 for n in longest) <= _PER_INCH * WIDTH


def seconds(value: float, _: Any = None) -> str:
    """Return seconds as a person says them: ``40 s``, ``5 min``, ``2 h``."""
    if value < 60:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min" if value < 3600 else f"{value / 3600:.3g} h"


def lettered(value: float, _: Any = None) -> str:
    """Return a count with its letter: ``20 G``, ``1.5 T``."""
    for power, letter in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 10**power * 0.9995:
            return f"{value / 10**power:.3g} {letter}"
    return f"{value:.3g}"


#: Seconds that read as whole seconds, minutes, hours or days.
SECONDS = tuple(
    unit * n
    for unit, numbers in (
        (0.001, (1, 2, 5, 10, 20, 50, 100, 200, 500)),
        (1, (1, 1.5, 2, 3, 5, 10, 15, 20, 30, 45)),
        (60, (1, 1.5, 2, 3, 5, 10, 15, 20, 30, 45)),
        (3600, (1, 1.5, 2, 3, 5, 10, 24, 48, 120, 240)),
    )
    for n in numbers
)
COUNTS = tuple(n * 10.0**power for power in range(22) for n in (1, 1.5, 2, 3, 5))
NUMBERS = tuple(n * 10.0**power for power in range(-9, 10) for n in (1, 1.5, 2, 3, 5))


def log_ticks(axes: Axes, which: str, choice: Sequence[float], form: Callable[..., str]) -> None:
    """Make an axis logarithmic with a few ticks out of a choice, spread over what it shows."""
    getattr(axes, f"set_{which}scale")("log")
    low, high = getattr(axes, f"get_{which}lim")()
    inside = [v for v in choice if low <= v <= high]
    if len(inside) < 3:  # rows that take alike
        inside = [float(v) for v in MaxNLocator(4).tick_values(low, high) if low <= v <= high]
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(FixedLocator(_spread(inside, most=4 if which == "x" else 6)))
    axis.set_major_formatter(FuncFormatter(form))
    axis.set_minor_locator(NullLocator())


def _spread(values: list[float], most: int) -> list[float]:
    """Return at most so many of the values, evenly spread in ratio; rounder ones first."""
    if len(values) <= most:
        return values
    step = (math.log(values[-1]) - math.log(values[0])) / most
    kept: list[float] = []
    for value in sorted(values, key=lambda v: (len(f"{v:.6g}".strip("0.").replace(".", "")), v)):
        if all(abs(math.log(value / other)) >= 0.8 * step for other in kept):
            kept.append(value)
    return sorted(kept)


def number(value: float, _: Any = None) -> str:
    """Return a number without an exponent where it can be read without."""
    return f"{value:g}"
