"""Train generative priors from corrupted data only, and say which method is better, at what cost.

The package is light to import: nothing here loads torch. The nouns live in their rooms:
:mod:`cleanprior.operators`, :mod:`cleanprior.data`, :mod:`cleanprior.training`,
:mod:`cleanprior.prior` and :mod:`cleanprior.evaluation`.
"""

__version__ = "0.1.0"
