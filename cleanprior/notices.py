"""What a user should know of the data: told once, kept in the record. No torch.

Lines go to the logger ``cleanprior``. The command line shows them on stderr; from Python, warnings
appear there too and the rest after ``logging.basicConfig(level="INFO")``.
"""

import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import one_line

logger = logging.getLogger("cleanprior")
_told: set[str] = set()


@dataclass(frozen=True)
class Notice:
    """One line about the data.

    Attributes:
        text: What was found and, for a warning, what to do.
        is_warning: Whether results are likely to be wrong.
    """

    text: str
    is_warning: bool = False


def tell(notices: Iterable[Notice]) -> None:
    """Log each line, once in a process (with the command line: once a command)."""
    for notice in notices:
        if notice.text not in _told:
            _told.add(notice.text)
            logger.log(logging.WARNING if notice.is_warning else logging.INFO, "%s", notice.text)


class _Stderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        kind = "warning" if record.levelno >= logging.WARNING else "note"
        sys.stderr.write(f"{kind}: {one_line(record.getMessage())}\n")


def show_on_stderr() -> None:
    """Write lines as ``note: ...`` and ``warning: ...`` on stderr from now on."""
    _told.clear()
    logger.setLevel(logging.INFO)
    if not any(isinstance(h, _Stderr) for h in logger.handlers):
        logger.addHandler(_Stderr())


def hide() -> None:
    """Show no line from now on."""
    logger.setLevel(logging.CRITICAL)
