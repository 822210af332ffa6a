"""The columns of a table: what each holds, how it is written, which are shown."""

from typing import NamedTuple

import pandas as pd

from cleanprior.metric_names import further as further_metrics

DASH = "-"
#: Significant digits instead of a number of decimals.
SIGNIFICANT = "significant"


class Column(NamedTuple):
    """A column of the table: key of the summary, heading, format, what it is."""

    key: str
    heading: str
    form: str
    meaning: str


#: What an exact restoration is, for the headings that say ``point``.
POINT = "of the mean of several draws, or of a point estimate; not to be compared with one draw"
COLUMNS: tuple[Column, ...] = (
    Column("clean_images", "clean images", "d", "clean images that the method was handed"),
    Column(
        "psnr",
        "PSNR dB draw",
        ".2f",
        "of one posterior draw for each held-out measurement; higher is better",
    ),
    Column("psnr_point", "PSNR dB point", ".2f", f"{POINT}; higher is better"),
    Column(
        "spread_ratio",
        "spread",
        ".2f",
        "spread of posterior draws over their error; 1 is calibrated, below 1 too sure",
    ),
    Column("ssim", "SSIM draw", ".3f", "of the same draws; higher is better"),
    Column("ssim_point", "SSIM point", ".3f", "as PSNR point; higher is better"),
    Column("lpips", "LPIPS draw", ".3f", "of the same draws, AlexNet; lower is better"),
    Column("lpips_point", "LPIPS point", ".3f", "as PSNR point, AlexNet; lower is better"),
    Column(
        "consistency",
        "|y-Ax| draw",
        SIGNIFICANT,
        "root mean square residual per observed number, units of x",
    ),
    Column("consistency_point", "|y-Ax| point", SIGNIFICANT, "the same, as PSNR point"),
    Column(
        "fd",
        "FD",
        SIGNIFICANT,
        "Frechet distance of generated samples to the clean training split; lower is better",
    ),
    Column(
        "fd_inf",
        "FD inf",
        SIGNIFICANT,
        "the same, extrapolated to infinitely many samples; lower is better",
    ),
    Column(
        "proximal_fd",
        "proximal FD",
        SIGNIFICANT,
        "of samples, corrupted again, to the training measurements; needs no clean image",
    ),
    Column(
        "train_flops",
        "train FLOP",
        "letter",
        "floating-point operations of all networks in training, E-steps included",
    ),
    Column("train_seconds", "train s", "time", "training with its E-steps"),
    Column("restore_flops", "restore FLOP", "letter", "of one restoration"),
    Column("restore_seconds", "restore s", "time", "restoring all held-out measurements once"),
    Column("sample_flops", "sample FLOP", "letter", "of one sample"),
    Column("sample_seconds", "sample s", "time", "drawing the samples of one sampling seed"),
    Column("nfe", "NFE", "", "forward (+ backward) passes of the denoiser for one restored image"),
    Column(
        "memory_mb", "peak MB", ".0f", "peak memory of the process (of the GPU where there is one)"
    ),
    Column(
        "energy_kj",
        "energy kJ",
        "time",
        "of training, as CPU and GPU counters report it, whatever else ran on them",
    ),
    Column("parameters", "params", "letter", "of all networks trained"),
)
#: Headings of columns that hold words.
TEXTS = ("method", "restores by", "status", "problem", "published row", "our row")
#: Keys of the columns that matter most, the first ones first.
IMPORTANT = (
    "psnr",
    "psnr_point",
    "spread_ratio",
    "fd",
    "proximal_fd",
    "train_flops",
    "clean_images",
)
#: Columns that stand even where no row has a value: the reason stands under the table.
ALWAYS = ("clean_images", "psnr", "fd", "proximal_fd", "train_seconds", "nfe", "parameters")


def all_columns() -> tuple[Column, ...]:
    """Return every column, those of plug-ins' metrics before the costs."""
    first = next(i for i, column in enumerate(COLUMNS) if column.key == "train_flops")
    added = (
        Column(key, key.replace("_point", " point"), SIGNIFICANT, meaning)
        for key, meaning in further_metrics().items()
    )
    return (*COLUMNS[:first], *added, *COLUMNS[first:])


def shown_columns(summary: pd.DataFrame) -> list[Column]:
    """Return the columns of :func:`all_columns` that this table shows."""
    return [
        c
        for c in all_columns()
        if c.key in ALWAYS or (c.key in summary and summary[c.key].notna().any())
    ]
