"""Peak memory of a phase of this process."""

import sys
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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
