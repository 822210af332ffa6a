"""Cells as jobs of a Slurm cluster, by submitit: an array, one task a cell. No torch."""

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cleanprior.errors import UserError
from cleanprior.jobs.drive import Todo
from cleanprior.jobs.node import Node, Task, hand_over
from cleanprior.progress import Progress

from .following import Following, check_keys, following, need

#: Tasks of one array; Slurm takes 1,001 unless its administrator says otherwise.
ARRAY = 1000
#: Seconds between two looks at the jobs.
INTERVAL = 2.0
#: Seconds after which a job that Slurm knows no more and that left no result is lost.
LOST = 20.0
#: Seconds that a job has to write its state before its node is taken away.
NOTICE = 90


class Work:
    """What a job does. submitit calls ``checkpoint`` when the job's node is wanted back."""

    def __init__(self) -> None:
        self._node: Node | None = None

    def __call__(self, task: Task) -> str:
        """Work on a cell; return its status."""
        self._node = Node(task)
        return self._node.work()

    def checkpoint(self, task: Task) -> Any:
        """Have the state of the cell written, and return what goes on from it."""
        from submitit.helpers import DelayedSubmission

        if self._node is not None:
            self._node.end()
        return DelayedSubmission(Work(), task)


@dataclass(frozen=True)
class Slurm:
    """Jobs of a Slurm cluster; see ``configs/launcher/slurm.yaml`` for units.

    Raises:
        ValueError: A value outside its range.
        UserError: submitit is not installed.
    """

    partition: str | None = None
    gpus: int = 0
    cpus: int = 1
    memory: float | None = None
    time: int = 1440
    requeues: int = 10
    max_parallel: int = 64
    setup: Sequence[str] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    timeout: float | None = None
    retries: int = 0
    is_stopping: bool = False

    def __post_init__(self) -> None:
        check_keys(self)
        need("submitit")

    def count(self, todo: Sequence[Todo]) -> int:
        """Return how many cells are worked on at a time."""
        return min(self.max_parallel, len(todo))

    def run(self, todo: Sequence[Todo], progress: Progress) -> None:
        """Train and evaluate cells; what one of them raises is the status of its row.

        Raises:
            UserError: Slurm is not there, or refuses the jobs; a value that a part refuses.
            Stopped: The process was asked to end; the jobs are cancelled.
        """
        with following(todo, progress, self.is_stopping) as told:
            for first in range(0, len(todo), ARRAY):
                cells = [hand_over(cell) for cell in todo[first : first + ARRAY]]
                waiting = dict(zip(self._submit(cells), cells, strict=True))
                array = next(iter(waiting)).job_id.partition("_")[0]
                progress.say(f"Slurm's job {array}: {len(cells)} cells")
                try:
                    _follow(waiting, told)
                finally:
                    for job in waiting:
                        job.cancel(check=False)
                if told.is_over:
                    return

    def _submit(self, cells: Sequence[Todo]) -> list[Any]:
        """Return submitit's jobs, one a cell."""
        import submitit

        tasks = [Task(cell, self.cpus, self.timeout, self.retries) for cell in cells]
        given = {
            "slurm_partition": self.partition,
            "gpus_per_node": self.gpus or None,
            "mem_gb": self.memory,
        }
        try:
            executor = submitit.AutoExecutor(
                cells[0].folder.engine("slurm"),
                cluster="slurm",
                slurm_max_num_timeout=self.requeues,
            )
            executor.update_parameters(
                name="cleanprior",
                timeout_min=self.time,
                cpus_per_task=self.cpus,
                slurm_array_parallelism=self.max_parallel,
                slurm_signal_delay_s=NOTICE,
                slurm_setup=list(self.setup),
                # srun does not take it from sbatch
                slurm_srun_args=[f"--cpus-per-task={self.cpus}"],
                slurm_additional_parameters={"requeue": True, **self.parameters},
                **{key: value for key, value in given.items() if value is not None},
            )
            return executor.map_array(Work(), tasks)
        except (RuntimeError, OSError, submitit.core.utils.FailedJobError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise UserError(f"Slurm: {lines[-1] if lines else type(error).__name__}") from error


def _follow(waiting: dict[Any, Todo], told: Following) -> None:
    """Tell of jobs as they end, until there are none or the benchmark is over."""
    gone: dict[Any, float] = {}
    while waiting and not told.is_over:
        known = _known(waiting)
        for job, cell in list(waiting.items()):
            if job.paths.result_pickle.exists():
                _end(job, cell, told)
                del waiting[job]
            elif known is None or job.job_id in known:
                gone.pop(job, None)
            elif time.monotonic() - gone.setdefault(job, time.monotonic()) > LOST:
                _lose(job, cell, told)
                del waiting[job]
        time.sleep(INTERVAL)


def _known(waiting: Mapping[Any, Todo]) -> set[str] | None:
    """Return the jobs that wait or run; None where Slurm does not answer."""
    array = next(iter(waiting)).job_id.partition("_")[0]
    command = ["squeue", "--noheader", "--array", "--format=%i", "--jobs", array]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode and "Invalid job id" not in asked.stderr:
        return None
    return set(asked.stdout.split())


def _end(job: Any, cell: Todo, told: Following) -> None:
    """Tell of a job that left a result."""
    error = job.exception()
    if error is None:
        told.ended(cell, job.result())
    else:
        _lose(job, cell, told, str(error))


def _lose(job: Any, cell: Todo, told: Following, text: str = "") -> None:
    """Tell of a job that ended in another way."""
    try:
        text = text or job.paths.stderr.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    lines = [line.strip() for line in text.splitlines() if "rror" in line]
    why = f": {lines[-1]}" if lines else ""
    told.lost(cell, f"its job {job.job_id} of Slurm left no result{why} ({job.paths.stderr})")
