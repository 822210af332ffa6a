"""Noise as instruments make it: keys, who is told what, files, identities."""

import json

import numpy as np
import pytest
import torch
from cleanprior.benchmarks.description import bench
from cleanprior.benchmarks.plan import make_plan
from trained import TINY

from cleanprior.cells.folder import CellFolder
from cleanprior.cells.identity import Identity, training_identity
from cleanprior.cells.run import Cell, run_cell, write_measurements
from cleanprior.config import capabilities, compose, recompose, registry
from cleanprior.data import Measurements, measured_file
from cleanprior.data.instrument_noise import with_noise
from cleanprior.errors import UserError
from cleanprior.progress import Progress

POISSON = ("noise.kind=poisson", "noise.gain=0.1")


def cell(tmp_path, *overrides):
    return Cell(CellFolder(tmp_path, compose(["method=naive", *overrides])))


def test_without_a_noise_a_configuration_is_what_it_was():
    plain = compose(["operator=denoising"])
    assert "noise" not in plain and plain["operator"]["sigma"] == 0.5


def test_a_noise_is_part_of_the_cell_and_comes_back_from_its_record():
    config = compose(["operator=denoising", *POISSON, "noise.as=map"])
    plain = compose(["operator=denoising"])
    assert config["noise"]["gain"] == 0.1 and config["operator"]["sigma"] == 0
    for key in ("training", "evaluation"):
        assert getattr(Identity(config), key) != getattr(Identity(plain), key)
    level = compose(["operator=denoising", *POISSON, "noise.as=level"])
    assert Identity(config).measured("") != Identity(level).measured("")
    assert training_identity(config) != training_identity(level)
    assert recompose(json.loads(json.dumps(config)), "x") == config
    # Another kind over a remembered one begins from its own keys.
    other = compose(["operator=denoising", "noise.kind=gamma"], {"noise": config["noise"]})
    assert other["noise"]["looks"] == 10 and "gain" not in other["noise"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["noise.gain=0.1"], "noise.kind=KIND; allowed: clipping, erasing, gamma"),
        (["noise.kind=poison"], "Did you mean 'poisson'?"),
        ([*POISSON, "noise.gian=1"], "Did you mean 'noise.gain'?"),
        ([*POISSON, "noise.read=1"], "unknown key 'noise.read'"),
        ([*POISSON, "noise.gain=0"], "noise.gain=0; allowed: above 0"),
        (["noise.kind=gamma", "noise.looks=2"], "noise.looks=2; allowed: above 2"),
        ([*POISSON, "noise.as=maps"], "noise.as=maps; allowed: none, map, level, anscombe"),
        ([*POISSON, "noise.capabilities=[counts]"], "unknown key"),
        ([*POISSON, "noise._target_=os.system"], "unknown key"),
        ([*POISSON, "operator=blur", "operator.sigma=0.1"], "leave operator.sigma out"),
        ([*POISSON, "noise.as=map", "noise.level=1"], "is that of noise.as=level"),
        ([*POISSON, "operator=mri"], "Fourier domain"),
        ([*POISSON, "operator=blur", "noise.as=anscombe"], "blur mixes pixels"),
        (["noise.kind=rician", "noise.as=anscombe"], "for counted photons"),
    ],
)
def test_a_noise_that_is_none_is_one_line(overrides, message):
    with pytest.raises(UserError) as raised:
        compose(overrides)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("given", ["poisson", 1, ["kind"], None])
def test_a_strangers_noise_is_data(given):
    config = compose(["operator=denoising", *POISSON])
    with pytest.raises(UserError, match="'x' is damaged: its noise holds no keys"):
        recompose({**config, "noise": given}, "x")


def test_what_makes_negative_values_of_light_is_refused(tmp_path):
    with pytest.raises(UserError, match="makes negative values of light"):
        cell(tmp_path, "operator=compressed_sensing", *POISSON)
    # Rounding is of any value.
    rounded = cell(tmp_path, "operator=compressed_sensing", "noise.kind=quantisation")
    assert rounded.operator.sigma > 0


