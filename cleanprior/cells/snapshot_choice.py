"""Choose among the snapshots of a run by measurements alone, and compare with clean images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from ..data.datasets import CleanData
from ..errors import UserError
from ..evaluation.metrics.features import choose
from ..evaluation.metrics.proximal import Proximal
from ..evaluation.metrics.restoration import frechet_distance
from ..hashed import OF, Damaged
from ..progress import Progress
from ..training.checkpoint import read_tensors
from ..training.snapshots import load_snapshot, snapshot_files
from .run import Cell


@dataclass(frozen=True)
class Score:
    """The distances of one snapshot's samples.

    Attributes:
        step: Step of training.
        proximal: Proximal Frechet distance: lower is nearer to the measurements.
        distance: Frechet distance to the clean training split, or None without clean images. It
            shows how good the choice was. Do not choose by it: that would use clean images.
    """

    step: int
    proximal: float
    distance: float | None


@dataclass(frozen=True)
class Scores:
    """Every snapshot of a run, and the range of the proximal distance.

    Attributes:
        scores: The earliest snapshot first.
        floor: Proximal distance of measurements among themselves.
        ceiling: Proximal distance of images that are 0 everywhere.
        features: Features of the proximal distance.
    """

    scores: list[Score]
    floor: float
    ceiling: float
    features: str

    @property
    def chosen(self) -> Score:
        """The snapshot of the least proximal distance."""
        return min(self.scores, key=lambda s: s.proximal)


def _snapshots(cell: Cell) -> list[Path]:
    """Return the snapshots of a cell's training: whole, and of the training of its checkpoint."""
    files = cell.folder.files.training
    try:
        owner = read_tensors(files.checkpoint)[1].get(OF)
    except Damaged:
        owner = None  # nobody knows
    return snapshot_files(files.snapshots, owner)


def _networks(cell: Cell, files: list[Path]) -> Iterator[tuple[int, dict[str, nn.Module]]]:
    """Yield the step and the networks of each snapshot; they are the same ones."""
    method = cell.method
    method.setup(cell.problem, cell.trainer.device)
    networks = {k: v.eval().requires_grad_(False) for k, v in method.networks().items()}
    for path in files:
        yield load_snapshot(path, networks), networks


def _sample(cell: Cell, networks: Mapping[str, nn.Module], n: int) -> Tensor:
    """Draw n samples of a snapshot, by its prior or, without one, as the method samples itself.

    Raises:
        UserError: The method does not sample.
    """
    prior, protocol = cell.method.prior(networks), cell.protocol
    if prior is not None:
        return prior.sample(n, cell.sampler, protocol.seed, protocol.chunk)
    for route in cell.method.routes_on_cpu(networks):
        if route.sample is not None:
            return route.samples(n, protocol.seed)
    raise UserError(f"{cell.method.name} learns nothing to sample from")


def save_chosen(cell: Cell, scores: Scores, to: Path) -> None:
    """Write the prior of the snapshot that the measurements chose.

    Raises:
        UserError: The method learns no denoiser, or the disk refuses the write.
    """
    file = _snapshots(cell)[scores.scores.index(scores.chosen)]
    ((_, networks),) = _networks(cell, [file])
    prior = cell.method.prior(networks)
    if prior is None:
        raise UserError(f"{cell.method.name} learns no denoiser: there is no prior to write")
    begun = {} if cell.start is None else {"start": cell.start}
    prior.about = cell.about() | {
        **begun,
        "clean_images": len(cell.clean_index()),
        "measurements_sha256": cell.measurements("train").hash,
        "config": cell.config,
        "step": scores.chosen.step,
        "chosen_by": f"proximal FD on {scores.features}",
    }
    prior.save(to)


def score_snapshots(cell: Cell, n: int, progress: Progress, features: str = "pixels") -> Scores:
    """Sample from every snapshot of a cell and compare with its training measurements.

    Arguments:
        cell: The cell that was trained.
        n: Samples drawn from each snapshot, by the cell's sampler and evaluation seed.
        progress: Where to show progress.
        features: Of the proximal distance. The pixels need no clean image; a classifier has learned
            from them.

    Raises:
        UserError: No snapshot, or a method that does not sample.
    """
    files = _snapshots(cell)
    if not files:
        raise UserError(
            f"'{cell.folder.path}' holds no snapshots; train with training.snapshots=8 "
            "(and --force)"
        )
    protocol = cell.protocol
    measured = cell.measurements("train")
    data = cell.data if isinstance(cell.data, CleanData) else None
    cache = cell.folder.features
    chosen = choose(features, data, cache, protocol.download, progress)
    proximal = Proximal(
        chosen, cell.operator, measured, protocol.seed, data is not None, cache, progress
    )
    reference = None if data is None else choose("auto", data, cache, progress=progress)
    clean = None if data is None or reference is None else reference(data.train)
    found = []
    with progress.task("snapshots", len(files)) as task:
        for step, networks in _networks(cell, files):
            x = _sample(cell, networks, n)
            distance = None
            if reference is not None and clean is not None:
                distance = frechet_distance(clean, reference(x))
            found.append(Score(step, proximal(x), distance))
            task.advance(1)
    return Scores(found, proximal.floor(n).mean, proximal.ceiling(n), proximal.features.name)
