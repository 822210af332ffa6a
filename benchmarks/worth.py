"""The worth of corrupted data: which rows train on how many clean images. No torch.

A laboratory asks what its measurements are worth. The same network with the same budget is trained
on 25, 50, 100, ... clean images and on all of them; a row is then as good as the number of clean
images that gives the same value of a metric (:mod:`.tables.worth`).
"""

from cleanprior.config import registry

from .description import Variant

#: The row that trains on clean images.
CLEAN = "oracle"
#: How many of them; those above the size of a data set are skipped, and all of it comes last.
COUNTS = (25, 50, 100, 200, 400, 800)


def worth_rows() -> dict[str, Variant]:
    """Return the rows that other rows are measured by: fewest clean images first, all last."""
    installed = registry.options("method")
    rows = {}
    for count in COUNTS:
        name = f"{CLEAN}_{count}"
        few = Variant(CLEAN, (f"method.clean_images={count}",))
        rows[name] = Variant(name) if name in installed else few
    return {**rows, CLEAN: Variant(CLEAN)}
