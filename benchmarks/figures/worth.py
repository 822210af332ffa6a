"""The plot of what rows are worth: a metric against the number of clean images. No torch."""

from pathlib import Path

from matplotlib.figure import Figure

from cleanprior.cells.record import Record, is_finished
from cleanprior.files import write_bytes

from ..plan import Plan
from ..tables.row_names import row_name
from ..tables.worth import scale_of, values_of
from . import layout
from .palette import looks
from .plots import INK, QUALITIES


@layout.styled
def figure_of(
    records: dict[str, list[Record]],
    rows: tuple[str, ...],
    references: tuple[str, ...],
    title: str,
) -> Figure | None:
    """Draw each metric on few clean images, and a line where each other row lies.

    Arguments:
        records: Records by row, one a seed.
        rows: Those that train on clean images.
        references: Rows that anchor the table.
        title: Written above.
    """
    finished = {r: c for r, c in records.items() if c and all(map(is_finished, c))}
    ladder = {int(finished[r][0]["clean_images"]): r for r in rows if r in finished}
    scales = [(q, text, scale_of(records, ladder, q)) for q, text in QUALITIES]
    shown = [(q, text, scale) for q, text, scale in scales if len(scale) > 1]
    if not shown:
        return None
    figure = layout.headed(3.4, title)
    grid = figure.add_gridspec(1, len(shown))
    styles = looks(list(finished))
    handles = {}
    for place, (quality, label, scale) in enumerate(shown):
        axes = figure.add_subplot(grid[0, place])
        means = [scale[n].each.mean() for n in sorted(scale)]
        handles["clean images"] = axes.plot(sorted(scale), means, "o-", color=INK, ms=4)[0]
        for method, cells in finished.items():
            for row in cells[0]["rows"]:
                values = values_of(cells, row["way"], quality)
                if method in rows or values is None:
                    continue
                is_own = row["is_own"] and method not in references
                style = styles[method]
                line = axes.axhline(
                    values.each.mean(), lw=1.4, ls=":" if is_own else style.line, color=style.colour
                )
                handles.setdefault(row_name(method, row, is_own), line)
        axes.set_xscale("log")
        axes.set_xticks(sorted(scale), [str(n) for n in sorted(scale)], fontsize=7, rotation=45)
        axes.minorticks_off()
        axes.set_xlabel("clean images")
        axes.set_ylabel(label)
    layout.legend(figure, list(handles.values()), list(handles))
    return figure


def write(records: dict[str, list[Record]], plan: Plan, title: str, folder: Path) -> list[Path]:
    """Write ``worth.png``."""
    figure = figure_of(records, plan.worth, plan.references, title)
    if figure is None:
        return []
    write_bytes(folder / "worth.png", layout.png(figure))
    return [folder / "worth.png"]
