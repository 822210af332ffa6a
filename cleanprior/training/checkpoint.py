"""Atomic files: a checkpoint is whole or absent, a result is computed once."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from ..files import refused, write_with
from ..outside import check_regular
from ..passes import Meter


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header to one file, atomically.

    Raises:
        UserError: The disk refuses the write; the file that stood there is intact.
    """
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    header = {"json": json.dumps(meta)}
    try:
        write_with(path, lambda staging: save_file(plain, staging, metadata=header))
    except SafetensorError as error:  # a disk's refusal, in that library's words
        raise UserError(refused(path, error)) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    Raises:
        UserError: The file is damaged.
    """
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("json", "{}"))
            return {k: file.get_tensor(k) for k in file.keys()}, header  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"'{path}' is damaged; remove it to start again: {error}") from error


class Store:
    """Results of an E-step, each computed once and found again after an interruption.

    Arguments:
        folder: Where results are kept; None keeps nothing (each is computed when asked for).
        meter: Counts passes of networks; those of a result that is found again are added to it.
    """

    def __init__(self, folder: Path | None, meter: Meter | None = None) -> None:
        self.folder, self.meter = folder, meter or Meter()

    def once(
        self, key: str, compute: Callable[[], tuple[dict[str, Tensor], dict[str, float]]]
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the tensors and costs of ``key``, computing them when they are not on disk."""
        if self.folder is None:
            return compute()
        path = self._path(key)
        if path.exists():
            tensors, header = read_tensors(path)
            self.meter.add(header["passes"])
            return tensors, header["costs"]
        before = self.meter.so_far()
        tensors, costs = compute()
        write_tensors(path, tensors, {"costs": costs, "passes": self.meter.since(before)})
        return {k: v.detach().cpu() for k, v in tensors.items()}, costs

    def read(self, key: str) -> dict[str, Tensor] | None:
        """Return the tensors of ``key`` where they are on disk, at no cost."""
        if self.folder is None or not (path := self._path(key)).exists():
            return None
        return read_tensors(path)[0]

    def forget(self, key: str) -> None:
        """Remove what was computed of ``key``."""
        if self.folder is not None:
            self._path(key).unlink(missing_ok=True)

    def lasting(self) -> "Store":
        """Return a store beside, of what the end of a round does not remove."""
        return Store(None if self.folder is None else self.folder / "kept")

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.safetensors"

    def clear(self) -> None:
        """Remove what a finished round computed."""
        if self.folder is not None and self.folder.exists():
            for file in self.folder.glob("*.safetensors"):
                file.unlink()


def flatten_optimiser(name: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state as named tensors (nothing pickled)."""
    return {
        f"optimiser.{name}.{i}.{key}": torch.as_tensor(value)
        for i, state in optimiser.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_optimiser(
    name: str, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put the tensors of :func:`flatten_optimiser` back."""
    prefix = f"optimiser.{name}."
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(prefix):
            number, entry = key[len(prefix) :].split(".", 1)
            state.setdefault(int(number), {})[entry] = value
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
