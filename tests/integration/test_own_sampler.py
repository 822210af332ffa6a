"""A method without a denoiser from end to end: its record, its row, samples of its cell."""

import json
import os
import pickle
import shutil

import pytest
import torch
from cleanprior.benchmarks.tables.display import display
from cleanprior.benchmarks.tables.summary import summarise, tidy

from cleanprior.cells import CellFiles, CellFolder
from cleanprior.cells.generators import load_own_sampler, load_prior
from cleanprior.cells.run import run_cell
from cleanprior.config import compose
from cleanprior.errors import UserError
from cleanprior.progress import Progress
from cleanprior.training.checkpoint import read_tensors, write_tensors

TINY = [
    "method=ambient_gan",
    "method.generator_width=8",
    "method.critic_width=8",
    "training.budget=512",
    "training.device=cpu",
    "evaluation.test_images=8",
    "evaluation.draws=2",
    "evaluation.samples=50",
    "evaluation.sampling_seeds=[0]",
    "evaluation.features=pixels",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    cell = CellFolder(tmp_path_factory.mktemp("own"), compose(TINY))
    return run_cell(cell, Progress()), cell.path


def test_the_row_has_dashes_for_restorations_and_the_reason_below(finished):
    record, _ = finished
    assert record["status"] == "done"
    assert record["training"]["images"] == 512
    frame = tidy({"ambient_gan": [record]})
    (line,) = display(summarise(frame), []).to_dict("records")
    for heading in ("PSNR dB draw", "NFE"):
        assert line[heading] == "-"
    for heading in ("FD", "sample s", "train s", "params"):
        assert line[heading] != "-"
    (row,) = record["rows"]
    assert row["missing"]["restoration"] == "no denoiser: a generator only samples"


def test_a_finished_cell_samples_with_its_averaged_generator(finished):
    record, folder = finished
    sample = load_own_sampler(folder)
    assert sample is not None
    pictures, _ = read_tensors(CellFolder(folder.parents[1], record["config"]).pictures)
    kept = pictures["samples.samples: generator"]
    from cleanprior.seeding import generator_for

    drawn = sample(50, generator_for(record["config"]["evaluation"]["seed"], "own-samples"))
    assert torch.equal(drawn[: len(kept)], kept)


def test_no_denoiser_is_said_where_one_is_asked_for(finished, tmp_path):
    _, folder = finished
    with pytest.raises(UserError, match="ambient_gan has none .no denoiser: a generator only"):
        load_prior(folder)
    assert load_own_sampler(tmp_path) is None
    with pytest.raises(UserError, match="is not a saved prior"):
        load_prior(tmp_path)


def test_a_checkpoint_of_other_networks_is_told(finished, tmp_path):
    _, folder = finished
    for path in folder.glob("record-*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors, meta = read_tensors(folder / "training" / "checkpoint.safetensors")
    cut = {k: v for k, v in tensors.items() if "average.generator" not in k}
    write_tensors(tmp_path / "training" / "checkpoint.safetensors", cut, meta)
    with pytest.raises(UserError, match="other networks than ambient_gan builds now"):
        load_own_sampler(tmp_path)


def altered(folder, to, change):
    """Copy a cell as a stranger may send it: its record says something else."""
    shutil.copytree(folder, to)
    (path,) = CellFiles(to).records().values()
    record = json.loads(path.read_text())
    del record["sha256"]  # or it is damaged, and as if it were not there
    change(record)
    path.write_text(json.dumps(record))
    return to


@pytest.mark.parametrize("group", ["method", "operator", "training", "backbone"])
def test_a_record_names_values_and_never_what_is_called(finished, tmp_path, monkeypatch, group):
    called = []
    monkeypatch.setattr(os, "system", lambda *a, **k: called.append((a, k)))
    to = altered(
        finished[1], tmp_path / "c", lambda r: r["config"][group].update(_target_="os.system")
    )
    expected = load_own_sampler(finished[1])(4, torch.Generator().manual_seed(0))
    found = load_own_sampler(to)(4, torch.Generator().manual_seed(0))
    assert torch.equal(found, expected) and not called


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["config"]["method"].update(name="os.system"), "unknown method 'os.system'"),
        (lambda r: r["config"]["method"].update(generator_width="${oc.env:HOME}"), "width"),
        (lambda r: r["config"]["training"].update(lr=-1), "training.lr=-1; allowed"),
        (lambda r: r["config"].pop("operator"), "is damaged"),
        (lambda r: r.update(image_shape=[1, 8]), "image_shape is"),
        (lambda r: r.update(image_shape="1x8x8"), "image_shape is"),
        (lambda r: r["config"].update(seed="x"), "seed=x"),
        (lambda r: r.update(image_shape=[1, 10**6, 10**6]), "image_shape is"),
        (lambda r: r["config"]["method"].update(generator_width=10**6), "networks are larger than"),
        (lambda r: r["config"]["method"].update(generator_width=10**30), "generator_width"),
    ],
)
def test_a_record_that_was_tampered_with_is_one_sentence(finished, tmp_path, change, message):
    to = altered(finished[1], tmp_path / "c", change)
    with pytest.raises(UserError, match=message) as told:
        load_own_sampler(to)
    assert "\n" not in str(told.value)


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(pickle.dumps(print)), "is damaged"),
        (lambda p: p.write_bytes(p.read_bytes()[:-9] + b"123456789"), "another hash"),
        (
            lambda p: write_tensors(
                p, {k: v * float("nan") for k, v in read_tensors(p)[0].items()}, {}
            ),
            "hold NaN or infinity",
        ),
    ],
)
def test_a_checkpoint_of_a_stranger_is_one_sentence(finished, tmp_path, damage, message):
    shutil.copytree(finished[1], tmp_path / "c")
    damage(CellFiles(tmp_path / "c").training.checkpoint)
    with pytest.raises(UserError, match=message) as told:
        load_own_sampler(tmp_path / "c")
    assert "\n" not in str(told.value)
