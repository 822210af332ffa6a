"""Tables that fit a terminal: columns chosen by the width, numbers whole. No torch.

A heading may stand on several lines and words may wrap between them, also behind ``_``; a number
never does. Columns that have no room are left out, and the caller is told which.
"""

import json
import os
import re
import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

#: Columns of the output where it is no terminal and the environment has no COLUMNS.
PIPE = 140
#: Narrower terminals are taken for this wide.
LEAST = 20
#: Between two columns.
GAP = 2
#: A longer word may be broken behind ``_``, ``-``, ``/`` and ``.``.
WORD = 18
#: Columns never get narrower than this.
SHORTEST = 8
#: What stands for a character that the output cannot encode.
PLAIN = {"±": "+-", "†": "*", "─": "-", "·": "-", "∞": "inf", "–": "-", "…": "...", "×": "x"}


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        heading: Its heading; it wraps at blanks.
        cells: One text a row.
        is_text: Words: to the left, and wrapped where they must be.
        bold: Which cells are bold; none where empty.
    """

    heading: str
    cells: Sequence[str]
    is_text: bool = False
    bold: Sequence[bool] = ()

    @property
    def least(self) -> int:
        """Fewest cells of a terminal in which the column can be read."""
        words = [w for cell in self.cells for w in (cell.split() if self.is_text else [cell])]
        if self.is_text:
            words = [part for word in words for part in _parts(word)]
        return max(map(cell_len, [*words, *self.heading.split()]), default=0)

    @property
    def most(self) -> int:
        """Cells of a terminal in which no cell wraps."""
        return max([self.least, *map(cell_len, self.cells)])


def choose(columns: Sequence[Column], width: int, order: Sequence[int] = ()) -> list[int]:
    """Return the positions of the columns that fit, in their order.

    Arguments:
        columns: All columns.
        width: Of the output.
        order: Positions by importance; what is less important than a column without room is left
            out with it. The first always stands. Default: as they stand.
    """
    kept: list[int] = []
    taken = -GAP
    for position in order or range(len(columns)):
        taken += GAP + columns[position].least
        if kept and taken > width:
            break
        kept.append(position)
    return sorted(kept)


def layout(columns: Sequence[Column], width: int, rule: str = "\u2500") -> list[Text]:
    """Return the lines of a table.

    Arguments:
        columns: Those that are shown; the first gets narrower where they do not fit.
        width: Of the output; columns of words wrap to stay within it.
        rule: What the line under the headings is made of.
    """
    widths = [c.least for c in columns]
    room = width - sum(widths) - GAP * (len(columns) - 1)
    if room < 0:
        widths[0] = max(widths[0] + room, min(SHORTEST, widths[0]))
    texts = [i for i, c in enumerate(columns) if c.is_text]
    for i in sorted(texts, key=lambda i: columns[i].most - widths[i]):  # whole, where there is room
        lacking = columns[i].most - widths[i]
        if 0 < lacking <= room:
            widths[i] += lacking
            room -= lacking
    for _ in range(max(room, 0)):  # then a cell at a time, to the column that lacks most
        most = max(texts, key=lambda i: columns[i].most - widths[i], default=None)
        if most is None or widths[most] >= columns[most].most:
            break
        widths[most] += 1
    rows = max((len(c.cells) for c in columns), default=0)
    headings = [wrap(c.heading, w) for c, w in zip(columns, widths, strict=True)]
    top = max(map(len, headings))
    headings = [[""] * (top - len(h)) + h for h in headings]
    lines = _lines(columns, widths, headings, [False] * len(columns))
    lines.append(Text(rule * (sum(widths) + GAP * (len(widths) - 1))))
    for row in range(rows):
        cells = [
            wrap(c.cells[row], w) if c.is_text or i == 0 else [c.cells[row]]
            for i, (c, w) in enumerate(zip(columns, widths, strict=True))
        ]
        is_bold = [bool(c.bold[row]) if len(c.bold) else False for c in columns]
        lines += _lines(columns, widths, cells, is_bold)
    return lines


def _lines(
    columns: Sequence[Column],
    widths: Sequence[int],
    cells: Sequence[list[str]],
    is_bold: Sequence[bool],
) -> list[Text]:
    """Return the lines of one row whose cells may have several."""
    lines = []
    for number in range(max(map(len, cells))):
        line = Text()
        for i, (column, width) in enumerate(zip(columns, widths, strict=True)):
            text = cells[i][number] if number < len(cells[i]) else ""
            blanks = " " * max(width - cell_len(text), 0)
            line.append("" if i == 0 else " " * GAP)
            line.append("" if column.is_text else blanks)
            line.append(text, "bold" if is_bold[i] else None)
            line.append(blanks if column.is_text else "")
        line.rstrip()
        lines.append(line)
    return lines


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Return a text as lines of a width: at blanks, then behind ``_``, then anywhere.

    Arguments:
        text: The text.
        width: Of the output, in cells of a terminal; at least 1.
        indent: Before every line but the first.
    """
    lines = [""]
    for word in text.split():
        room = width - cell_len(lines[-1])
        if lines[-1].strip() and cell_len(word) + 1 <= room:
            lines[-1] += f" {word}"
            continue
        if lines[-1].strip():
            lines.append(indent)
        for part in _pieces(word, max(width - cell_len(indent), 1)):
            if cell_len(lines[-1]) + cell_len(part) > width and lines[-1].strip():
                lines.append(indent)
            lines[-1] += part
    return lines


