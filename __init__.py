"""The folder of a clone, where Python takes it for the package.

Beside an editable clone called ``cleanprior``, ``import cleanprior`` finds this folder before the
installed package. It hands over to the package inside, and its rooms are those of this clone.
"""

from pathlib import Path
from typing import Any

_clone = Path(__file__).parent
__path__ = [str(_clone / "cleanprior"), str(_clone)]

from .public import NAMES  # noqa: E402  (it lies in the first of the two folders)
from .version import __version__  # noqa: E402

__all__ = ["__version__", *NAMES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    from .public import find

    return find(name)