def test_a_users_own_measurements_have_their_noise(tmp_path):
    drawn = cell(tmp_path, "operator=inpainting").measurements("train")[:8]
    path = tmp_path / "mine.safetensors"
    drawn.save(path)
    with pytest.raises(UserError, match="drawn already"):
        cell(tmp_path, "data=measurements", f"data.path={path}", "operator=inpainting", *POISSON)


def test_who_needs_gaussian_noise_is_refused_until_told_of_one():
    told, able = {}, set()
    facts = capabilities.ProblemFacts.of(compose(["operator=denoising"])["operator"])
    for name, card in registry.readable("method").items():
        if capabilities.refusal({**card, "name": name}, facts) is None:
            able.add(name)
    for kind in ("none", "map", "level", "anscombe"):
        config = compose(["operator=denoising", *POISSON, f"noise.as={kind}"])
        facts = capabilities.ProblemFacts.of(config["operator"], None, config["noise"])
        refused = {}
        for name, card in registry.readable("method").items():
            found = capabilities.refusal({**card, "name": name}, facts)
            refused[name] = None if found is None else found.code
        told[kind] = refused
    cards = registry.readable("method").items()
    needy = [n for n, card in cards if "GAUSS" in capabilities.required({**card, "name": n})]
    assert {"em_mmps", "flowdiff", "ambient_tweedie"} <= set(needy) & able
    assert all(told["none"][n] == "GAUSS" for n in needy if n in able)
    assert told["map"]["ambient_tweedie"] == "WHITE" and told["map"]["em_mmps"] is None
    for kind in ("level", "anscombe"):
        assert all(told[kind][n] is None for n in ("ambient_tweedie", "em_mmps", "sure_score"))
        assert told[kind]["naive"] is None
    config = compose(["method=em_mmps", "operator=denoising", *POISSON])
    assert "take an approximation, noise.as=map" in capabilities.refused(config).reason


def test_an_image_is_measured_alike_whatever_is_beside_it(make_operator, digits_data):
    config = compose(["operator=inpainting", *POISSON, "noise.as=map"])
    operator = with_noise(config, make_operator("inpainting", (1, 8, 8)))
    whole = Measurements.draw(digits_data.train[:300], operator, 3, "train")
    before = torch.get_rng_state()
    part = Measurements.draw(digits_data.train[:20], operator, 3, "train")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(whole.y[:20], part.y) and torch.equal(whole.sigma_y[:20], part.sigma_y)
    assert (part.y[part.params["mask"].expand_as(part.y) == 0] == 0).all()
    other = Measurements.draw(digits_data.train[:20], operator, 4, "train")
    assert not torch.equal(other.y, part.y)


@pytest.mark.parametrize("kind", ["gamma", "rician", "poisson_gaussian", "quantisation"])
def test_every_kind_leaves_the_global_stream_alone(kind, digits_data, make_operator):
    config = compose(["operator=denoising", f"noise.kind={kind}"])
    operator = with_noise(config, make_operator("denoising", (1, 8, 8)))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    once = Measurements.draw(digits_data.train[:5], operator, 0, "train")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(Measurements.draw(digits_data.train[:5], operator, 0, "train").y, once.y)


def test_all_splits_are_told_one_level(tmp_path):
    built = cell(tmp_path, "operator=denoising", *POISSON, "noise.as=level")
    levels = [built.measurements(split).sigma_y for split in ("train", "test")]
    assert levels[0].unique().tolist() == pytest.approx(levels[1].unique().tolist(), rel=1e-5)
    assert built.operator.sigma == pytest.approx(levels[0][0].item(), rel=1e-5)
    x, y = built.data.train, built.measurements("train").y[:]
    assert (y - x).square().mean().sqrt().item() == pytest.approx(built.operator.sigma, rel=0.01)
    given = cell(tmp_path, "operator=denoising", *POISSON, "noise.as=level", "noise.level=0.7")
    assert (given.measurements("test").sigma_y == 0.7).all() and given.operator.sigma == 0.7


