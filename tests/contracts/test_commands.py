"""A page's command trains the same cell again."""

import shlex
from pathlib import Path

import pytest
from cleanprior.benchmarks import cell_commands

from cleanprior.cells import Identity
from cleanprior.config import compose


@pytest.mark.parametrize(
    "overrides",
    [
        ["method=naive"],
        ["method=em", "operator=denoising", "operator.sigma=0.25", "seed=3"],
        ["method=em_mmps", "method.posterior.steps=3", "training.budget=6400", "data_seed=2"],
        ["method=oracle_50", "operator=blur", "evaluation.lpips=false", "method.clean_images=7"],
    ],
)
def test_the_command_composes_the_same_configuration(overrides):
    config = compose(overrides)
    program, verb, *given = shlex.split(cell_commands.train_command(config))
    assert (program, verb) == ("cleanprior", "train")
    again = compose(given)
    assert again == config and Identity(again).evaluation == Identity(config).evaluation


def test_the_command_names_only_what_was_changed():
    assert cell_commands.train_command(compose(["method=naive", "seed=4"])) == (
        "cleanprior train method=naive seed=4"
    )


def test_a_cell_tells_where_its_prior_is(tmp_path):
    prior = tmp_path / "a folder" / "cells" / "naive-0-abc" / "prior"
    prior.mkdir(parents=True)
    (prior.parent / "record-123.json").write_text("{}")
    (tmp_path / "a folder" / "cells" / "none").mkdir()
    (tmp_path / "a folder" / "cells" / "none" / "record-9.json").write_text("{}")
    out = tmp_path / "a folder"
    found = cell_commands.priors(out)
    assert found == {"123": prior}
    record = {"cell": "123", "config": compose(["method=naive"])}
    told = cell_commands.notes(record, out, found)
    assert told["prior"] == str(prior) and shlex.split(told["use it"])[-1] == str(prior)
    assert shlex.split(told["again"])[-2:] == ["--out", str(out)]
    assert cell_commands.notes({"cell": "9"}, Path("runs"), found) == {}


def test_a_folder_has_one_name_however_it_was_given(tmp_path, monkeypatch):
    (tmp_path / "here" / "runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    for given in ("runs", "./runs", "../here/runs", tmp_path / "here" / "runs"):
        assert cell_commands.from_here(Path(given)) == Path("runs")
    assert cell_commands.from_here(Path("../other")) == (tmp_path / "other").resolve()
