"""Do values fill the range that becomes [-1, 1]? A result that is too good is a fault."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from ..notices import Notice

#: Images that fill less than this share of their range are close to a constant: a guess of the
#: mean scores 30 dB, and every distance is small.
LEAST_SHARE = 1 / 8
#: Depths of cameras and files, in bits.
DEPTHS = (8, 10, 12, 14, 16)


def check_range(given: Sequence[float] | None) -> tuple[float, float] | None:
    """Return ``data.range`` as two numbers.

    Raises:
        UserError: It is not ``[LOW, HIGH]`` with LOW below HIGH.
    """
    if given is None:
        return None
    values = [v for v in given if isinstance(v, int | float) and math.isfinite(v)]
    if len(given) != 2 or len(values) != 2 or not values[0] < values[1]:
        raise UserError(f"range={given} is not a range; allowed: [LOW, HIGH] with LOW below HIGH")
    return float(values[0]), float(values[1])


def to_unit(values: NDArray[Any], low: float, high: float) -> Tensor:
    """Return float32 values of which ``low`` became -1 and ``high`` 1, none beyond."""
    # Large integers keep their differences: the subtraction is in float64.
    x = torch.from_numpy((values.astype(np.float64) - low).astype(np.float32))
    return (2 * x / (high - low) - 1).clamp(-1, 1)


def ranges_for(least: float, most: float, limits: tuple[float, float] | None = None) -> str:
    """Return what ``data.range`` may be for values from ``least`` to ``most``, not ``limits``."""
    exact = f"data.range=[{least:.10g},{most:.10g}]"
    is_count = least >= 0 and float(least).is_integer() and float(most).is_integer()
    depth = next((b for b in DEPTHS if most < 2**b), None)
    if not is_count or depth is None or most < 16 or limits == (0, 2**depth - 1):
        return exact
    bits = f"data.range=[0,{2**depth - 1}]"
    return f"{bits} ({depth} bits)" + (f" or {exact}" if exact != bits else "")


def judge_span(
    what: str, found: tuple[float, float], limits: tuple[float, float], is_declared: bool
) -> tuple[Notice, ...]:
    """Compare the values of a data set with the range that becomes [-1, 1].

    Arguments:
        what: The data set, for sentences.
        found: Its least and its largest value.
        limits: The values that become -1 and 1.
        is_declared: Whether the user said so by ``data.range``; else they are those of the type.

    Returns:
        What should be told.

    Raises:
        UserError: All values are equal, or they fill less than an eighth of a range that nobody
            declared.
    """
    (least, most), (low, high) = found, limits
    if least == most:
        raise UserError(f"{what}: every value is {least:g}; a constant data set teaches nothing")
    shown = f"{what}: the values lie from {least:.10g} to {most:.10g}"
    share = (most - least) / (high - low)
    if share < LEAST_SHARE:
        text = f"{shown}, which is {share:.2%} of the range [{low:g}, {high:g}]"
        if not is_declared:
            raise UserError(
                f"{text} of their type: almost a constant; set {ranges_for(least, most, limits)} "
                f"(or data.range=[{low:g},{high:g}], if that is meant)"
            )
        return (Notice(f"{text}: almost a constant; PSNR and distances will look too good", True),)
    middle = (low + high) / 2
    if least >= middle or most <= middle:
        half = "lower" if least >= middle else "upper"
        text = f"{shown}: the {half} half of the range [{low:g}, {high:g}] is never used"
        return (Notice(f"{text}; did you mean {ranges_for(least, most, limits)}?", True),)
    return ()