@pytest.mark.parametrize("told", ["map", "level", "anscombe"])
def test_a_cell_is_trained_and_its_row_says_how(tmp_path, digits_data, told):
    np.save(tmp_path / "few.npy", digits_data.train[:80, 0].numpy())
    keys = ["method=em_mmps", "operator=inpainting", *POISSON, f"noise.as={told}"]
    keys += ["data=arrays", f"data.path={tmp_path / 'few.npy'}", "data.range=[-1,1]"]
    small = ["method.resume_rounds=1", "method.narrow_rounds=0", "method.gaussian=low_rank"]
    small += ["method.low_rank_iterations=2", "method.rank=2"]
    folder = CellFolder(tmp_path, compose([*keys, *small, *TINY]))
    record = run_cell(folder, Progress())
    assert record["status"] == "done", record["status"]
    assert told in record["warning"] and "noise.as" in record["warned"][told]
    (row,) = record["rows"]
    assert np.isfinite(row["metrics"]["psnr"]) and row["metrics"]["psnr"] > 3
    assert np.isfinite(row["metrics"]["fd"]) and np.isfinite(row["metrics"]["proximal_fd"])
    assert record["config"] == folder.config


def test_a_restoration_is_compared_as_an_image(tmp_path):
    """The root of the clean image, restored, is the clean image; its residual is the noise's."""
    from cleanprior.evaluation.restorations import RestorationJudge
    from cleanprior.operators import Likelihood

    built = cell(tmp_path, "operator=denoising", *POISSON, "noise.as=anscombe")
    x = built.data.test[:10]
    likelihood = Likelihood.of(built.operator, built.measurements("test")[:10])
    noise = built.operator.noise
    judge = RestorationJudge(likelihood, x, False, False, 0, images=noise.images)
    found = judge(noise.learned(x)[None], True).metrics
    assert found["psnr_point"] > 60
    assert 0.4 < found["consistency_point"] / found["consistency_expected"] < 1.1


def test_untold_posterior_samplers_restore_nothing_and_say_so(tmp_path):
    record = run_cell(
        CellFolder(tmp_path, compose(["method=naive", "operator=denoising", *POISSON, *TINY])),
        Progress(),
    )
    assert "say noise.as=map" in record["rows"][0]["missing"]["restoration"]
    assert "fd" in record["rows"][0]["metrics"] and record["warning"] == ""


@pytest.mark.parametrize("told", ["none", "map"])
def test_measurements_are_written_with_their_levels(tmp_path, told):
    config = compose(["operator=denoising", *POISSON, f"noise.as={told}"])
    path = tmp_path / "photons.npz"
    write_measurements(config, path)
    read = measured_file(str(path), None, 0.1)
    assert read.train.sigma_y.dim() == (4 if told == "map" else 1)
    photons = (read.train.y + 1) / 2 / 0.1
    assert (photons - photons.round()).abs().max() < 1e-4 and photons.min() > -1e-4
    rooted = compose(["operator=denoising", *POISSON, "noise.as=anscombe"])
    with pytest.raises(UserError, match=r"data\.photons"):
        write_measurements(rooted, path)


def test_the_benchmark_names_the_noise():
    labels = [problem.label for problem in make_plan(bench("noise")).problems]
    assert labels[0] == "denoising poisson gain=0.1 as level"
    assert labels[5] == "denoising poisson as map" and len(set(labels)) == 6


def test_a_prior_of_roots_restores_as_images_and_reads_counts_alone(tmp_path, digits_data):
    """What a prior's card remembers of the noise comes back with its operator, not without."""
    from cleanprior.commands.priors import remembered
    from cleanprior.commands.restore import reading_of

    trained = compose(["operator=denoising", *POISSON, "noise.as=anscombe"])
    again = compose(*remembered(trained, None, []))
    assert again["noise"] == trained["noise"]
    with pytest.raises(UserError, match=r"read counts by.*data\.photons"):
        reading_of(again)
    other = compose(*remembered(trained, None, ["operator.sigma=0.2"]))
    assert "noise" not in other and other["operator"]["sigma"] == 0.2
    with pytest.raises(UserError, match="its noise is not a configuration"):
        remembered({**trained, "noise": "poisson"}, None, [])
