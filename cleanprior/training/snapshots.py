"""Averaged weights kept while a run goes on, evenly spaced: what a checkpoint is chosen from."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from ..hashed import OF, Damaged
from ..notices import Notice, tell
from .checkpoint import read_tensors, write_tensors


class Snapshots:
    """Writes averaged networks at evenly spaced steps; training itself does not notice.

    Arguments:
        folder: Where they are kept, or None to keep none.
        count: How many over the whole run; the last one is the result. 0 keeps none.
        total: Steps of the budgeted network in the whole run.
        owner: Identity of the training that they belong to.
    """

    def __init__(self, folder: Path | None, count: int, total: int, owner: str = "") -> None:
        self.folder, self.count, self.total, self.owner = folder, count, total, owner
        self.kept = 0

    def keep(self, step: int, networks: Mapping[str, nn.Module]) -> None:
        """Write the networks if a snapshot is due after ``step`` steps of the budgeted network.

        A resumed run finds those of before on disk, and they are what it would write.
        """
        if self.folder is None or self.count == 0:
            return
        number = step * self.count // self.total
        if number <= self.kept:
            return
        self.kept = number
        path = self.folder / f"snapshot-{number:03d}.safetensors"
        if not path.exists():
            tensors = {
                f"{name}.{key}": value
                for name, network in networks.items()
                for key, value in network.state_dict().items()
            }
            write_tensors(path, tensors, {OF: self.owner, "step": step, "steps": self.total})


def snapshot_files(folder: Path, owner: str | None = None) -> list[Path]:
    """Return the snapshots in their folder, the earliest first; damaged ones are told and left out.

    Arguments:
        folder: Where they are kept.
        owner: Identity of the training that they must belong to, where it is known.
    """
    found = []
    for path in sorted(folder.glob("snapshot-*.safetensors")):
        try:
            read_tensors(path, owner)
            found.append(path)
        except Damaged as error:
            tell([Notice(f"{error}; it is left out", is_warning=True)])
    return found


def load_snapshot(path: Path, networks: Mapping[str, nn.Module]) -> int:
    """Put a snapshot's weights into networks of the same build; return its step.

    Raises:
        UserError: The file is damaged.
    """
    tensors, meta = read_tensors(path)
    for name, network in networks.items():
        prefix = f"{name}."
        network.load_state_dict(
            {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        )
    return int(meta["step"])
