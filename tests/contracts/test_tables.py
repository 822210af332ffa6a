"""What a table shows: rows, numbers, marks, and its forms in LaTeX, CSV and Markdown."""

import io
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cleanprior.benchmarks import description
from cleanprior.benchmarks.plan import make_plan
from cleanprior.benchmarks.tables import notes
from cleanprior.benchmarks.tables.display import display, marks
from cleanprior.benchmarks.tables.latex import to_latex
from cleanprior.benchmarks.tables.numbers import lettered, significant, with_spread
from cleanprior.benchmarks.tables.overview import overview
from cleanprior.benchmarks.tables.row_names import names, procedure
from cleanprior.benchmarks.tables.summary import summarise, tidy
from cleanprior.benchmarks.tables.writing import to_csv, to_markdown
from made_up import WARNING, records

from cleanprior.cells.status import KINDS, Status
from cleanprior.training import Warning

SHOWN = pd.DataFrame(
    {
        "method": ["em_mmps", "flow: mean of 8 & 50%", "gsure", "oracle †"],
        "restores by": ["mmps: one draw", "mean of 8 & 50%: point estimate", "-", "mmps: one draw"],
        "|y-Ax| draw": ["0.10 ± 0.01", "0.12", "-", "0.09"],
        "FD": ["45.0", "-", "-", "38.0"],
        "peak MB": ["900", "901", "-", "902"],
        "status": ["done [floor]", "done", "skipped, see below", "done"],
    }
)


def tex() -> str:
    bold = SHOWN.map(lambda text: text == "45.0")
    summary = pd.DataFrame(
        {
            "status": ["done", "done", "skipped: it needs noise", "done"],
            "warning": ["floor", "", "", ""],
        }
    )
    return to_latex(SHOWN, summary, bold, ["100 % of x_0", "gsure: skipped: needs noise"])


def test_latex_has_rows_that_were_trained_with_their_marks() -> None:
    rows = [line.split(" & ") for line in tex().splitlines() if line.endswith("\\\\")]
    assert [[c.removesuffix(" \\\\") for c in row] for row in rows] == [
        ["method", "$|y-Ax|$", "FD"],
        ["em\\_mmps [floor]", "0.10 $\\pm$ 0.01", "\\textbf{45.0}"],
        ["flow: mean of 8 \\& 50\\%", "0.12", "-"],
        ["oracle $\\dagger$", "0.09", "38.0"],
    ]
    assert tex().startswith("% 100 % of x_0\n% gsure: skipped: needs noise\n")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex at hand")
def test_latex_compiles_with_booktabs_alone(tmp_path: Path) -> None:
    (tmp_path / "table.tex").write_text(tex())
    page = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{table.tex}"
    (tmp_path / "page.tex").write_text(page + "\\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stdout[-800:]
    assert "Overfull" not in made.stdout


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.00412, "0.00412"),
        (0.0312, "0.0312"),
        (45.03, "45.0"),
        (99.96, "100"),
        (759.1, "759"),
        (1465.2, "1465"),
        (1.234e-8, "1.23e-08"),
        (-2.5, "-2.50"),
        (6.5e7, "6.50e+07"),
        (math.inf, "inf"),
    ],
)
def test_numbers_have_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (45.03, 2.13, "45 ± 2"),
        (45.03, 1.34, "45.0 ± 1.3"),
        (128.6, 12.2, "129 ± 12"),
        (0.00412, 0.00031, "0.0041 ± 0.0003"),
        (45.03, 0.0004, "45.030 ± 0.0004"),
        (3.2, 0.0, "3.20 ± 0"),
        (0.0, 0.02, "0.00 ± 0.02"),
    ],
)
def test_a_number_is_as_precise_as_its_spread(value: float, spread: float, text: str) -> None:
    assert with_spread(value, spread, " ± ") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (978, "978"),
        (294_000, "294k"),
        (3.14e12, "3.1T"),
        (999_960, "1M"),
        (1e21, "1000E"),
    ],
)
def test_counts_have_a_letter(value: float, text: str) -> None:
    assert lettered(value) == text


@pytest.fixture(scope="module")
def config() -> dict:
    plan = make_plan(description.bench("default"), ["naive"], with_references=False)
    return plan.problems[0].cells["naive"][0]


REFERENCES = ("observations", "naive", "oracle")


