"""Seconds, peak memory and energy of a phase of this process."""

import sys
import time
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RAPL = Path("/sys/class/powercap")


def clock() -> float:
    """Return seconds as :func:`time.perf_counter`, once all work given to the GPU is done."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def clocks() -> tuple[float, float]:
    """Return :func:`clock` and the seconds of CPU that this process took, all its threads.

    The first goes on while other processes have the machine, the second does not.
    """
    return clock(), time.process_time()


class PeakMemory:
    """Largest resident memory (CPU) and allocated memory (GPU) since it was made.

    On Linux the kernel's high-water mark is reset first; elsewhere the mark cannot be reset inside
    a process and :meth:`cpu_mb` returns None rather than the mark of an earlier phase.
    """

    def __init__(self) -> None:
        import torch

        self._is_reset = False
        try:
            _CLEAR.write_text("5")
            self._is_reset = True
        except OSError:
            self._is_reset = False
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def read(self) -> dict[str, float | None]:
        """Return both peaks in MB, by ``cpu`` and ``gpu``."""
        return {"cpu": self.cpu_mb(), "gpu": self.gpu_mb()}

    def cpu_mb(self) -> float | None:
        """Peak resident memory in MB, or None where it cannot be told."""
        if not self._is_reset or sys.platform != "linux":
            return None
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM"):
                return float(line.split()[1]) / 1024
        return None

    def gpu_mb(self) -> float | None:
        """Peak allocated GPU memory in MB, or None without a GPU."""
        import torch

        if not torch.cuda.is_available():
            return None
        return float(torch.cuda.max_memory_allocated()) / 2**20


class Energy:
    """Energy that the machine's own counters report: Intel's and AMD's RAPL, NVIDIA's NVML.

    The counters are those of whole packages and whole cards: what else runs on them is counted too.
    They are read between the phases and wrap around, RAPL's within the hour on a busy machine;
    :meth:`spent` must be called more often than that.
    """

    def __init__(self, powercap: Path = _RAPL) -> None:
        self._packages = [
            p for p in sorted(powercap.glob("intel-rapl:*")) if p.name.count(":") == 1
        ]
        self._before = self._read()

    def spent(self) -> dict[str, float | None]:
        """Return joules since the last call, by ``cpu`` and ``gpu``; None without a counter."""
        before, self._before = self._before, self._read()
        spent: dict[str, float | None] = {}
        for kind, now in self._before.items():
            # A counter that has come or gone in between tells nothing.
            pairs = [(now[k][0] - before[kind][k][0], now[k][1]) for k in now if k in before[kind]]
            spent[kind] = sum(d % r if r else d for d, r in pairs) if pairs else None
        return spent

    def _read(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Joules so far and the counter's range (0: does not wrap), by kind and counter."""
        return {"cpu": self._cpu(), "gpu": _gpu_joules()}

    def _cpu(self) -> dict[str, tuple[float, float]]:
        found = {}
        for package in self._packages:
            try:
                now, limit = (
                    int((package / name).read_text()) / 1e6
                    for name in ("energy_uj", "max_energy_range_uj")
                )
            except (OSError, ValueError):
                continue  # most kernels let only root read it
            found[package.name] = (now, limit)
        return found


def _gpu_joules() -> dict[str, tuple[float, float]]:
    """Energy counter of the current CUDA device, where its generation has one (Volta on)."""
    import torch

    if not torch.cuda.is_available():
        return {}
    import pynvml

    uuid = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return {uuid: (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3, 0.0)}
    except pynvml.NVMLError:
        return {}
