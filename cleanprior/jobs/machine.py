"""What this machine has: cores, memory, CUDA devices. No torch, unless there is a device."""

import os
from pathlib import Path
from shutil import which

#: Memory that a cell is assumed to take, in bytes: libraries, a small network, its data.
CELL = 1.5e9


def cores() -> int:
    """Return how many cores this process may use: affinity and a container's share counted."""
    from joblib import cpu_count

    return max(1, int(cpu_count()))


def room() -> int:
    """Return for how many small cells there is memory, at least one."""
    from psutil import virtual_memory

    return max(1, int(virtual_memory().available / CELL))


def gpus() -> list[int]:
    """Return the CUDA devices that this process sees, by the number that torch gives them."""
    is_likely = which("nvidia-smi") is not None or Path("/dev/nvidiactl").exists()
    if not is_likely or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []
    import torch

    return list(range(torch.cuda.device_count()))


def visible(device: int) -> str:
    """Return what ``CUDA_VISIBLE_DEVICES`` is to hold for a process that sees one device."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    listed = [d.strip() for d in given.split(",") if d.strip()]
    return listed[device] if device < len(listed) else str(device)
