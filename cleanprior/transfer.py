"""Copies to a GPU that this process does not wait for."""

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on a device; what goes to a GPU goes through page-locked memory.

    Such a copy runs beside this process, in the order of the device's own work. Other devices get
    a plain copy.
    """
    wanted = torch.device(device)
    if wanted.type != "cuda" or x.device.type != "cpu":
        return x.to(wanted)
    return x.pin_memory().to(wanted, non_blocking=True)
