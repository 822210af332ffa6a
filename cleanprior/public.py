"""The public names of the package, each with the module that holds it. No torch.

They are loaded when they are first used: ``import cleanprior`` takes milliseconds.
"""

from importlib import import_module
from typing import Any

NAMES = {
    "Measurements": "cleanprior.data",
    "Method": "cleanprior.training",
    "Operator": "cleanprior.operators",
    "Prior": "cleanprior.prior",
    "UserError": "cleanprior.errors",
    "bench": "cleanprior.benchmarks.api",
    "dataset": "cleanprior.api",
    "evaluate": "cleanprior.api",
    "load": "cleanprior.api",
    "measure": "cleanprior.api",
    "method": "cleanprior.api",
    "operator": "cleanprior.api",
    "posterior": "cleanprior.api",
    "sampler": "cleanprior.api",
    "train": "cleanprior.api",
}


def find(name: str) -> Any:
    """Return a public name of the package.

    Raises:
        AttributeError: There is no such name.
    """
    if name not in NAMES:
        raise AttributeError(f"module 'cleanprior' has no attribute '{name}'")
    return getattr(import_module(NAMES[name]), name)
