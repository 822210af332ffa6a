"""A process that works on one task, and says how it ended.

``python -m cleanprior.jobs.worker`` reads a task as one line of JSON from its input and writes
events to its output; where its input ends, whoever gave the task is gone, and it ends too.
:mod:`cleanprior.jobs.server` makes such processes without loading every library again.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from .. import stopping
from ..environment import take_precision_away, together
from ..errors import PeerLost, UserError
from ..files import write_text
from .events import Sender, SentProgress, send_notices
from .lease import Busy, Pulse, held
from .machine import visible

Task = Mapping[str, Any]


def work(task: Task, descriptor: int) -> int:
    """Do a task; what happens is told in events, of which the last says how it ended.

    Arguments:
        task: ``task`` (a number), ``stage`` and ``request`` of
            :data:`cleanprior.jobs.stages.STAGES`; ``threads``; ``gpus``; ``rank``, the values of a
            :class:`cleanprior.jobs.workers.Rank`, or None; ``lock``, ``beat`` and ``error``: paths
            in the cell's folder, or None.
        descriptor: Where events go.

    Returns:
        The exit code.
    """
    sender = Sender(descriptor, task["task"])
    sender.send("started", pid=os.getpid())
    send_notices(sender)
    try:
        with stopping.orderly(is_patient=True):
            value = _perform(task, sender)
    except Busy:
        sender.send("busy")
    except stopping.Stopped as error:
        sender.send("stopped")
        return error.code
    except KeyboardInterrupt:
        sender.send("stopped")
        return 130
    except UserError as error:
        _keep_traceback(task)
        sender.send("refused", text=str(error))
    except PeerLost as error:
        sender.send("lost", text=str(error))  # the other's error is the one to be kept
    except BaseException as error:
        # The boundary of a plug-in: whatever it raises, SystemExit too, is the status of its row.
        _keep_traceback(task)
        sender.send("failed", text=f"{type(error).__name__}: {error}")
    else:
        sender.send("result", value=value)
    return 0


def _keep_traceback(task: Task) -> None:
    """Write where an error came from; to be called while it is handled."""
    if task["error"] is not None:
        write_text(Path(task["error"]), traceback.format_exc())


def _perform(task: Task, sender: Sender) -> Any:
    """Set the process up for a task, and do it."""
    if task["gpus"]:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(visible, task["gpus"]))
    if task["rank"] is not None:
        os.environ.update(together(**task["rank"]), OMP_NUM_THREADS=str(task["threads"]))
    import torch
    from threadpoolctl import threadpool_limits

    from .stages import STAGES

    torch.set_num_threads(task["threads"])
    threadpool_limits(task["threads"])
    lock, beat = task["lock"], task["beat"]
    with nullcontext() if lock is None else held(Path(lock)):
        pulse = Pulse(None if beat is None else Path(beat), task["stage"])
        try:
            return STAGES[task["stage"]](task["request"], SentProgress(sender, pulse))
        finally:
            pulse.end()


#: Seconds that a process without a parent has to write its state.
GRACE = 30.0


def watch(alive: int) -> None:
    """End this process when whoever holds the other end of a pipe is gone; its state first."""

    def wait() -> None:
        os.read(alive, 1)
        if os.name == "posix":
            os.kill(os.getpid(), signal.SIGTERM)
        else:  # there, os.kill would end it before its state is written
            signal.raise_signal(signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(128 + signal.SIGTERM)  # a method that never comes back

    threading.Thread(target=wait, daemon=True).start()


def to_log(path: str | None) -> None:
    """Have everything that is printed from now on end up in a file, beside what is there."""
    target = os.devnull if path is None else path
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    log = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def main() -> None:
    """Do the task of the standard input."""
    events = os.dup(1)
    os.dup2(2, 1)
    task = json.loads(sys.stdin.readline())
    watch(0)
    to_log(task["log"])
    take_precision_away()
    sys.exit(work(task, events))


if __name__ == "__main__":
    main()