def test_draws_and_points_are_columns_of_their_own(config: dict) -> None:
    summary = summarise(tidy(records(config)))
    way = "one step: point estimate; samples: fixed mask"
    bold = marks(
        summary, {"psnr": [("em", "mmps: one draw, mean of 8")], "psnr_point": [("ambient", way)]}
    )
    shown = display(summary, REFERENCES).set_index("method")
    assert shown.loc["ambient: one step", "PSNR dB draw"] == "-"
    assert shown.loc["ambient: one step", "PSNR dB point"] == "18.87"
    assert shown.loc["ambient", "PSNR dB draw"] == "18.24"
    assert shown.loc["flowdiff: flow", "PSNR dB draw"] == "16.89"
    marked = bold.set_index(shown.index)
    assert marked["PSNR dB draw"].to_dict() == {name: name == "em" for name in shown.index}
    assert marked["PSNR dB point"].sum() == 1 and marked.loc["ambient: one step", "PSNR dB point"]
    assert shown.loc["observations", "|y-Ax| point"] == "0", "rounding is no residual"
    assert shown.loc["em", "proximal FD"] == "0.0053 ± 0.0002"
    assert shown.loc["em", "train FLOP"] == "3.1T"
    assert shown.loc["ambient", "status"] == "done [shift] [range]"


def test_an_old_record_without_the_new_keys_is_shown(config: dict) -> None:
    found = records(config)
    for cells in found.values():
        for key in ("costs", "warning"):
            cells[0].pop(key)
        for row in cells[0]["rows"]:
            for key in ("draws", "samples", "marks", "marked", "curves", "costs"):
                row.pop(key)
            row["metrics"] = {k: v for k, v in row["metrics"].items() if k in ("psnr", "fd")}
    shown = display(summarise(tidy(found)), REFERENCES)
    assert "PSNR dB point" not in shown and "train FLOP" not in shown
    assert shown["train s"].tolist() == ["38"] * len(shown)


def test_the_spread_of_a_distance_is_that_of_one_value() -> None:
    """Over training and sampling seeds: simulated runs have the standard deviation they say."""
    rng = np.random.default_rng(0)
    between, within, k = 2.0, 1.5, 3
    found = []
    for _ in range(400):
        runs = 50 + rng.normal(0, between, 4)[:, None] + rng.normal(0, within, (4, k))
        frame = pd.DataFrame(
            {
                "method": "em",
                "way": "mmps",
                "status": "done",
                "warning": "",
                "fd": runs.mean(1),
                "fd_std": runs.std(1, ddof=1),
                "sampling_seeds": k,
            }
        )
        found.append(summarise(frame)["fd_std"].iloc[0] ** 2)
    assert np.mean(found) == pytest.approx(between**2 + within**2, rel=0.05)
    one = summarise(frame.iloc[:1])
    assert one["fd_std"].iloc[0] == pytest.approx(frame["fd_std"].iloc[0])
    assert "fd_std_std" not in one, "a spread is no metric of its own"


def test_rows_have_names_of_their_own() -> None:
    lines = [
        ("em", "mmps: one draw", False),
        ("em", "dps: one draw", False),
        ("gan", "samples: generator", True),
        ("flow", "flow: one draw; samples: a", True),
        ("flow", "flow: one draw; samples: b", True),
        ("naive", "none; sample", True),
    ]
    summary = pd.DataFrame(
        [
            {"method": m, "way": w, "is_own": o, "clean_images": 0, "train_images": 9}
            for m, w, o in lines
        ]
    )
    found = names(summary, ("naive",))
    assert found[:3] == ["em", "em: dps", "gan: generator"] and found[-1] == "naive"
    assert len(set(found)) == len(found)


def test_warnings_come_from_records_with_the_rows_that_they_concern(config: dict) -> None:
    found = records(config)
    found["flowdiff"][0]["warning"] = "floor+theirs"
    found["em"][0]["warned"] = {"floor": "a floor of this method's own"}
    (problem,) = make_plan(description.bench("default"), ["naive"], with_references=False).problems
    said = notes.write_notes(problem, found, REFERENCES)
    assert f"[range] ambient: {WARNING}" in said.careful
    assert "[floor] em: a floor of this method's own" in said.careful
    assert any(n.startswith("[floor] flowdiff: noise-free data") for n in said.careful)
    assert any(
        n.startswith("[theirs] flowdiff: a warning of the method's own") for n in said.careful
    )
    text = " ".join(said.careful)
    assert "FD of a perfect sampler: 3.4 ± 0.3 (2,048 samples" in text
    assert "43.7 with 360 of them, where exact samples have 21 ± 4 and random splits 24 ± 5" in text
    assert "standard deviation over 3 sampling seeds" in text
    assert any("bold: it needs 3 training seeds" in n for n in said.details)


