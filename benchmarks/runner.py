"""Runs the cells of a plan that are not finished, each in its turn, and collects the records."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cleanprior.cells.folder import CellFolder
from cleanprior.cells.migration import take_over
from cleanprior.cells.record import Record, has_other_code, is_finished, read_record
from cleanprior.cells.status import Status
from cleanprior.config import Config
from cleanprior.errors import UserError
from cleanprior.files import check_folder
from cleanprior.jobs.drive import Todo
from cleanprior.jobs.local import Local
from cleanprior.progress import Progress

from .plan import Plan, Problem, refusal

#: Code of a row whose method is no longer what it was trained by.
OTHER_CODE = "code"
TRAINED_BY_OTHER = (
    "trained by other code of the method than is installed; --force NAME trains it again"
)


class Launcher(Protocol):
    """Where the cells of a benchmark run."""

    def run(self, todo: Sequence[Todo], progress: Progress) -> None:
        """Run all cells; what one of them raises is the status of its row."""
        ...

    def count(self, todo: Sequence[Todo]) -> int:
        """Return how many of them it runs at a time."""
        ...


@dataclass(frozen=True)
class Part:
    """A share of a benchmark's cells, for a process of its own: every ``of``-th, from ``number``.

    Attributes:
        number: From 1 to ``of``.
        of: How many shares there are; together they are all cells, each once.
    """

    number: int = 1
    of: int = 1

    @staticmethod
    def read(text: str) -> "Part":
        """Return the part that ``3/8`` names.

        Raises:
            UserError: Anything else.
        """
        number, _, of = text.partition("/")
        if number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of):
            return Part(int(number), int(of))
        raise UserError(f"part={text}; allowed: NUMBER/OF, e.g. 1/8 to 8/8")


def pending(
    plan: Plan, out: Path, forced: Collection[str], part: Part = Part()
) -> list[tuple[str, Config]]:
    """Return the cells to be trained, each with its row: not finished, not refused, or forced."""
    cells = [
        (row, config)
        for problem in plan.problems
        for row, configs in problem.cells.items()
        for config in configs
        if refusal(config) is None
    ]
    return [
        (row, config)
        for row, config in cells[part.number - 1 :: part.of]
        if row in forced or not is_finished(read_record(CellFolder(out, config)))
    ]


def may_write(
    option: str, plan: Plan, out: Path, forced: Collection[str], part: Part = Part()
) -> bool:
    """Return whether the folder of runs takes files; one that takes none may hold all cells.

    Arguments:
        option: What named the folder, for the error.
        plan: The benchmark.
        out: The folder.
        forced: Rows to train again.
        part: The share of this process.

    Raises:
        UserError: It takes none, and there are cells to train.
    """
    try:
        check_folder(option, out)
    except UserError:
        if out.is_dir() and not pending(plan, out, forced, part):
            return False
        raise
    return True


def run(
    plan: Plan,
    out: Path,
    forced: Collection[str],
    progress: Progress,
    part: Part = Part(),
    launcher: Launcher | None = None,
) -> None:
    """Train and evaluate every pending cell; a cell that fails becomes a row and not a crash.

    Arguments:
        plan: The benchmark.
        out: Folder of all runs.
        forced: Rows to train again.
        progress: Where to show progress.
        part: The share of this process.
        launcher: Where cells run; None takes the processes of this machine.

    Raises:
        UserError: A value that a part refuses: told before the first cell is trained. What a cell
            refuses later is the status of its row, and the others go on.
    """
    take_over(
        CellFolder(out, config)
        for problem in plan.problems
        for configs in problem.cells.values()
        for config in configs
    )
    todo = pending(plan, out, forced, part)
    if not todo:
        return
    retrained: set[Path] = set()  # problems that differ in evaluation alone share a training
    cells = []
    for row, config in todo:
        folder = CellFolder(out, config)
        is_forced = row in forced and folder.path not in retrained
        retrained.add(folder.path)
        label = (
            f"{row} on {config['operator']['name']}, {config['data']['name']}, "
            f"seed {config['seed']}"
        )
        has_failed = row not in forced and read_record(folder) is not None
        cells.append(Todo(label, out, config, is_forced, has_failed))
    # What has failed comes last: what takes its machine down does not do so before the others.
    cells.sort(key=lambda cell: cell.has_failed)
    (launcher or Local()).run(cells, progress)


def record_of(row: str, config: Config, out: Path) -> Record:
    """Return the record of a cell as a row of a table has it; a refusal as a skipped one.

    Arguments:
        row: The row, which may be a variant of the method.
        config: The cell's composed configuration.
        out: Folder of all runs.
    """
    folder = CellFolder(out, config)
    record = read_record(folder)
    if (reason := refusal(config)) is not None:
        record = {"status": Status("skipped", reason).to_json()}
    record = record or {"status": Status("not run").to_json()}
    record |= {"method": row, "seed": config["seed"]}
    if is_finished(record) and has_other_code(folder, record):
        record["warning"] = "+".join(filter(None, (record.get("warning"), OTHER_CODE)))
        record["warned"] = {**(record.get("warned") or {}), OTHER_CODE: TRAINED_BY_OTHER}
    return record


def records(problem: Problem, out: Path) -> dict[str, list[Record]]:
    """Return the records of a problem's cells by method, a refusal as a skipped record.

    Raises:
        UserError: Two finished cells were trained on different measurements.
    """
    found: dict[str, list[Record]] = {}
    take_over(CellFolder(out, c) for configs in problem.cells.values() for c in configs)
    for method, configs in problem.cells.items():
        found[method] = [record_of(method, config, out) for config in configs]
    hashes = {
        r["measurements_sha256"]: m
        for m, rs in found.items()
        for r in rs
        if is_finished(r) and r.get("rows")
    }
    if len(hashes) > 1:
        raise UserError(
            f"the rows {', '.join(hashes.values())} were trained on different measurements; "
            "retrain with --force"
        )
    return found