def _parts(word: str) -> list[str]:
    """Return where a word may be broken: behind ``_``, ``-``, ``/`` and ``.``."""
    return re.findall(r"[^_\-/.]*[_\-/.]+|[^_\-/.]+", word) if len(word) > WORD else [word]


def _pieces(word: str, width: int) -> Iterable[str]:
    """Return a word in pieces that fit."""
    for part in [word] if cell_len(word) <= width else _parts(word):
        piece = ""
        for character in part:
            if cell_len(piece + character) > width and piece:
                yield piece
                piece = ""
            piece += character
        yield piece


def plain(text: str, encoding: str) -> str:
    """Return a text with nothing in it that an encoding lacks."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        known = "".join(c if _has(c, encoding) else PLAIN.get(c, c) for c in text)
        return known.encode(encoding, "replace").decode(encoding)
    return text


def _has(character: str, encoding: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


class Screen:
    """Standard output, with its width.

    Arguments:
        is_wide: Leave no column out, however wide the table gets.
        is_silent: Print nothing.
        is_quiet: Print tables alone.
        has_lines: Print records alone, each as a line of JSON.

    Attributes:
        width: That of the terminal or of COLUMNS; :data:`PIPE` where there is neither.
        is_assumed: Whether it is :data:`PIPE`.
        is_terminal: Whether a person is reading.
    """

    def __init__(
        self,
        is_wide: bool = False,
        is_silent: bool = False,
        is_quiet: bool = False,
        has_lines: bool = False,
    ) -> None:
        is_silent = is_silent or has_lines
        self._console = Console(highlight=False, markup=False, emoji=False, quiet=is_silent)
        self.is_quiet, self.has_lines = is_quiet, has_lines
        self._told: set[Hashable] = set()
        self.is_terminal = self._console.is_terminal
        self.is_wide = is_wide
        told = os.environ.get("COLUMNS", "")
        is_told = told.isdecimal() and int(told) > 0
        self.is_assumed = not (is_told or self.is_terminal)
        width = int(told) if is_told else PIPE if self.is_assumed else self._console.width
        self.width = max(width, LEAST)

    def say(self, text: str | Text = "") -> None:
        """Print a line as it is, however long."""
        if isinstance(text, str):
            text = Text(plain(text, self._console.encoding))
        self._console.print(text, soft_wrap=True)

    def record(self, key: Hashable, record: Mapping[str, Any]) -> None:
        """Print a record where they are asked for, as a line of JSON; each once.

        Arguments:
            key: Whose it is.
            record: Plain values.
        """
        if self.has_lines and key not in self._told:
            self._told.add(key)
            sys.stdout.write(json.dumps(record, allow_nan=False) + "\n")
            sys.stdout.flush()

    def note(self, text: str, first: str = "", indent: str = "  ") -> None:
        """Print a sentence, wrapped on a terminal and in one piece elsewhere.

        Arguments:
            text: The sentence.
            first: Before its first line.
            indent: Before its further lines.
        """
        if not self.is_terminal:
            self.say(first + text)
            return
        room = self.width - cell_len(first)
        lines = wrap(plain(text, self._console.encoding), room, indent)
        self.say("\n".join(first + line for line in lines))

    def table(self, columns: Sequence[Column], order: Sequence[int] = ()) -> list[int]:
        """Print a table and return the positions of the columns that had no room.

        Arguments:
            columns: All columns.
            order: See :func:`choose`.
        """
        encoding = self._console.encoding
        plained = [
            replace(
                c, heading=plain(c.heading, encoding), cells=[plain(t, encoding) for t in c.cells]
            )
            for c in columns
        ]
        width = sum(c.most + GAP for c in plained) if self.is_wide else self.width
        kept = choose(plained, width, order)
        for line in layout([plained[i] for i in kept], width, plain("\u2500", encoding)):
            self.say(line)
        return [i for i in range(len(columns)) if i not in kept]

    def blocks(self, first: Sequence[Column], columns: Sequence[Column]) -> None:
        """Print a table whose columns matter alike, in as many blocks as the width needs.

        Arguments:
            first: Columns that stand in each block.
            columns: The others; each stands in one block, with its heading on one line.
        """
        found: list[list[Column]] = []
        room = 0
        for column in columns:
            needed = GAP + max(column.least, cell_len(column.heading))
            if not found or (needed > room and not self.is_wide):
                found.append([])
                room = self.width - sum(c.least + GAP for c in first) + GAP
            found[-1].append(column)
            room -= needed
        for block in found:
            self.say()
            self.table([*first, *block])
