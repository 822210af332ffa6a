"""The bench: its rows, its files, what is trained again and what is not."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pandas as pd
import pytest

from cleanprior import cli

TINY = [
    "training.budget=256",
    "evaluation.test_images=16",
    "evaluation.draws=2",
    "evaluation.samples=50",
    "evaluation.sampling_seeds=[0]",
    "posterior.steps=3",
    "sampler.steps=3",
]
ENV = {**os.environ, "PYTHONPATH": ""}


PROGRAM = str(Path(sys.executable).with_name("cleanprior"))


def program(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a person does."""
    command = [PROGRAM, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=ENV, timeout=300)


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``cleanprior bench`` in this process, which has loaded its libraries."""
    command = ["cleanprior", "bench", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", command)
        code = cli._run()
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    result = program(folder, "bench", "--methods", "ambient", *TINY)
    assert result.returncode == 0, result.stderr
    return folder


def table_folder(folder: Path) -> Path:
    requests = (folder / "runs" / "tables").glob("*/request.json")
    return max(requests, key=lambda path: path.stat().st_mtime_ns).parent


def test_the_table_has_its_reference_rows_and_own_ways(finished: Path) -> None:
    frame = pd.read_parquet(table_folder(finished) / "records.parquet")
    rows = list(zip(frame["method"], frame["way"], strict=True))
    assert rows == [
        ("observations", "y itself: point estimate"),
        ("naive", "mmps: one draw, mean of 2"),
        ("ambient", "mmps: one draw, mean of 2"),
        ("ambient", "one step: point estimate; samples: fixed mask"),
        ("oracle", "mmps: one draw, mean of 2"),
    ]
    assert frame["measurements_sha256"].nunique() == 1
    assert frame.set_index("method").loc["oracle", "clean_images"] == 1437
    trained = frame[~frame["method"].eq("observations")]
    assert trained["images_seen"].eq(256).all()
    assert frame[["psnr_point", "ssim_point", "consistency_point"]].notna().all(axis=None)
    is_point = frame["way"].str.contains("point estimate")
    assert frame["psnr"].isna().eq(is_point).all()
    # A network that never met a whole image samples by its own way alone.
    shared = frame["method"].eq("ambient") & ~frame["is_own"]
    assert frame["fd"].isna().eq(shared).all()


def test_every_output_is_written(finished: Path) -> None:
    names = {p.name for p in table_folder(finished).iterdir()}
    assert names == {
        "table.md",
        "table.csv",
        "table.tex",
        "records.parquet",
        "samples.png",
        "restorations.png",
        "comparisons.csv",
        "quality_cost.png",
        "curves.png",
        "calibration.png",
        "memorised.png",
        "report.html",
        "request.json",
        ".drawn.json",
        ".strips.json",
    }
    tex = (table_folder(finished) / "table.tex").read_text()
    assert "\\toprule" in tex
    assert "| ambient" in (table_folder(finished) / "table.md").read_text()
    page = (table_folder(finished) / "report.html").read_text()
    assert page.count('role="tab"') == 1 and "data:image/png;base64," in page


def test_a_channel_without_a_gaussian_has_its_rows_and_reasons(tmp_path: Path) -> None:
    methods = ["--methods", "ambient_gan,em_mmps", "--operator", "denoising"]
    result = bench(tmp_path, *methods, "noise.kind=clipping", *TINY)
    assert result.returncode == 0, result.stderr
    frame = pd.read_parquet(table_folder(tmp_path) / "records.parquet").set_index("method")
    assert frame.loc[["ambient_gan", "naive", "oracle", "observations"], "fd"].notna().all()
    assert frame["psnr_point"].notna().sum() == 1, "only y itself restores"
    table = (table_folder(tmp_path) / "table.md").read_text()
    assert "denoising (clipping)" in table
    assert "em_mmps needs additive Gaussian noise of known sigma" in table
    assert "take an approximation, noise.as=map or level" in table
    assert "posterior samplers take Gaussian noise" in table


def test_a_second_run_trains_nothing_and_a_new_method_only_itself(finished: Path) -> None:
    again = bench(finished, "--methods", "ambient", *TINY)
    assert again.returncode == 0
    assert "[1/" not in again.stderr
    frame = pd.read_csv(table_folder(finished) / "table.csv")
    more = bench(finished, "--methods", "ambient,masked_loss", *TINY, "--no-references")
    assert more.returncode == 0, more.stderr
    assert "[1/1] masked_loss" in more.stderr
    wider = pd.read_csv(table_folder(finished) / "table.csv")
    assert list(wider["method"].unique()) == ["ambient", "masked_loss"]
    same = frame[frame["method"] == "ambient"].reset_index(drop=True)
    now = wider[wider["method"] == "ambient"].reset_index(drop=True)
    pd.testing.assert_frame_equal(same, now, check_dtype=False)


def test_the_report_is_written_again_from_records_alone(finished: Path) -> None:
    folder = table_folder(finished)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in (".csv", ".html")}
    (folder / "table.csv").unlink()
    again = program(finished, "report", str(folder))
    assert again.returncode == 0, again.stderr
    assert {name: (folder / name).read_bytes() for name in before} == before
    lost = program(finished, "report", "runs/tables")
    assert lost.returncode == 2 and f"runs/tables/{folder.name}" in lost.stderr


def test_another_posterior_sampler_trains_nothing_again(finished: Path) -> None:
    arguments = ["--methods", "ambient", "--no-references", *TINY, "posterior.steps=4"]
    result = bench(finished, *arguments)
    assert result.returncode == 0, result.stderr
    records = []
    for file in finished.glob("runs/cells/*-ambient-*/record-*.json"):
        records.append(json.loads(file.read_text()))
    assert len(records) == 2
    first, second = (r["training"] for r in records)
    assert first["seconds"] == second["seconds"]
    assert {r["rows"][0]["evaluations"] for r in records} == {3, 4}


def test_force_trains_one_method_again(finished: Path) -> None:
    result = bench(finished, "--methods", "ambient", "--force", "ambient", *TINY)
    assert result.returncode == 0
    assert "[1/1] ambient" in result.stderr


def test_a_refused_method_is_a_row_with_its_reason(finished: Path) -> None:
    arguments = ["--methods", "ambient", "--operator", "denoising", "--no-references", *TINY]
    result = bench(finished, *arguments)
    assert result.returncode == 0
    assert "skipped: ambient needs an operator that varies between images" in result.stdout


def test_a_cell_that_failed_does_not_count_as_done(finished: Path) -> None:
    (cell,) = (finished / "runs" / "cells").glob("*-naive-*")
    (file,) = cell.glob("record-*.json")
    record = json.loads(file.read_text())
    record["status"] = "failed: for this test"
    file.write_text(json.dumps(record))
    result = bench(finished, "--methods", "ambient", *TINY)
    assert "[1/1] naive" in result.stderr


def test_damaged_measurements_are_drawn_again_with_a_line(finished: Path) -> None:
    files = {p: p.read_bytes() for p in finished.glob("runs/measurements/train-*")}
    for file in files:
        file.write_bytes(b"damaged")
    arguments = ["--methods", "naive,ambient", "--no-references", *TINY, "training.budget=320"]
    result = bench(finished, *arguments)
    assert result.returncode == 0, result.stderr
    told = result.stderr.count("is damaged")
    assert told == 1 and "they are drawn again" in result.stderr
    assert {p: p.read_bytes() for p in files} == files, "the same bytes as before"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "ambiant"], "Did you mean 'ambient'?"),
        (["operator.p=1.0"], "operator.p=1; allowed: [0, 1)"),
    ],
)
def test_bad_input_is_one_clear_line_and_writes_nothing(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = program(tmp_path, "bench", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
