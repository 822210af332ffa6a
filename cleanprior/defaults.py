"""What a process has set for all of torch, and what we need: float32 on the CPU, exact products."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .errors import UserError


@contextmanager
def plain_tensors() -> Iterator[None]:
    """Make new tensors float32 on the CPU inside the block, or the function that it decorates.

    Somebody's ``torch.set_default_dtype(torch.float64)`` or ``torch.set_default_device`` would
    draw other masks from the same seed and build networks that their inputs do not fit.
    """
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        if torch.get_default_device().type == "cpu":
            yield
        else:
            with torch.device("cpu"):
                yield
    finally:
        torch.set_default_dtype(dtype)


def exact_products() -> None:
    """Have float32 products computed in float32, on every device.

    TensorFloat-32, which environment variables and another version's default can turn on, keeps 10
    bits of a factor. Inside the backbone ``training.precision`` decides.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def check_dense(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor that holds a number in each of its places.

    Arguments:
        name: What it is, for the error.
        tensor: Anybody's.

    Raises:
        UserError: It lies on torch's meta device, where tensors have a shape alone, or is sparse.
    """
    if tensor.is_meta:
        raise UserError(f"{name}: a tensor on torch's meta device has a shape and no numbers")
    if tensor.layout != torch.strided:
        kind = str(tensor.layout).removeprefix("torch.")
        raise UserError(f"{name}: a {kind} tensor is not read; give its to_dense()")
    return tensor
