"""Counted photons: noise of one level after the root, an unbiased way back, and who may use it."""

import instruments
import numpy as np
import pytest

from cleanprior.data import Measurements, measured_file
from cleanprior.data.photons import Photons
from cleanprior.data.reading import Reading
from cleanprior.data.results import Target, original_of
from cleanprior.errors import UserError
from cleanprior.inspection import inspect

DETECTOR = Photons(2.5, 100.0, 4.0)


def counted(mean, n, seed=0):
    """Stored values of a detector whose pixels have the mean number of photons ``mean``."""
    rng = np.random.default_rng(seed)
    shape = (n, *np.shape(mean))
    return 2.5 * rng.poisson(mean, shape) + 100 + 4 * rng.normal(size=shape)


@pytest.mark.parametrize("photons", [4, 10, 50, 500])
def test_the_root_has_noise_of_one_level_and_its_inverse_no_bias(photons):
    d = DETECTOR.forward(counted(float(photons), 200_000))
    assert d.std() == pytest.approx(1, abs=0.04)
    back = DETECTOR.inverse(np.array([d.mean()]))[0]
    # Within 1 % of the photons' number, and four standard errors.
    error = 2.5 * (0.01 * photons + 4 * np.sqrt((photons + (4 / 2.5) ** 2) / 200_000))
    assert back == pytest.approx(2.5 * photons + 100, abs=error)


def test_without_photons_the_inverse_stays_in_its_range():
    assert DETECTOR.inverse(np.array([-5.0, 0.0, 1.0])).tolist() == [100.0] * 3


def test_measurements_have_one_level_and_restorations_the_files_units(tmp_path, make_operator):
    t = np.linspace(0, 3, 24)
    mean = 20 + 180 * (np.sin(t)[:, None] * np.cos(t / 2)[None])
    path = instruments.tiff(tmp_path / "x.tif", counted(mean, 40).astype(np.float32))
    options = {"range": (100.0, 700.0), "photons": [2.5, 100.0, 4.0]}
    data = measured_file(str(path), None, 0.2, **options)
    level = data.train.sigma_y[0].item()
    low, high = DETECTOR.forward(np.array([100.0, 700.0]))
    assert level == pytest.approx(2 / (high - low))
    spread = data.train.y.std(0)
    assert (spread.mean() / level).item() == pytest.approx(1, abs=0.05)
    assert (spread.max() / spread.min()).item() < 3  # of the counts: 4.6 by their means alone
    sigma = f"sigma={level:.6g}"
    data.check(make_operator("denoising", (1, 24, 24), sigma))
    with pytest.raises(UserError, match="data.photons takes roots of y, and blur mixes pixels"):
        data.check(make_operator("blur", (1, 24, 24), sigma))
    reading = Reading(**options)
    y = Measurements.load(path, reading=reading).y.numpy()
    target = Target.of(tmp_path / "out.tif", original_of(path, None, reading))
    restored = target.units(y.mean(0, keepdims=True))[0, 0]
    assert np.abs(restored / (2.5 * mean + 100) - 1).max() < 0.05


def test_inspect_finds_the_gain_and_its_advice_explains_the_noise(tmp_path):
    t = np.linspace(0, 3, 48)
    mean = 20 + 180 * np.sin(t)[:, None] * np.cos(t / 2)[None]
    path = instruments.tiff(tmp_path / "x.tif", counted(mean, 40).astype(np.float32))
    told = " ".join(inspect(path, Reading(), None).sections["noise"])
    advised = [float(v) for v in told.partition("data.photons=[")[2].partition("]")[0].split(",")]
    assert advised[0] == pytest.approx(2.5, rel=0.1)
    found = inspect(path, Reading(range=(90, 700), photons=advised), None)
    share = float(found.sections["noise"][0].split(" times what")[0])
    assert share == pytest.approx(1, abs=0.05)
    assert "data.photons=" in found.commands[0]


def test_what_does_not_belong_together_is_refused():
    for options, message in (
        ({"photons": [1, 2, 3]}, "data.photons needs data.range"),
        ({"photons": [1, 2, 3], "range": (0, 9), "sigma_y": 1}, "leave data.sigma_y out"),
        ({"photons": [0, 2, 3], "range": (0, 9)}, r"allowed: \[GAIN,OFFSET,READ\]"),
        ({"photons": [1, 2], "range": (0, 9)}, r"allowed: \[GAIN,OFFSET,READ\]"),
    ):
        with pytest.raises(UserError, match=message):
            Reading(**options)
