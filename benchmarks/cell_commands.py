"""How to get a cell again: the command that trains it, and where its prior lies. No torch."""

import json
import shlex
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from cleanprior.cells.folder import cells_below
from cleanprior.cells.record import Record
from cleanprior.config import GROUPS, Config, compose
from cleanprior.config.hydra_files import default_groups

#: Keys that no override sets.
_FIXED = ("name", "about", "capabilities")


def train_command(config: Config) -> str:
    """Return ``cleanprior train ...``, which composes this configuration again."""
    defaults = default_groups()
    names = {group: str(config[group]["name"]) for group in GROUPS}
    chosen = [f"{group}={name}" for group, name in names.items() if name != defaults.get(group)]
    plain = _composed(tuple(chosen))
    changed = [f"{key}={_text(value)}" for key, value in _changes(config, plain, "")]
    return shlex.join(["cleanprior", "train", *chosen, *changed])


@lru_cache(maxsize=64)
def _composed(chosen: tuple[str, ...]) -> Config:
    return compose(chosen)


def _changes(
    config: Mapping[str, Any], plain: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Any]]:
    """Yield the keys whose values differ from those of their groups, and the values."""
    for key, value in config.items():
        before = plain.get(key)
        if key in _FIXED and prefix or value == before:
            continue
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            yield from _changes(value, before, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def from_here(folder: Path) -> Path:
    """Return a folder as a command run here names it, however it was given.

    Relative to the working folder where it lies inside, else absolute: a page that is written
    again is the same.
    """
    whole, here = folder.resolve(), Path.cwd().resolve()
    return whole.relative_to(here) if whole.is_relative_to(here) else whole


def priors(out: Path) -> dict[str, Path]:
    """Return the folder of each prior below a folder of runs, by its record's ``cell``."""
    found: dict[str, Path] = {}
    for files in cells_below(out):
        if files.prior.is_dir():
            found |= dict.fromkeys(files.records(), files.prior)
    return found


def notes(record: Record, out: Path, found: Mapping[str, Path]) -> dict[str, str]:
    """Return the lines that a page shows above a cell's configuration, by heading.

    Arguments:
        record: A cell's record.
        out: Folder of all runs.
        found: From :func:`priors`.
    """
    lines = {}
    if config := record.get("config"):
        command = train_command(config)
        lines["again"] = command if out == Path("runs") else f"{command} --out {_quoted(out)}"
    if prior := found.get(str(record.get("cell"))):
        lines["prior"] = str(prior)
        lines["use it"] = f"cleanprior sample {_quoted(prior)}"
    return lines


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
