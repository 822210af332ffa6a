"""The one exception that a user's mistake raises, and the words that help to mend it."""

import difflib
from collections.abc import Iterable

#: Characters of an error; a stranger's file or a script may name something of any length.
LONGEST = 1400


class UserError(ValueError):
    """A mistake in what the user gave: the command line prints it without a traceback (exit 2)."""


class StageFailed(Exception):
    """A stage of a cell raised in a process of its own, or the process ended by itself.

    The text is the status of the cell's row.
    """


class PeerLost(StageFailed):
    """Another of the processes that train together is gone; what became of it says more."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had; torch's own is a RuntimeError."""
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(w in str(error) for w in words)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest spelling, or an empty string."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def unknown(kind: str, word: str, choices: Iterable[str]) -> UserError:
    """Build the error for a name that is not installed: what was given, what exists, the nearest.

    Arguments:
        kind: What was looked up, e.g. ``"method"``.
        word: The name that was given.
        choices: The names that exist.
    """
    names = sorted(choices)
    listed = ", ".join(names) or "none"
    return UserError(f"unknown {kind} '{word}'; installed: {listed}.{did_you_mean(word, names)}")


def one_line(text: str) -> str:
    """Return a text on one line; what would move a terminal's cursor is written as its code.

    Of a text longer than :data:`LONGEST` the middle is left out.
    """
    words = " ".join(text.splitlines())
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)
    if len(line) <= LONGEST:
        return line
    return f"{line[: LONGEST // 2]} [...] {line[-LONGEST // 2 :]}"
