"""The command line. Light to import: commands load torch when they begin to work."""

import json
import signal
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import __version__, stopping
from .commands.evaluate import evaluate
from .commands.examples import epilog
from .commands.inspect import inspect
from .commands.measure import measure
from .commands.options import Json, Out, Overrides, Quiet, Verbose, asked_progress
from .commands.priors import sample
from .commands.restore import restore
from .commands.show import list_, new, status
from .config import capabilities, registry
from .environment import is_first, processes, take_precision_away
from .errors import PeerLost, UserError, is_out_of_memory, one_line
from .notices import show_on_stderr
from .streams import lasting

if TYPE_CHECKING:
    from .cells.record import Record

app = typer.Typer(
    name="cleanprior",
    help="Train generative priors from corrupted data only, and say which method is better.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
#: What typer returns after Ctrl-C.
INTERRUPTED = 130


def _version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"cleanprior {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[  # noqa: ARG001  (its callback has done it)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train generative priors from corrupted data only, and say which method is better."""
    show_on_stderr()


@app.command()
def train(
    overrides: Overrides = None,
    out: Out = Path("runs"),
    force: bool = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Train and evaluate one method: cleanprior train method=em operator=denoising."""
    from .cells.folder import CellFolder
    from .cells.migration import take_over
    from .cells.record import has_other_code, is_finished, read_record
    from .config import compose

    progress = asked_progress(quiet, verbose)
    config = compose(overrides or [])
    folder = CellFolder(out, config)
    take_over([folder])
    record = read_record(folder)
    if force or not is_finished(record):
        _check_needs(config)
        from .jobs.drive import Todo
        from .jobs.local import Local

        if processes() > 1:
            from .cells.run import run_together

            # Ctrl-C comes twice, from the terminal and from who has started the processes.
            with stopping.orderly(is_patient=True):
                record = run_together(folder, progress, force)
        else:
            Local(jobs="auto").run([Todo(_title(config), out, config, force)], progress)
            record = read_record(folder)
    assert record is not None
    if is_first():
        _tell(record, folder.path, as_json)
    if not (as_json or quiet) and is_finished(record) and has_other_code(folder, record):
        typer.echo("trained by other code of the method than is installed; --force trains it again")
    if record["status"] != "done":
        raise typer.Exit(1)


app.command()(inspect)
app.command()(measure)
app.command()(sample)
app.command()(restore)
app.command()(evaluate)
app.command("list")(list_)
app.command()(status)
app.command()(new)


def _check_needs(config: dict[str, Any]) -> None:
    """Refuse a method on an operator before torch is loaded."""
    found = capabilities.refused(config)
    if found is None:
        return
    if found.code == capabilities.CLEAN:
        more = "; `cleanprior list methods` shows how many each one starts from"
    else:
        more = suggestion(config["operator"], config.get("noise"))
    raise UserError(found.reason + more)


def suggestion(operator: dict[str, Any], noise: dict[str, Any] | None = None) -> str:
    """Name the installed methods that may be trained on a composed operator and its noise."""
    able, facts = [], capabilities.ProblemFacts.of(operator, noise=noise)
    for name, method in registry.readable("method").items():
        if capabilities.refusal({**method, "name": name}, facts) is None:
            able.append(name)
    return f". Methods that can be trained on it: {', '.join(able)}" if able else ""


def _title(config: dict[str, Any]) -> str:
    """Return how progress names a cell."""
    method, operator, data = (config[group]["name"] for group in ("method", "operator", "data"))
    return f"{method} on {operator}, {data}, seed {config['seed']}"


def _tell(record: "Record", folder: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(record, allow_nan=False))
        return
    typer.echo(f"{record['method']} on {record['operator']}, {record['data']}: {record['status']}")
    for row in record.get("rows", ()):
        figures = ", ".join(f"{k} {v:.3f}" for k, v in row["metrics"].items())
        typer.echo(f"  {row['way']}: {figures}")
    typer.echo(f"files: {folder}")


@cache
def build_app() -> typer.Typer:
    """Return the application with the commands that entry points add."""
    own = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    for name, entry in registry.installed(registry.COMMANDS).items():
        if name in own:
            continue  # the list's last lines say so
        try:
            command = entry.load()
        except (Exception, SystemExit) as error:
            if registry.is_own(entry):
                raise
            command = _broken(name, f"{type(error).__name__}: {error}")
        app.command(name)(command)
    for info in app.registered_commands:
        info.epilog = epilog(info.name or info.callback.__name__)  # type: ignore[union-attr]
    return app


def _broken(name: str, reason: str) -> Callable[[], None]:
    """Return a command in the place of one that cannot be loaded."""

    def command() -> None:
        raise UserError(f"the command '{name}' of a plug-in cannot be loaded: {reason}")

    command.__doc__ = f"Cannot be loaded: {reason}"
    return command


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    sys.stdout = lasting(sys.stdout)
    sys.stderr = lasting(sys.stderr, is_line_buffered=True)
    take_precision_away()
    signal.signal(signal.SIGTERM, stopping.raise_at_once)
    sys.exit(_run())


def _run() -> int:
    """Return the exit code: 0, 1 where a row failed, 2 for a user's mistake, 130 interrupted."""
    usage: type[Any] = typer.BadParameter.__mro__[1]  # click's UsageError, wherever typer keeps it
    try:
        if not registry.installed(registry.METHODS):
            raise UserError(
                "cleanprior is not installed for this Python: in its folder, run "
                f"'{sys.executable} -m pip install -e .'"
            )
        code = build_app()(standalone_mode=False)
    except UserError as error:
        sys.stderr.write(f"error: {one_line(str(error))}\n")
        return 2
    except usage as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            command = error.ctx.command_path if error.ctx else "cleanprior"
            sys.stderr.write(f"error: {error.format_message()} (see: {command} --help)\n")
        return 2
    except PeerLost as error:
        sys.stderr.write(f"error: {one_line(str(error))}\n")
        return 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        sys.stderr.write(f"error: out of memory: {one_line(str(error)) or 'no more is free'}\n")
        return 1
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # typer's own, too
        sys.stderr.write("interrupted; run the same command to go on from the last checkpoint\n")
        return stopping.code()
    return code if isinstance(code, int) else 0
