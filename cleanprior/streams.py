"""Standard streams that outlive their reader: ``cleanprior bench | head`` writes all its files."""

import io
import os
from typing import TextIO, cast


class _Descriptor(io.FileIO):
    """A file descriptor; what is written after its reader has gone is dropped."""

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def lasting(stream: TextIO | None, is_line_buffered: bool = False) -> TextIO:
    """Return a stream in the place of a standard one.

    Its reader may go away, and characters that its encoding lacks are written as escapes.

    Arguments:
        stream: ``sys.stdout`` or ``sys.stderr``; None where the process has none.
        is_line_buffered: Whether each line is shown at once where it is no terminal either.
    """
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    try:
        number = stream.fileno()
    except (OSError, ValueError):
        return stream  # replaced by somebody who captures it
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(cast(io.RawIOBase, _Descriptor(number, "w", closefd=False))),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=is_line_buffered or stream.isatty(),
    )
