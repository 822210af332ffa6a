"""Environment variables that libraries read: what could change a result does not, or is known.

Three kinds. Those that lower the precision of products are taken away before a library reads them.
Those of accelerate are hidden while it is set up. How many processes train together is part of a
cell's identity. What only chooses between implementations, and with them the last digits, stands in
the record. No torch.
"""

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

#: TensorFloat-32 and bfloat16 in the place of float32, asked for from outside.
PRECISION = (
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
)
#: What accelerate may read: where it runs, not what is computed.
PLACES = ("ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE")
_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_NUMBERS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
_KNOWN = (
    "ATEN_CPU_",
    "CUBLAS_",
    "CUDNN_",
    "DNNL_",
    "KMP_",
    "MKL_",
    "OMP_",
    "ONEDNN_",
    "OPENBLAS_",
    "PYTORCH_",
    "TORCH_CUDNN_",
)


def take_precision_away(environment: MutableMapping[str, str] = os.environ) -> None:
    """Remove the variables that would lower precision; to be called before torch is loaded."""
    for name in PRECISION:
        environment.pop(name, None)


@contextmanager
def hidden_from_accelerate() -> Iterator[None]:
    """Hide accelerate's own variables inside the block, but for those of :data:`PLACES`."""
    hidden = {
        k: os.environ.pop(k)
        for k in list(os.environ)
        if k.startswith("ACCELERATE_") and k not in PLACES
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


def processes() -> int:
    """Return how many processes a launcher has started to train together."""
    given = (os.environ.get(name, "") for name in _SIZES)
    return max((int(text) for text in given if text.isascii() and text.isdecimal()), default=1) or 1


def together(index: int, count: int, port: int) -> dict[str, str]:
    """Return the variables by which processes of this machine find each other, as torchrun's.

    Arguments:
        index: Which of them it is.
        count: How many there are.
        port: Where the first one waits for the others.
    """
    numbers = {
        "RANK": index,
        "LOCAL_RANK": index,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_PORT": port,
    }
    return {"MASTER_ADDR": "127.0.0.1", **{k: str(v) for k, v in numbers.items()}}


def is_first() -> bool:
    """Whether this is the one of them that speaks for all; so is a process that is alone."""
    given = [os.environ.get(name, "") for name in _NUMBERS]
    numbers = [int(text) for text in given if text.isascii() and text.isdecimal()]
    return processes() == 1 or max(numbers, default=0) == 0


def known() -> dict[str, str]:
    """Return the variables that choose between implementations, for a record."""
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith(_KNOWN)}
