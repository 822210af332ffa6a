"""The commands ``cleanprior bench`` and ``cleanprior report``. Light to import."""

from pathlib import Path
from typing import Annotated

import typer

from cleanprior.commands.options import (
    GIVEN,
    Json,
    Quiet,
    Verbose,
    asked_progress,
    offered,
    offers,
)
from cleanprior.errors import UserError
from cleanprior.terminal import Screen

Wide = Annotated[
    bool,
    typer.Option(
        "--wide",
        help="Print every column, however wide. Else those that the terminal has room for; 140 "
        "columns where the output is none, or as many as COLUMNS says.",
    ),
]

#: A finished benchmark is printed from a folder that takes no files.
Runs = Annotated[Path, typer.Option("--out", help="Folder of all runs.", **GIVEN)]


def bench(
    methods: Annotated[
        str | None,
        typer.Option(
            help="Methods, comma-separated; default: the benchmark's.",
            autocompletion=offers("several_of", "method"),
        ),
    ] = None,
    operator: Annotated[
        str | None,
        typer.Option(
            help="Operators, comma-separated: one table each.",
            autocompletion=offers("several_of", "operator"),
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data set.", autocompletion=offers("one_of", "data"))
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Training seeds: how many (3), or which (7,8,9; one alone: 7,)."),
    ] = None,
    bench: Annotated[
        str, typer.Option(help="Benchmark configuration.", autocompletion=offers("one_of", "bench"))
    ] = "default",
    table: Annotated[
        str | None,
        typer.Option(
            help="A paper's table: its numbers beside ours.",
            autocompletion=offers("one_of", "table"),
        ),
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            help="Of a paper's table: cpu, gpu or paper.",
            autocompletion=offers("words", "cpu", "gpu", "paper"),
        ),
    ] = "cpu",
    references: Annotated[
        bool, typer.Option(help="Add the rows that anchor the table (observations, oracle, ...).")
    ] = True,
    worth: Annotated[
        bool,
        typer.Option(
            "--worth",
            help="Also train the oracle on 25, 50, 100, ... clean images and say for each row as "
            "good as how many clean images it is.",
        ),
    ] = False,
    force: Annotated[
        str | None,
        typer.Option(
            help="Methods to train again, comma-separated.",
            autocompletion=offers("several_of", "method"),
        ),
    ] = None,
    part: Annotated[
        str, typer.Option(help="Train this share of the cells only, e.g. 3/8: one job of an array.")
    ] = "1/1",
    launcher: Annotated[
        str,
        typer.Option(
            help="Where cells run: local, slurm, ray, or a plug-in's. Its keys are set like those "
            "of cells, e.g. launcher.partition=gpu."
        ),
    ] = "local",
    jobs: Annotated[
        str,
        typer.Option(help="Cells at a time, each in a process of its own; 0: in this process."),
    ] = "auto",
    devices: Annotated[
        str, typer.Option(help="CUDA devices of this machine, comma-separated, one a process.")
    ] = "auto",
    devices_per_cell: Annotated[
        int,
        typer.Option(
            help="Processes that train a cell together, each on a GPU or a share of the cores; "
            "the same as training.processes=N."
        ),
    ] = 1,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds for a cell, after which its row has failed.")
    ] = None,
    retry: Annotated[
        int, typer.Option(help="How often a cell that failed is tried again from its checkpoint.")
    ] = 0,
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast/--keep-going", help="End at the first cell that fails.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Train nothing: say what is to be done and what it will take, from records of "
            "like cells or from 20 steps of each method.",
        ),
    ] = False,
    out: Runs = Path("runs"),
    wide: Wide = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: Json = False,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key=value for every row, e.g. operator.p=0.3", autocompletion=offered),
    ] = None,
) -> None:
    """Train methods on identical measurements and say which is better, at what cost."""
    from .launchers import chosen, given, split, together
    from .request import Request, names
    from .runner import Part, may_write

    if dry_run and as_json:
        raise UserError("--dry-run trains nothing, and --json prints what was trained")
    progress = asked_progress(quiet, verbose)
    settings, overrides = split(overrides or [])
    overrides += together(devices_per_cell, overrides)
    settings = given(jobs, devices, timeout, retry, fail_fast) + settings
    request = Request(
        bench=bench,
        table=table,
        scale=scale,
        methods=names("--methods", methods),
        operators=names("--operator", operator),
        data=data,
        seeds=seeds,
        overrides=overrides,
        with_references=references,
        worth=worth,
    )
    share, forced = Part.read(part), names("--force", force) or []
    place = chosen(launcher, settings)
    plan = request.plan(forced)  # a mistake is told before any library is loaded
    is_kept = may_write("--out", plan, out, forced, share)
    if dry_run:
        from .forecast import forecast

        forecast(plan, out, place, Screen(wide), progress)
        return
    from .api import run_request

    screen = Screen(wide, is_quiet=quiet, has_lines=as_json)
    made = run_request(request, out, screen, progress, forced, share, place, is_kept)
    if not made.is_sound:
        raise typer.Exit(1)


def report_again(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a benchmark's tables, with its page.", **GIVEN)
    ],
    wide: Wide = False,
) -> None:
    """Write the tables and the page of a benchmark again; nothing is trained."""
    from .request import Request

    plan = Request.read(folder).plan().kept_in(folder.resolve().name)
    from .places import runs_of
    from .report import report

    if not report(plan, runs_of(folder), Screen(wide)).is_sound:
        raise typer.Exit(1)
