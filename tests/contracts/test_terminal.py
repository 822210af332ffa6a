"""Tables on a terminal: what fits is whole, what does not is named, at any width."""

import io
import sys
import textwrap
from pathlib import Path

import pytest
from made_up import print_made_up
from terminal import on_terminal

from cleanprior.config import registry
from cleanprior.terminal import Column, choose, layout, plain, wrap

PYTHON = [sys.executable, "-m", "cleanprior"]
SUPPORT = Path(__file__).parents[1] / "support"
#: Prints tables of made-up records, of one and of three training seeds.
PRINTED = f"""
import sys
sys.path[:0] = [{str(SUPPORT)!r}]
from made_up import print_made_up
print_made_up(1)
print_made_up(3)
"""


def texts(columns: list[Column], width: int) -> list[str]:
    return [line.plain for line in layout(columns, width)]


NUMBERS = Column("FD of samples", ["77.2±0.8", "114.6±0.8", "-"])
NAMES = Column("method", ["em", "a_method_with_a_very_long_name: own way", "naive †"], True)


@pytest.mark.parametrize("width", [28, 36, 60, 200])
def test_numbers_stay_on_their_line_and_names_lose_nothing(width: int) -> None:
    lines = texts([NAMES, NUMBERS], width)
    assert max(map(len, lines)) <= width
    for cell in NUMBERS.cells:
        assert sum(line.split()[-1:] == [cell] for line in lines) == 1
    first = max(len(line) for line in lines) - len("114.6±0.8")
    shown = "".join(line[:first].strip() for line in lines).replace(" ", "")
    assert "a_method_with_a_very_long_name:ownway" in shown


def test_columns_go_by_importance_and_stand_in_their_order() -> None:
    columns = [NAMES, Column("cost", ["1", "2", "3"]), NUMBERS]
    assert choose(columns, 200) == [0, 1, 2]
    needed = NAMES.least + 2 + NUMBERS.least
    assert choose(columns, needed, [0, 2, 1]) == [0, 2]
    assert choose(columns, needed - 1, [0, 2, 1]) == [0], "what matters less does not go before"
    assert choose(columns, 1) == [0]


def test_words_wrap_at_blanks_then_behind_underscores_then_anywhere() -> None:
    assert wrap("one two three", 7, "  ") == ["one two", "  three"]
    assert wrap("denoise_then_train_again", 14) == ["denoise_then_", "train_again"]
    assert wrap("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]
    assert wrap("画像復元 画像", 8) == ["画像復元", "画像"], "a wide character takes two cells"


def test_what_an_encoding_lacks_is_written_plainly() -> None:
    assert plain("1.0±0.1 † 画", "ascii") == "1.0+-0.1 * ?"
    assert plain("1.0±0.1 †", "latin-1") == "1.0±0.1 *"
    assert plain("1.0±0.1 †", "utf-8") == "1.0±0.1 †"


def check_table(lines: list[str], columns: int, seeds: int) -> None:
    assert max(map(len, lines)) <= columns
    text = "\n".join(lines)
    head, _, rest = text.partition("─" * 20)
    for word in ("draw", "point", "spread", "FD"):
        assert word in head
    row = next(line for line in rest.splitlines() if line.startswith("naive")).split()
    shift = 0.1 * (seeds - 1) / 2
    for value in (16.13 + shift, 17.73 + shift):
        assert f"{value:.2f}" in [cell.partition("±")[0] for cell in row], row
    assert any(cell.startswith(f"{77.24 + shift:.1f}±") for cell in row), row
    if columns >= 80:
        assert "train" in head and "clean" in head and "proximal" in head
    assert "other: failed: Odd: [bold] no memory" in " ".join(text.split())
    if "no room at" not in text:
        assert columns >= 200 and "restores by" in head and "params" in head
        return
    missing = " ".join(text.partition("no room at")[2].split("\n\n")[0].split())
    assert f"{columns} columns" in missing and "--wide shows them, and table.md" in missing
    assert ("status" in head) != ("status" in missing)
    assert "status" in head or columns < 100


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_the_table_fits_its_terminal(columns: int) -> None:
    lines = on_terminal([sys.executable, "-c", PRINTED], columns)
    second = [i for i, line in enumerate(lines) if line.startswith("digits, ")][1]
    check_table(lines[:second], columns, 1)
    check_table(lines[second:], columns, 3)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("columns", [60, 70, 120, 200])
def test_the_table_fits_as_many_columns_as_are_told(
    columns: int, seeds: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    print_made_up(seeds)
    printed = capsys.readouterr().out
    heading, rule, below = printed.partition("\u2500\n")
    table = heading + rule + below.partition("\n\n")[0]  # the notes under it stand whole
    assert rule and max(map(len, table.splitlines())) <= columns
    check_table([*wrapped(printed, columns)], columns, seeds)


def wrapped(text: str, columns: int) -> list[str]:
    """Return a text whose long lines, which stand whole on a pipe, are wrapped."""
    return [part for line in text.splitlines() for part in textwrap.wrap(line, columns) or [""]]


def test_wide_leaves_nothing_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_made_up(3, is_wide=True)
    printed = capsys.readouterr().out
    (head,) = [line for line in printed.splitlines() if "restores by" in line]
    for heading in ("|y-Ax|", "status", "params", "NFE"):
        assert heading in head
    assert "no room" not in printed and "16.23±0.10" in printed


def test_a_pipe_has_a_stated_width_and_whole_sentences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_made_up(1)
    printed = capsys.readouterr().out
    assert "no room at 140 columns (no terminal; COLUMNS sets another width)" in printed
    (line,) = [line for line in printed.splitlines() if "[range]" in line and ": " in line]
    assert line.endswith("beyond twice [-1, 1]")


@pytest.mark.parametrize(("encoding", "cell"), [("ascii", "77.2+-0.8"), ("latin-1", "77.2±0.8")])
def test_an_output_without_unicode_gets_the_table_too(
    encoding: str, cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    print_made_up(1)
    sys.stdout.flush()
    lines = written.getvalue().decode(encoding).splitlines()
    assert any(cell in line for line in lines)
    assert any(line.startswith("oracle *") for line in lines)


@pytest.mark.parametrize("columns", [80, 100, 140])
def test_list_methods_drops_no_operator(columns: int) -> None:
    lines = on_terminal([*PYTHON, "list", "methods"], columns)
    assert max(map(len, lines)) <= columns
    words = " ".join(lines).split()
    headings = " ".join(line for line in lines if line.startswith("method")).split()
    for operator in registry.options("operator"):
        assert headings.count(operator) == 1, f"{operator} heads one column"
    for method in registry.methods():
        assert method in words
    codes = [line.split() for line in lines if line.startswith("ambient ")]
    found = [word for words in codes for word in words if word in ("ok", "RANDOM")]
    assert len(found) == len(registry.options("operator"))
    assert "RANDOM: the method needs an operator that varies" in " ".join(words)
