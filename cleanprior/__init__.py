"""Train generative priors from corrupted data only, and say which method is better, at what cost.

The package is light to import: nothing here loads torch. The nouns live in their rooms:
:mod:`cleanprior.operators`, :mod:`cleanprior.data`, :mod:`cleanprior.training`,
:mod:`cleanprior.prior` and :mod:`cleanprior.evaluation`.
"""

from pathlib import Path

from .version import __version__

# An installation has methods, benchmarks and configs in this folder. In a clone they lie beside it,
# and `python -m cleanprior` there takes this folder before the installed one: the rooms are then
# those of the same clone, never of another version.
_here = Path(__file__).parent
if not (_here / "methods").exists() and (_here.parent / "methods" / "__init__.py").is_file():
    __path__.append(str(_here.parent))

__all__ = ["__version__"]
