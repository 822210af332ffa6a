"""Where cells run: a group of configurations that is no part of any cell. No torch."""

from collections.abc import Sequence

from cleanprior.config import compose_one, construct
from cleanprior.errors import UserError

from ..runner import Launcher

GROUP = "launcher"
_PREFIX = f"{GROUP}."
PROCESSES = "training.processes"


def split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the overrides that are a launcher's, and those of cells.

    Raises:
        UserError: A launcher is chosen as if it were a part of a cell.
    """
    bare = [(o.lstrip("+"), o) for o in overrides]
    for given, _ in bare:
        if given.startswith(f"{GROUP}="):
            name = given.partition("=")[2]
            raise UserError(f"'{given}': the bench takes it as --{GROUP} {name}")
    ours = [given for given, _ in bare if given.startswith(_PREFIX)]
    return ours, [o for given, o in bare if not given.startswith(_PREFIX)]


def given(
    jobs: str = "auto",
    devices: str = "auto",
    timeout: float | None = None,
    retry: int = 0,
    is_stopping: bool = False,
) -> list[str]:
    """Return the options of ``cleanprior bench`` that differ from their defaults, as settings."""
    found = []
    if jobs != "auto":
        found.append(f"{_PREFIX}jobs={jobs}")
    if devices != "auto":
        found.append(f"{_PREFIX}devices=[{devices}]")
    if timeout is not None:
        found.append(f"{_PREFIX}timeout={timeout}")
    if retry != 0:
        found.append(f"{_PREFIX}retries={retry}")
    if is_stopping:
        found.append(f"{_PREFIX}is_stopping=true")
    return found


def together(count: int, overrides: Sequence[str]) -> list[str]:
    """Return ``--devices-per-cell`` as an override of cells; nothing for one.

    Raises:
        UserError: It is no count, or the overrides say it too.
    """
    if count < 1:
        raise UserError(f"devices-per-cell={count}; allowed: a count from 1")
    if count == 1:
        return []
    for override in overrides:
        if override.lstrip("+").startswith(f"{PROCESSES}="):
            raise UserError(f"--devices-per-cell {count} and '{override}' say the same; give one")
    return [f"{PROCESSES}={count}"]


def chosen(name: str, settings: Sequence[str] = ()) -> Launcher:
    """Return a launcher by its name in ``configs/launcher``.

    Arguments:
        name: ``local``, ``slurm``, ``ray``, or a plug-in's.
        settings: ``launcher.key=value``.

    Raises:
        UserError: An unknown name, key or value, or a library that is not installed.
    """
    for setting in settings:
        if "=" not in setting:
            raise UserError(f"'{setting}' is not an override; write {_PREFIX}key=value")
    made = construct(compose_one(GROUP, name, settings))
    for method in ("run", "count"):
        if not callable(getattr(made, method, None)):
            raise UserError(f"launcher '{name}': {type(made).__name__} has no {method}()")
    launcher: Launcher = made
    return launcher


__all__ = ["chosen", "given", "split", "together"]
