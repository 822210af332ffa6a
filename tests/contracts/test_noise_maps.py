"""Noise levels of y's own shape: in files, in batches, and who refuses them before any compute."""

import numpy as np
import pytest
import torch

import cleanprior
from cleanprior.cells.folder import CellFolder
from cleanprior.cells.identity import Identity
from cleanprior.cells.run import Cell, run_cell
from cleanprior.config import capabilities, compose, registry
from cleanprior.data import Measurements, measured_file, write_splits
from cleanprior.errors import UserError
from cleanprior.operators import Likelihood
from cleanprior.progress import Progress

SHAPE = (1, 8, 8)
#: What takes one level an image, of the methods that take noise of known level at all.
WHITE = ("ambient_tweedie", "denoise_then_train", "gsure", "sure_score")
MAPS = ("ambient_gan", "em", "em_mmps", "flowdiff")


@pytest.fixture(scope="module")
def measured(make_operator, digits_data):
    operator = make_operator("denoising", SHAPE, "sigma=0.4")
    drawn = Measurements.draw(digits_data.train[:40], operator, 0, "train")
    ramp = torch.linspace(0.1, 0.4, 64).reshape(1, 1, 8, 8).expand(40, -1, -1, -1)
    return Measurements(drawn.y, {}, ramp)


def stored(tmp_path, measured, **changes):
    arrays = {"y": measured.y.numpy(), "sigma_y": measured.sigma_y.numpy(), **changes}
    path = tmp_path / "mine.npz"
    np.savez(path, **{k: np.asarray(v) for k, v in arrays.items()})
    return str(path)


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".safetensors"])
def test_a_file_holds_a_map_and_gives_it_back(measured, tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    write_splits(path, measured, measured[:5])
    data = measured_file(str(path), None, 0.5)
    assert data.train.hash == measured.hash and data.test.hash == measured[:5].hash
    assert Measurements.load(path).hash == measured.hash


@pytest.mark.parametrize(
    ("level", "shape"),
    [
        (np.full((8, 8), 0.2), (40, 1, 8, 8)),  # one map for all
        (np.full((1, 1, 8, 8), 0.2), (40, 1, 8, 8)),
        (np.full((40, 8, 8), 0.2), (40, 1, 8, 8)),
        (np.full(40, 0.2), (40,)),
        (np.full((40, 1, 1, 1), 0.2), (40,)),
        (0.2, (40,)),
    ],
)
def test_the_shapes_of_levels_in_a_file(measured, tmp_path, level, shape):
    found = Measurements.load(stored(tmp_path, measured, sigma_y=level))
    assert found.sigma_y.shape == shape and (found.sigma_y == np.float32(0.2)).all()


def test_a_level_for_each_channel_stays_one(tmp_path):
    y = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)).numpy()
    level = np.linspace(0.1, 0.3, 3).reshape(1, 3, 1, 1).repeat(6, 0)
    path = tmp_path / "mine.npz"
    np.savez(path, y=y, sigma_y=level)
    assert Measurements.load(path).sigma_y.shape == (6, 3, 1, 1)
    last = tmp_path / "last.npz"
    np.savez(last, y=np.moveaxis(y, 1, 3), sigma_y=np.broadcast_to(level[:, :, 0], (6, 3, 4)))
    with pytest.raises(UserError, match="sigma_y has shape"):
        Measurements.load(last)


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (np.full((40, 1, 8, 7), 0.2), r"sigma_y has shape \(40, 1, 8, 7\); needed: \(40,\)"),
        (np.full((39, 1, 8, 8), 0.2), "sigma_y has shape"),
        (np.full((40, 1, 8, 8), -0.2), "sigma_y is negative"),
        (np.full((40, 1, 8, 8), np.nan), "NaN or infinity in 'sigma_y'"),
        (np.full((40, 1, 8, 8), np.inf), "NaN or infinity in 'sigma_y'"),
    ],
)
def test_levels_that_are_none_are_one_line(measured, tmp_path, level, message):
    with pytest.raises(UserError, match=message) as raised:
        Measurements.load(stored(tmp_path, measured, sigma_y=level))
    assert "\n" not in str(raised.value)


def test_the_range_of_a_file_scales_the_map(measured, tmp_path):
    path = stored(tmp_path, measured, y=100 * measured.y + 100, sigma_y=100 * measured.sigma_y)
    data = measured_file(path, None, 0.5, range=[0, 200])
    both = torch.cat([data.train.sigma_y, data.test.sigma_y])
    torch.testing.assert_close(both, measured.sigma_y[:])


