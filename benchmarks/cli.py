"""The commands ``cleanprior bench`` and ``cleanprior report``. Light to import."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cleanprior.errors import UserError
from cleanprior.options import GIVEN, Out

if TYPE_CHECKING:
    from .plan import Plan

REQUEST = "request.json"
Wide = Annotated[
    bool,
    typer.Option(
        "--wide",
        help="Print every column, however wide. Else those that the terminal has room for; 140 "
        "columns where the output is none, or as many as COLUMNS says.",
    ),
]


def _split(option: str, value: str | None) -> list[str] | None:
    """Return comma-separated names, each once; None where the option was not given."""
    if value is None:
        return None
    names = list(dict.fromkeys(v.strip() for v in value.split(",") if v.strip()))
    if not names:
        raise UserError(f"{option} '{value}' names nothing; leave it out, or give names")
    return names


def bench(
    methods: Annotated[
        str | None, typer.Option(help="Methods, comma-separated; default: the benchmark's.")
    ] = None,
    operator: Annotated[
        str | None, typer.Option(help="Operators, comma-separated: one table each.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Data set.")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="Training seeds: how many (3), or which (7,8,9; one alone: 7,)."),
    ] = None,
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
    part: Annotated[
        str, typer.Option(help="Train this share of the cells only, e.g. 3/8: one job of an array.")
    ] = "1/1",
    out: Out = Path("runs"),
    wide: Wide = False,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value for every row, e.g. operator.p=0.3")
    ] = None,
) -> None:
    """Train methods on identical measurements and say which is better, at what cost."""
    request = {
        "bench": bench,
        "table": table,
        "scale": scale,
        "methods": _split("--methods", methods),
        "operators": _split("--operator", operator),
        "data": data,
        "seeds": seeds,
        "overrides": overrides or [],
        "with_references": references,
    }
    from .plan import check_forced
    from .runner import Part, run

    plan = _plan(request)
    share = Part.read(part)
    forced = _split("--force", force) or []
    check_forced(plan, forced)
    from rich.console import Console

    from cleanprior.files import write_text
    from cleanprior.progress import Progress

    from .report import report

    run(plan, out, forced, Progress(Console(stderr=True)), share)
    write_text(out / "tables" / plan.key / REQUEST, json.dumps(request, indent=1))
    if not report(plan, out, wide):
        raise typer.Exit(1)


def _plan(request: dict[str, Any]) -> "Plan":
    from . import described
    from .plan import make_plan

    given = dict(request)
    bench, table, scale = (given.pop(k) for k in ("bench", "table", "scale"))
    chosen = described.bench(bench) if table is None else described.table(table, scale)
    return make_plan(chosen, **given)


def report_again(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a benchmark's tables, with its page.", **GIVEN)
    ],
    wide: Wide = False,
) -> None:
    """Write the tables and the page of a benchmark again; nothing is trained."""
    try:
        request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        known = sorted(str(p.parent) for p in Path("runs/tables").glob(f"*/{REQUEST}"))
        there = f"; there are: {', '.join(known)}" if known else ""
        raise UserError(
            f"'{folder}' holds no {REQUEST}: give the folder that `cleanprior bench` printed as "
            f"that of its page{there}"
        ) from error
    try:
        plan = _plan(request)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"'{folder / REQUEST}' is damaged; run `cleanprior bench` again, which trains nothing "
            "that is finished"
        ) from error
    from .report import report

    if not report(plan, folder.resolve().parent.parent, wide):
        raise typer.Exit(1)
