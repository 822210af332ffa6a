"""The folder of a clone, where Python takes it for the package.

Beside an editable clone called ``cleanprior``, ``import cleanprior`` finds this folder before the
installed package. It hands over to the package inside.
"""

from pathlib import Path

__path__ = [str(Path(__file__).parent / "cleanprior")]
__file__ = str(Path(__file__).parent / "cleanprior" / "__init__.py")
exec(compile(Path(__file__).read_text(encoding="utf-8"), __file__, "exec"))
