"""What a process may be asked to do: one function a stage, plain values in and out."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..cells.folder import CellFolder, TrainingFiles
from ..errors import UserError
from ..fingerprint import learn
from ..progress import Progress

Request = Mapping[str, Any]


def _folder(request: Request) -> CellFolder:
    """Return the cell's folder; what is known of the user's files is not read again for it."""
    learn(request.get("known", ()))
    return CellFolder(Path(request["out"]), request["config"])


def check(request: Request, _: Progress) -> list[int]:
    """Build every cell's parts, so that a value that a part refuses is told before any training.

    Returns:
        The rounds of each cell's training: what has more of them takes longer.

    Raises:
        UserError: The first refusal. What else a constructor raises comes again when the cell's
            turn comes, and is its row's status.
    """
    from ..cells.run import Cell

    learn(request.get("known", ()))
    rounds = []
    for config in request["configs"]:
        try:
            cell = Cell(CellFolder(Path(request["out"]), config), is_kept=True)
            rounds.append(len(cell.method.rounds(cell.trainer.steps)))
        except UserError:
            raise
        except Exception:
            rounds.append(0)
    return rounds


def prepare(request: Request, _: Progress) -> tuple[str, tuple[int, int, int]]:
    """See :func:`cleanprior.cells.run.prepare`."""
    from ..cells import run

    return run.prepare(_folder(request), request["force"])


def train(request: Request, progress: Progress) -> None:
    """See :func:`cleanprior.cells.run.train`; the folder of the job is all that is known here."""
    from ..cells import run

    run.train(TrainingFiles(Path(request["folder"])), progress)


def evaluate(request: Request, progress: Progress) -> bool:
    """See :func:`cleanprior.cells.run.evaluate`."""
    from ..cells import run

    return run.evaluate(_folder(request), progress)


def trial(request: Request, progress: Progress) -> dict[str, Any]:
    """See :func:`cleanprior.jobs.trial.trial`."""
    from .trial import trial

    return trial(_folder(request), progress)


STAGES: dict[str, Callable[[Request, Progress], Any]] = {
    "check": check,
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "trial": trial,
}
