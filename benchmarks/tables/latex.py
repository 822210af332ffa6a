"""A table for a paper: LaTeX with booktabs, the columns that a page has room for. No torch."""

import re
from collections.abc import Sequence

import pandas as pd

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
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "\\": r"\textbackslash{}",
}
_PATTERN = re.compile("|".join(re.escape(k) for k in sorted(_WRITTEN, key=len, reverse=True)))


def to_latex(shown: pd.DataFrame, bold: pd.DataFrame, comments: Sequence[str]) -> str:
    r"""Return a table for ``\input``; rows that were not trained are left to the comments.

    Arguments:
        shown: From :func:`cleanprior.benchmarks.tables.summary.display`.
        bold: Which cells are significantly best.
        comments: Written above, a line each.
    """
    kept = [c for c in shown.columns if c not in LEFT_OUT]
    names = map(_name, shown["method"], shown["status"])
    table = shown[kept].assign(method=list(names)).map(_escape)
    table = table.mask(bold[kept].to_numpy(), "\\textbf{" + table + "}")
    table = table[~shown["status"].str.startswith(("skipped", "not run"))]
    table.columns = [SHORT.get(c) or _escape(c) for c in kept]
    sides = "@{}l" + "r" * (len(kept) - 1) + "@{}"
    body = table.to_latex(index=False, escape=False, column_format=sides)
    head = "\n".join(f"% {' '.join(line.split())}" for line in comments)
    return (
        f"{head}\n% needs \\usepackage{{booktabs}}\n"
        f"{{\\footnotesize\\setlength{{\\tabcolsep}}{{2.5pt}}%\n{body}}}\n"
    )


def _name(method: str, status: str) -> str:
    """Return the method and what its status warns of."""
    warned = re.search(r" \[.*\]$", status)
    return method + (warned[0] if warned else "")


def _escape(value: object) -> str:
    """Write a text for LaTeX; a character that its fonts lack becomes a question mark."""
    text = " ".join(str(value).split())
    written = _PATTERN.sub(lambda found: _WRITTEN[found[0]], text)
    return "".join(c if ord(c) < LATIN else "?" for c in written)
