"""Seeds and random streams: every draw comes from a generator that was asked for by name.

Three seeds are never mixed: the data seed (which images, which operator parameters, which noise),
the training seed and the evaluation seed. A stream is named by its role and integer keys, so that
step 7 of round 2 draws the same numbers whether or not the run was interrupted before it.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator, Tensor

from .transfer import to_device


def seed_for(run_seed: int, role: str, **keys: int | str) -> int:
    """Derive a 63-bit seed from a run's seed, a role and keys, by sha256.

    Arguments:
        run_seed: The seed that the user set; 0 is a seed.
        role: What is drawn, e.g. ``"noise"``.
        keys: Further coordinates of the stream, e.g. ``step=3``.

    Returns:
        An integer in [0, 2^63), equal on every machine and in every process.
    """
    text = json.dumps([run_seed, role, sorted(keys.items())])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(run_seed: int, role: str, **keys: int | str) -> Generator:
    """Return a CPU generator seeded by :func:`seed_for`: the same draws on every device."""
    return Generator().manual_seed(seed_for(run_seed, role, **keys))


@contextmanager
def scoped_rng(seed: int) -> Iterator[None]:
    """Seed the global generators of torch, numpy and Python; put them back afterwards.

    For third-party code that can draw only from a global stream: weight initialisation, dropout, an
    operator's constructor. A GPU's stream is put back where this process uses one; asking for the
    streams of all GPUs of a machine would take memory on each.
    """
    python, legacy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def randn_like(x: Tensor, generator: Generator | Sequence[Generator]) -> Tensor:
    """Draw white Gaussian noise with the shape, dtype and device of ``x``.

    Arguments:
        x: A batch, shape (b, ...).
        generator: One generator for the batch, or one for each image: then an image's noise does
            not depend on the batch that it is in.
    """
    if isinstance(generator, Generator):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device)
        return to_device(noise, x.device)
    if len(generator) != len(x):
        raise ValueError(f"{len(generator)} generators for a batch of {len(x)} images")
    rows = [
        torch.randn(x.shape[1:], generator=g, dtype=x.dtype, device=g.device) for g in generator
    ]
    return to_device(torch.stack(rows), x.device)


def bernoulli(shape: Sequence[int], probability: float, generator: Generator) -> Tensor:
    """Draw 0/1 floats of ``shape`` that are 1 with ``probability``."""
    uniform = torch.rand(tuple(shape), generator=generator, device=generator.device)
    return (uniform < probability).float()
