"""Train generative priors from corrupted data only, and say which method is better, at what cost.

.. code-block:: python

    import cleanprior as cp

    A = cp.operator("inpainting", (1, 28, 28), p=0.6, sigma=0.05)
    y = cp.Measurements.load("mine.npz")
    prior = cp.train("em_mmps", y, A, budget=96_000)
    x = prior.restore(y[:16], A).x

The package is light to import: torch is loaded with the first name that needs it. The nouns live in
their rooms: :mod:`cleanprior.operators`, :mod:`cleanprior.data`, :mod:`cleanprior.training`,
:mod:`cleanprior.prior` and :mod:`cleanprior.evaluation`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from cleanprior.benchmarks.api import bench  # type: ignore[import,unused-ignore]

    from .api import dataset, evaluate, load, measure, method, operator, posterior, sampler, train
    from .data import Measurements
    from .errors import UserError
    from .operators import Operator
    from .prior import Prior
    from .training import Method

# An installation has methods, benchmarks and configs in this folder. In a clone they lie beside it,
# and `python -m cleanprior` there takes this folder before the installed one: the rooms are then
# those of the same clone, never of another version.
_here = Path(__file__).parent
if not (_here / "methods").exists() and (_here.parent / "methods" / "__init__.py").is_file():
    __path__.append(str(_here.parent))

__all__ = [
    "Measurements",
    "Method",
    "Operator",
    "Prior",
    "UserError",
    "__version__",
    "bench",
    "dataset",
    "evaluate",
    "load",
    "measure",
    "method",
    "operator",
    "posterior",
    "sampler",
    "train",
]


def __getattr__(name: str) -> Any:
    from .public import find

    return find(name)


def __dir__() -> list[str]:
    return __all__
