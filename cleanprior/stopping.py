"""An orderly end: Ctrl-C and SIGTERM are heard at the next step, once the state is on disk."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_asked: int | None = None
_heard: int = signal.SIGINT
_is_patient = False
_is_later = False


class Stopped(KeyboardInterrupt):
    """Somebody asked the process to end.

    Attributes:
        number: The signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = int(number)

    @property
    def code(self) -> int:
        """The exit code that says so: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number


def code() -> int:
    """Return the exit code of a process that was interrupted: 130 after Ctrl-C, 143 after SIGTERM.

    For the command line: a library between may have raised something else in the place of
    :class:`Stopped`.
    """
    return 128 + _heard


def asked() -> int:
    """Return the signal by which the process was asked to end and has not yet; 0 for none."""
    return _asked or 0


def ask(number: int) -> None:
    """Have :func:`check` end this process, as if it had heard a signal."""
    global _asked
    _asked = number


def check() -> None:
    """End where the process was asked to.

    Raises:
        Stopped: It was, and not inside of :func:`later`.
    """
    if _asked is not None and not _is_later:
        raise Stopped(_asked)


@contextmanager
def later(is_later: bool = True) -> Iterator[None]:
    """Have :func:`check` end nothing inside the block, where ``is_later``."""
    global _is_later
    before, _is_later = _is_later, is_later
    try:
        yield
    finally:
        _is_later = before


def _hear(number: int, _frame: FrameType | None) -> None:
    global _asked, _heard
    _heard = number
    if _asked is not None and not _is_patient:
        raise Stopped(number)  # the second one cannot wait
    _asked = number


def raise_at_once(number: int, _frame: FrameType | None) -> None:
    """Handle a signal where nothing is to be saved first."""
    global _heard
    _heard = number
    raise Stopped(number)


@contextmanager
def orderly(is_patient: bool = False) -> Iterator[None]:
    """Note a signal inside the block and go on to where the state can be kept.

    The code inside calls :func:`check` where it may end. A second signal ends it at once. In a
    thread other than the main one, which gets no signals, nothing changes.

    Arguments:
        is_patient: Whether a second signal says no more than the first: a process that no person
            sees may be told by its parent and by a cluster.
    """
    global _asked, _is_patient
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if _hear in before.values():  # inside another such block
        yield
        return
    _asked, _is_patient = None, is_patient
    for number in SIGNALS:
        signal.signal(number, _hear)
    try:
        yield
        check()
    finally:
        _asked, _is_patient = None, False
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
