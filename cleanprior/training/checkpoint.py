"""Atomic files: a checkpoint is whole or absent, a result is computed once."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import UserError
from ..files import RefusedWrite, refused, write_with
from ..hashed import OF, Damaged, Part, check_header, check_owner, header_of
from ..notices import Notice, tell
from ..outside import check_regular
from ..passes import Meter
from .ranks import Ranks


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], is_hashed: bool = True
) -> None:
    """Write tensors, a JSON header and the hash of both to one file, atomically.

    Arguments:
        path: The file.
        tensors: By name.
        meta: Plain values; ``of`` says what the file belongs to.
        is_hashed: Whether the hash is written; not where the header has one of its own.

    Raises:
        UserError: The disk refuses the write; the file that stood there is intact.
    """
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    header = header_of(map(_part, plain.items()), meta) if is_hashed else {"json": json.dumps(meta)}
    try:
        write_with(path, lambda staging: save_file(plain, staging, metadata=header))
    except SafetensorError as error:  # a disk's refusal, in that library's words
        raise RefusedWrite(refused(path, error)) from error


def _part(item: tuple[str, Tensor]) -> Part:
    name, value = item
    content = value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b""
    return name, str(value.dtype).removeprefix("torch."), tuple(value.shape), content


def read_tensors(path: Path, owner: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_tensors` wrote.

    Arguments:
        path: The file.
        owner: What it must belong to, where that is known: ``meta["of"]``.

    Raises:
        Damaged: It cannot be read, its content has another hash, or it belongs to something else.
    """
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except UserError as error:
        raise Damaged(str(error)) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise Damaged(f"'{path}' is damaged: {error}") from error
    meta = check_header(path, metadata, map(_part, tensors.items()))
    if owner is not None:
        check_owner(path, meta, owner)
    return tensors, meta


class Store:
    """Results of an E-step, each computed once and found again after an interruption.

    Arguments:
        folder: Where results are kept; None keeps nothing (each is computed when asked for).
        meter: Counts passes of networks; those of a result that is found again are added to it.
        owner: Identity of the training that they belong to.
        ranks: Processes that train together and share the folder.
    """

    def __init__(
        self,
        folder: Path | None,
        meter: Meter | None = None,
        owner: str | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.folder, self.meter, self.owner = folder, meter or Meter(), owner
        self.ranks = ranks or Ranks()

    def _once(
        self,
        key: str,
        compute: Callable[[], tuple[dict[str, Tensor], dict[str, float]]],
        is_counted: bool = True,
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        if self.folder is None:
            return compute()
        path = self._path(key)
        if path.exists():
            try:
                tensors, header = read_tensors(path, self.owner)
                passes, costs = header["passes"], header["costs"]
                if is_counted:
                    self.meter.add(passes)
                return tensors, costs
            except (Damaged, LookupError, TypeError, AttributeError) as error:
                told = error if isinstance(error, Damaged) else f"'{path}' is damaged: {error}"
                tell([Notice(f"{told}; computed again", is_warning=True)])
        before = self.meter.so_far()
        tensors, costs = compute()
        header = {"costs": costs, "passes": self.meter.since(before)}
        write_tensors(path, tensors, header if self.owner is None else {**header, OF: self.owner})
        return {k: v.detach().cpu() for k, v in tensors.items()}, costs

    def all(
        self,
        keys: Sequence[str],
        compute: Callable[[int], tuple[dict[str, Tensor], dict[str, float]]],
    ) -> Iterator[tuple[dict[str, Tensor], dict[str, float]]]:
        """Yield the results of several keys in their order; processes share the work.

        Arguments:
            keys: One a result.
            compute: Returns tensors and costs by the number of the key. They must not depend on
                which process computes them.
        """
        if self.ranks.count > 1 and self.folder is not None:
            for number in range(self.ranks.index, len(keys), self.ranks.count):
                self._once(keys[number], partial(compute, number))
            self.ranks.wait()
            for number, key in enumerate(keys):
                yield self._once(key, partial(compute, number), is_counted=False)
            return
        for number, key in enumerate(keys):
            yield self._once(key, partial(compute, number))

    def once(
        self, key: str, compute: Callable[[], tuple[dict[str, Tensor], dict[str, float]]]
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the tensors and costs of ``key``, computing them when they are not on disk.

        Of several processes the first one computes, and the others find the result.
        """
        if self.folder is not None and self.ranks.count > 1:
            if self.ranks.is_first:
                self._once(key, compute)
            self.ranks.wait()
            return self._once(key, compute, is_counted=False)
        return self._once(key, compute)

    def read(self, key: str) -> dict[str, Tensor] | None:
        """Return the tensors of ``key`` where they are on disk, at no cost.

        Raises:
            Damaged: They are damaged, or another training's. Nobody can compute them here: the
                training begins again.
        """
        if self.folder is None or not (path := self._path(key)).exists():
            return None
        return read_tensors(path, self.owner)[0]

    def forget(self, key: str) -> None:
        """Remove what was computed of ``key``."""
        if self.folder is not None:
            self._path(key).unlink(missing_ok=True)

    def lasting(self) -> "Store":
        """Return a store beside, of what the end of a round does not remove."""
        folder = None if self.folder is None else self.folder / "kept"
        return Store(folder, owner=self.owner, ranks=self.ranks)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.safetensors"

    def clear(self) -> None:
        """Remove what a finished round computed."""
        if self.folder is not None and self.folder.exists():
            for file in self.folder.glob("*.safetensors"):
                file.unlink()


def check_weights(
    path: Path, saved: Mapping[str, Tensor], modules: Mapping[str, nn.Module], owner: str
) -> None:
    """Check that a checkpoint holds the weights of these modules, and no others.

    Arguments:
        path: The checkpoint, for the error.
        saved: Its tensors.
        modules: The modules by the beginning of their tensors' names.
        owner: Whose they are, for the error.

    Raises:
        Damaged: It does not.
    """
    wanted = {f"{k}.{n}": v.shape for k, m in modules.items() for n, v in m.state_dict().items()}
    found = {k: v.shape for k, v in saved.items() if not k.startswith("optimiser.")}
    if wanted != found:
        raise Damaged(f"'{path}' holds other networks than {owner} has")


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
