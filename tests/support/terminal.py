"""Runs a program on a pseudo-terminal of a given width, as a person would see it."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Sequence

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(command: Sequence[str], columns: int, **environment: str) -> list[str]:
    """Return what a program prints on a terminal, line by line, without colours.

    Arguments:
        command: Program and arguments.
        columns: Width of the terminal.
        environment: Set beside the usual one.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    usual = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**usual, "TERM": "xterm", "PYTHONPATH": "", **environment},
        close_fds=True,
    )
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux: nobody holds the other end
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    text = _ESCAPES.sub("", b"".join(parts).decode())
    assert process.wait(60) == 0, text
    return text.replace("\r\n", "\n").split("\n")