def test_patches_take_their_part_of_the_map(measured, tmp_path):
    data = measured_file(stored(tmp_path, measured), None, 0.2, patch=4)
    levels = {tuple(row.flatten().tolist()) for row in data.train.sigma_y}
    whole = measured.sigma_y[0, 0]
    corners = [whole[i : i + 4, j : j + 4].flatten() for i in (0, 4) for j in (0, 4)]
    assert levels == {tuple(c.tolist()) for c in corners}


def test_batches_parts_and_likelihoods_carry_it(measured, make_operator):
    index = torch.tensor([3, 1])
    assert torch.equal(measured.batch(index).sigma_y, measured.sigma_y[index])
    operator = make_operator("denoising", SHAPE, "sigma=0.4")
    likelihood = Likelihood.of(operator, measured)
    assert "local_noise" in likelihood.operator.capabilities
    assert "local_noise" not in operator.capabilities
    assert likelihood.is_shared
    floored = Likelihood(operator, measured.y, {}, measured.sigma_y - 0.1).with_floor(0.05)
    assert floored.sigma_y.min() > 0 and floored.sigma_y.max() == measured.sigma_y.max() - 0.1


def own(tmp_path, measured, *overrides):
    path = stored(tmp_path, measured)
    keys = ["data=measurements", f"data.path={path}", "operator=denoising", "operator.sigma=0.4"]
    return CellFolder(tmp_path / "runs", compose([*keys, *overrides]))


def test_who_takes_one_level_says_so_before_any_compute(measured, tmp_path, make_operator):
    refused = []
    operator = make_operator("denoising", SHAPE, "sigma=0.4").with_levels_of(measured.sigma_y)
    facts = capabilities.ProblemFacts("denoising", operator.capabilities, 0.4)
    for name, card in registry.readable("method").items():
        found = capabilities.refusal({**card, "name": name}, facts)
        if found is not None and found.code == "WHITE":
            refused.append(name)
    assert set(WHITE) <= set(refused) and not set(MAPS) & set(refused)
    record = run_cell(own(tmp_path, measured, "method=sure_score"), Progress())
    assert "SureScore needs one noise level an image" in record["status"]


@pytest.mark.parametrize("name", ["ddrm", "deepinv"])
def test_samplers_of_one_level_are_refused_before_any_compute(
    measured, tmp_path, make_operator, name
):
    with pytest.raises(UserError, match="takes one noise level an image") as raised:
        Cell(own(tmp_path, measured, "method=naive", f"posterior={name}"))
    assert "\n" not in str(raised.value)
    sampler = cleanprior.posterior(name)
    likelihood = Likelihood.of(make_operator("denoising", SHAPE, "sigma=0.4"), measured)
    with pytest.raises(UserError, match="takes one noise level an image"):
        sampler(lambda x, sigma: x, likelihood, torch.Generator().manual_seed(0))


def test_a_need_that_came_later_is_no_part_of_a_cell():
    config = compose(["method=gsure"])
    assert "WHITE" in config["method"]["needs"]
    before = {**config["method"], "needs": ["SVD", "GAUSS", "COVER"]}
    same = {**config, "method": before}
    assert Identity(config).training == Identity(same).training
    assert Identity(config).evaluation == Identity(same).evaluation


TINY = [
    "training.budget=128",
    "training.batch=16",
    "evaluation.samples=2",
    "evaluation.test_images=4",
    "evaluation.draws=2",
    "evaluation.sampling_seeds=[0]",
    "posterior.steps=3",
    "sampler.steps=3",
]


@pytest.mark.parametrize(
    "keys",
    [
        [
            "method=em_mmps",
            "method.resume_rounds=1",
            "method.narrow_rounds=0",
            "method.gaussian=dense",
        ],
        [
            "method=em_mmps",
            "method.resume_rounds=1",
            "method.narrow_rounds=0",
            "method.gaussian=low_rank",
        ],
        ["method=flowdiff", "method.flow=conv", "method.rank=2"],
        ["method=ambient_gan"],
    ],
)
def test_methods_that_take_maps_train_on_them(measured, tmp_path, keys):
    record = run_cell(own(tmp_path, measured, *keys, *TINY), Progress())
    assert record["status"] == "done"
