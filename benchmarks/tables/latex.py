"""A table for a paper: LaTeX with booktabs, the columns that a page has room for. No torch."""

import re
from collections.abc import Sequence

import pandas as pd

from cleanprior.cells.status import Status

#: Columns that a page has no room for; ``table.csv`` has them all.
LEFT_OUT = (
    "restores by",
    "|y-Ax| point",
    "LPIPS draw",
    "LPIPS point",
    "FD inf",
    "train s",
    "restore FLOP",
    "restore s",
    "sample FLOP",
    "sample s",
    "peak MB",
    "energy kJ",
    "params",
    "status",
)
#: Headings that would widen their column; the comments explain the long ones.
SHORT = {
    "clean images": "clean",
    "PSNR dB draw": "PSNR",
    "PSNR dB point": "PSNR$_p$",
    "SSIM draw": "SSIM",
    "SSIM point": "SSIM$_p$",
    "|y-Ax| draw": "$|y-Ax|$",
    "proximal FD": "prox. FD",
    "train FLOP": "FLOP",
}
#: First character that the default fonts do not print.
LATIN = 0x180
_WRITTEN = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "|y-Ax|": "$|y-Ax|$",
    "A^+ y": "$A^+ y$",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "‡": r"$\ddagger$",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "\\": r"\textbackslash{}",
}
_PATTERN = re.compile("|".join(re.escape(k) for k in sorted(_WRITTEN, key=len, reverse=True)))


def to_latex(
    shown: pd.DataFrame, summary: pd.DataFrame, bold: pd.DataFrame, comments: Sequence[str]
) -> str:
    r"""Return a table for ``\input``; rows that were not trained are left to the comments.

    Arguments:
        shown: From :func:`cleanprior.benchmarks.tables.display.display`.
        summary: What it shows: how each row ended (``status``), and its warnings (``warning``).
        bold: Which cells are significantly best.
        comments: Written above, a line each.
    """
    kept = [c for c in shown.columns if c not in LEFT_OUT]
    names = map(_name, shown["method"], summary["warning"])
    table = shown[kept].assign(method=list(names)).map(_escape)
    table = table.mask(bold[kept].to_numpy(), "\\textbf{" + table + "}")
    ended = [Status.from_json(str(text)) for text in summary["status"]]
    table = table[[status.was_trained for status in ended]]
    table.columns = [SHORT.get(c) or _escape(c) for c in kept]
    sides = "@{}l" + "r" * (len(kept) - 1) + "@{}"
    body = table.to_latex(index=False, escape=False, column_format=sides)
    head = "\n".join(f"% {' '.join(line.split())}" for line in comments)
    return (
        f"{head}\n% needs \\usepackage{{booktabs}}\n"
        f"{{\\footnotesize\\setlength{{\\tabcolsep}}{{2.5pt}}%\n{body}}}\n"
    )


def _name(method: str, warning: str) -> str:
    """Return the method with the codes of its warnings."""
    return " ".join([method, *(f"[{code}]" for code in str(warning or "").split("+") if code)])


def _escape(value: object) -> str:
    """Write a text for LaTeX; a character that its fonts lack becomes a question mark."""
    text = " ".join(str(value).split())
    written = _PATTERN.sub(lambda found: _WRITTEN[found[0]], text)
    return "".join(c if ord(c) < LATIN else "?" for c in written)
