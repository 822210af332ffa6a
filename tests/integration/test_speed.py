"""``cleanprior speed``: what its tables hold. No test says how long anything takes."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from cleanprior.benchmarks.speed import memory, network, posterior, training
from cleanprior.benchmarks.speed.timing import Bench, exponent, ratio
from typer.testing import CliRunner

from cleanprior.cli import build_app, main
from cleanprior.operators import Likelihood
from cleanprior.progress import Progress

BENCH = Bench(torch.device("cpu"), 2, Progress())


def test_things_are_timed_in_turn_and_their_first_time_is_left_out():
    told = []
    found = BENCH.interleaved("x", {"a": lambda: told.append("a"), "b": lambda: told.append("b")})
    assert told == ["a", "b"] * 3
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_that_of_pairs_and_an_exponent_that_of_the_fit():
    assert ratio([2.0, 4.0, 6.0], [1.0, 2.0, 2.0]) == (2.0, 0.25)
    assert exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2.0)


def test_the_plain_loop_trains_the_network_that_the_trainer_trains(monkeypatch):
    setting = training.Setting((1, 8, 8), 3, torch.device("cpu"))
    net = setting.problem.denoiser()
    before = [p.clone() for p in net.parameters()]
    assert training.bare(net, setting.x, setting.config, BENCH, 3) > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert setting.ours() > 0
    monkeypatch.setattr(training, "SIZES", (((1, 8, 8), 2),))
    frame = training.trainer(BENCH).frame
    assert list(frame["method"]) == ["Trainer", "plain loop"]
    assert frame["ratio"][0] == pytest.approx(
        frame["ms a step"][0] / frame["ms a step"][1], rel=0.5
    )


def test_azulas_draws_are_those_of_ours_in_law():
    """On Gaussian images both draw from the posterior, whose mean and variance are known."""
    from cleanprior.data import Measurements
    from cleanprior.testing.parts import make_operator

    operator = make_operator("inpainting", (1, 4, 4), "p=0.5", "sigma=0.1")
    variance = 0.25

    def denoise(x, sigma):
        level = torch.as_tensor(sigma).reshape(-1, 1, 1, 1)
        return x * variance / (variance + level**2)

    truth = 0.5 * torch.randn((1, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    one = Measurements.draw(truth, operator, 0, "test")
    index = torch.zeros(4000, dtype=torch.long)
    likelihood = Likelihood.of(operator, one[index])
    seen = likelihood.params["mask"][0].bool().expand(1, 4, 4)
    shrink = variance / (variance + 0.1**2)
    for draw in (posterior.azula(denoise, 64), posterior.ours(denoise, "mmps", ("steps=64",))):
        x = draw(likelihood, 0)
        mean, spread = x.mean(0)[seen], x.var(0)
        torch.testing.assert_close(mean, shrink * one.y[0][seen], atol=0.03, rtol=0)
        assert spread[seen].mean() == pytest.approx(shrink * 0.1**2, rel=0.2)
        assert spread[~seen].mean() == pytest.approx(variance, rel=0.15)


def test_a_pass_costs_what_its_network_has():
    small = network.denoiser("small", (1, 8, 8), BENCH)
    once, whole = network.flops(small, (1, 8, 8), BENCH)
    assert 1e6 < once < 1e8 and 2.5 < whole / once < 3.5


def test_the_command_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(network, "SIDES", (8, 16))
    monkeypatch.setattr(network, "NUMBERS", (64, 128))
    result = CliRunner().invoke(
        build_app(), ["speed", "scaling", "--repeats", "1", "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    frame = pd.read_csv(tmp_path / "scaling.csv")
    assert len(set(frame["what"])) == 4 and np.isfinite(frame["exponent"]).all()
    text = (tmp_path / "scaling.md").read_text()
    assert "How costs grow" in text and "one thread" in text


def test_a_peak_is_that_of_a_process_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr(memory, "RUNS", {"training, measurements in a file": (40,)})
    section = memory.memory(BENCH)
    assert list(section.frame["size"]) == [40] and not section.is_timed
    assert section.frame["file MB"][0] > 0
    assert (section.frame["peak MB"] > 1).all() or sys.platform != "linux"
    memory.main("restoring, images at a time", "2", "cpu", "")
    assert json.loads(capsys.readouterr().out or "0") is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trianer"], "Did you mean 'trainer'"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["startup", "--repeats", "0"], "--repeats"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr("sys.argv", ["cleanprior", "speed", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert ended.value.code == 2 and message in told and "Traceback" not in told
