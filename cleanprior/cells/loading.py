"""The data set of a cell: loaded once, and a user's large measurements kept beside the cells."""

import json
from functools import lru_cache
from typing import cast

from filelock import FileLock

from ..config import build
from ..data.datasets import CleanData
from ..data.measured import MeasuredData
from ..data.shelf import Shelf, load_from
from .folder import CellFolder


@lru_cache(maxsize=2)
def load_data(
    config: str, _identity: str, shelf: Shelf | None = None, is_kept: bool = False
) -> CleanData | MeasuredData:
    """Load a data set from its configuration as JSON; kept for the next cell of a benchmark.

    Files that changed have another identity and are read again.

    Arguments:
        config: The configuration.
        shelf: Where a user's measurements lie that are too many for memory, if they lie there.
        is_kept: Whether they are put there, where they do not.
    """
    parts = json.loads(config)
    found = build(parts) if shelf is None else load_from(shelf, lambda: build(parts), is_kept)
    return cast(CleanData | MeasuredData, found)


def data_of(folder: CellFolder, is_kept: bool = False) -> CleanData | MeasuredData:
    """Load the data set of a cell; of several processes one reads a user's large file.

    Arguments:
        folder: Where the cell lies.
        is_kept: Whether measurements that are too many for memory are kept beside it.

    Raises:
        UserError: As the data set's loader.
    """
    named = json.dumps(folder.config["data"]), json.dumps(folder.identity.data)
    if "no_clean" not in folder.config["data"].get("capabilities", ()):
        return load_data(*named)
    shelf = shelf_of(folder)
    if not is_kept:
        return load_data(*named, shelf)
    with FileLock(folder.lock(f"data-{shelf.key}")):
        return load_data(*named, shelf, True)


def shelf_of(folder: CellFolder) -> Shelf:
    """Return where a user's measurements are kept that are too many for memory."""
    key = folder.identity.loaded
    return Shelf(folder.measurements("data", key).parent, key)


__all__ = ["data_of", "load_data", "shelf_of"]
