"""How numbers are written: by significant digits, by those of a spread, or with a letter."""

import math

#: Letters of powers of a thousand.
LETTERS = ("", "k", "M", "G", "T", "P", "E")
#: Decimals from which a small number is written with its power of ten.
DECIMALS = 5


def significant(value: float, digits: int = 3) -> str:
    """Return a number with its significant digits: ``0.00123``, ``45.0``, ``759``, ``1.2e-08``.

    Arguments:
        value: The number.
        digits: How many; digits before the point are all written up to a million.
    """
    if not math.isfinite(value) or value == 0:
        return f"{value:.0f}" if value == 0 else str(value)
    rounded = float(f"{value:.{digits - 1}e}")
    power = math.floor(math.log10(abs(rounded)))
    decimals = max(digits - 1 - power, 0)
    if power >= 6 or decimals > DECIMALS:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{decimals}f}"


def with_spread(value: float, spread: float, plus_minus: str) -> str:
    """Return a number and its spread, as precise as the spread: ``45.0 ± 1.3``, ``129 ± 12``.

    A spread has one significant digit, or two where the first is 1. A number keeps at most five.
    """
    if not (math.isfinite(value) and math.isfinite(spread)) or spread == 0:
        return f"{significant(value)}{plus_minus}{significant(spread)}"
    digits = 2 if f"{spread:.1e}".startswith("1") else 1
    rounded = float(f"{spread:.{digits - 1}e}")
    decimals = max(digits - 1 - math.floor(math.log10(rounded)), 0)
    if decimals > DECIMALS or max(abs(value), spread) >= 1e6:
        return f"{significant(value)}{plus_minus}{significant(spread, digits)}"
    most = 4 if value == 0 else max(4 - math.floor(math.log10(abs(value))), 0)
    if most < decimals:
        return f"{value:.{most}f}{plus_minus}{significant(spread, 1)}"
    return f"{value:.{decimals}f}{plus_minus}{spread:.{decimals}f}"


def lettered(value: float) -> str:
    """Return a count with a letter: ``0``, ``978``, ``294k``, ``3.1T``."""
    if not math.isfinite(value):
        return str(value)
    rounded = float(f"{value:.2e}")
    power = 0 if rounded == 0 else math.floor(math.log10(abs(rounded)))
    step = min(max(power // 3, 0), len(LETTERS) - 1)
    if step == 0:
        return f"{value:.0f}" if value == int(value) else significant(value)
    scaled = rounded / 1000**step
    return f"{scaled:.0f}{LETTERS[step]}" if abs(scaled) >= 100 else f"{scaled:.2g}{LETTERS[step]}"
