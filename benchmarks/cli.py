"""The command ``cleanprior bench``. Light to import."""

from pathlib import Path
from typing import Annotated

import typer


def _split(value: str | None) -> list[str] | None:
    return None if value is None else [v.strip() for v in value.split(",") if v.strip()]


def bench(
    methods: Annotated[
        str | None, typer.Option(help="Methods, comma-separated; default: the benchmark's.")
    ] = None,
    operator: Annotated[
        str | None, typer.Option(help="Operators, comma-separated: one table each.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data set.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Number of training seeds.")] = None,
    bench: Annotated[str, typer.Option(help="Benchmark configuration.")] = "default",
    table: Annotated[
        str | None, typer.Option(help="A paper's table: its numbers beside ours.")
    ] = None,
    scale: Annotated[str, typer.Option(help="Of a paper's table: cpu, gpu or paper.")] = "cpu",
    references: Annotated[
        bool, typer.Option(help="Add the rows that anchor the table (observations, oracle, ...).")
    ] = True,
    force: Annotated[
        str | None, typer.Option(help="Methods to train again, comma-separated.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of all runs.")] = Path("runs"),
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value for every row, e.g. operator.p=0.3")
    ] = None,
) -> None:
    """Train methods on identical measurements and say which is better, at what cost."""
    from . import described
    from .plan import check_forced, make_plan

    chosen = described.bench(bench) if table is None else described.table(table, scale)
    plan = make_plan(
        chosen, _split(methods), _split(operator), data, seeds, overrides or [], references
    )
    forced = _split(force) or []
    check_forced(plan, forced)
    from rich.console import Console

    from cleanprior.progress import Progress

    from .report import report
    from .runner import run

    run(plan, out, forced, Progress(Console(stderr=True)))
    if not report(plan, out):
        raise typer.Exit(1)