def test_reasons_of_unfinished_rows_stand_on_one_line(config: dict) -> None:
    found = records(config)
    found["odd"] = [{"method": "odd", "seed": 0, "status": "failed: E: one\n  two"}]
    (problem,) = make_plan(description.bench("default"), ["naive"], with_references=False).problems
    assert "odd: failed: E: one two" in notes.write_notes(problem, found, REFERENCES).careful
    shown = display(summarise(tidy(found)), REFERENCES)
    assert shown["status"].iloc[-1] == "failed, see below"


def test_no_text_of_a_csv_is_a_formula() -> None:
    frame = pd.DataFrame(
        {"method": ["=cmd()", "+1+1", "@x", "-", "-0.5 ± 0.1", "em", "-x"], "n": [-1.5] * 7}
    )
    written = pd.read_csv(io.StringIO(to_csv(frame)))
    expected = ["'=cmd()", "'+1+1", "'@x", "-", "-0.5 ± 0.1", "em", "'-x"]
    assert written["method"].tolist() == expected and written["n"].tolist() == [-1.5] * 7


def test_names_are_written_as_they_are_in_markdown_and_latex() -> None:
    frame = pd.DataFrame(
        {"method": ["a|b *c* <i>", "d_e\nf 画"], "FD": ["1", "2"], "status": "done"}
    )
    frame["restores by"] = "-"
    bold = frame.map(lambda text: text == "2")
    markdown = to_markdown(frame, bold).splitlines()
    assert markdown[2].startswith(r"| a\|b \*c\* \<i>") and "**2**" in markdown[3]
    assert len(markdown) == 4
    tex = to_latex(frame, frame.assign(warning=""), bold, ["one\ntwo"])
    assert tex.startswith("% one two\n") and "d\\_e f ? & \\textbf{2}" in tex


def test_an_overview_keeps_draws_and_points_apart(config: dict) -> None:
    summaries = {label: summarise(tidy(records(config))) for label in "ab"}
    best: dict = {"a": {"psnr": [("em", "mmps: one draw, mean of 8")]}, "b": {}}
    shown, numbers, bold = overview(summaries, best, REFERENCES, "psnr")
    assert "ambient: one step" not in set(shown["method"])
    assert shown.set_index("method").loc["em", "a"] == "17.73" and bold["a"].sum() == 1
    assert not bold["b"].any() and numbers["b"].notna().all()
    shown, *_ = overview(summaries, best, REFERENCES, "psnr_point")
    assert shown.set_index("method").loc["ambient: one step", "b"] == "18.87"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"restores_by": "one step", "samples_by": "fixed mask", "way": "x"}, "one step"),
        ({"restores_by": "", "samples_by": "generator", "way": "samples: generator"}, "generator"),
        # Version 0.1.0 had the label alone.
        ({"way": "one step: point estimate; samples: fixed mask"}, "one step"),
        ({"way": "none; samples: guided by 3 masks"}, "guided by 3 masks"),
        ({"way": "f(y), one step: point estimate"}, "f(y), one step"),
        ({"way": "mmps: one draw, mean of 8"}, "mmps"),
        ({"way": "mmps"}, "mmps"),
        ({"way": ""}, ""),
    ],
)
def test_a_procedure_is_told_by_the_record_or_its_earlier_label(row, name):
    assert procedure(row) == name


@pytest.mark.parametrize(
    "text", ["done", "diverged", "not run", "skipped: blur is not a mask", "failed: KeyError: 'a'"]
)
def test_a_status_on_disk_is_the_one_that_was_written(text):
    status = Status.from_json(text)
    assert status.to_json() == text
    assert status.kind in KINDS and status.kind == text.split(":")[0]
    assert status.is_done == (text == "done")
    assert status.is_broken == (status.kind in ("diverged", "failed"))


def test_a_strangers_warning_is_explained_under_the_table(config):
    found = records(config)
    found["em"][0] |= {"warning": "moon", "warned": {"moon": "trained at full moon"}}
    (problem,) = make_plan(description.bench("default"), ["naive"], with_references=False).problems
    assert "[moon] em: trained at full moon" in notes.write_notes(problem, found, ()).careful


@pytest.mark.parametrize("code", ["", "two words", "a+b", "[a]"])
def test_a_code_that_cannot_stand_beside_a_row_is_refused(code):
    with pytest.raises(ValueError, match="must be one"):
        Warning(code, "a sentence")
