"""Contract tests for parts of one's own: they say what the software relies on.

A test module subclasses a contract and names its configuration; plain pytest runs the rest::

    from cleanprior.testing import MethodContract

    class TestMine(MethodContract):
        name = "mine"

Each promise is also a function (``cleanprior.testing.operators.check_adjoint``), which this
project's own tests call too. Everything here needs torch and pytest, no network and no files.
"""

from .cards import check_card
from .data import DataContract
from .methods import MethodContract
from .metrics import MetricContract
from .operators import OperatorContract
from .posteriors import PosteriorContract

__all__ = [
    "DataContract",
    "MethodContract",
    "MetricContract",
    "OperatorContract",
    "PosteriorContract",
    "check_card",
]
