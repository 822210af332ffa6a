"""What a file of arrays claims to hold, judged before it is read.

A header of a hundred bytes can claim forty terabytes, and a few kilobytes of compressed zeros
expand to gigabytes.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..memory import total_bytes

#: Bytes below which nobody minds how well they were compressed.
FREE = 256 << 20
#: Times that images and masks can be compressed; one value reaches a thousand.
RATIO = 100


def check_claim(path: Path, name: str, claimed: int, stored: int, by_rows: bool = False) -> None:
    """Refuse an array that cannot be what it claims.

    Arguments:
        path: The file, for errors.
        name: The array's.
        claimed: Bytes in memory.
        stored: Bytes of the whole file.
        by_rows: Whether it is read by some of its rows at a time: then what the file can hold may
            be more than this machine's memory.

    Raises:
        UserError: More than this machine's memory, or a small file that expands without end.
    """
    if claimed > total_bytes() and not (by_rows and claimed <= RATIO * stored):
        raise UserError(
            f"'{path}' claims {_size(claimed)} for '{name}', more than this machine's memory "
            f"({_size(total_bytes())})"
        )
    if claimed > FREE and claimed > RATIO * stored:
        raise UserError(
            f"'{path}' of {_size(stored)} claims {_size(claimed)} for '{name}': it holds hardly "
            "anything but one value"
        )


def bytes_of(shape: Sequence[int], itemsize: int) -> int:
    """Return the bytes of an array; Python's whole numbers do not overflow."""
    return math.prod(int(n) for n in shape) * int(itemsize)


def _size(n: int) -> str:
    for power, letter in ((40, "TB"), (30, "GB"), (20, "MB"), (10, "kB")):
        if n >= 1 << power:
            return f"{n / (1 << power):.3g} {letter}"
    return f"{n} bytes"
