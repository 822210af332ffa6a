"""Colours that everybody can tell apart, one look a method."""

from itertools import combinations

import numpy as np
import pytest
from cleanprior.benchmarks.figures.palette import COLOURS, PLACES, look, looks

from cleanprior.config import registry

# Machado et al. (2009), severity 1, on linear RGB.
SEEN = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def lab(colour: str, eyes: str) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    x = XYZ @ np.clip(SEEN[eyes] @ linear, 0, 1) / XYZ.sum(1)
    f = np.where(x > (6 / 29) ** 3, np.cbrt(x), x / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(colours: tuple[str, ...], eyes: str) -> float:
    pairs = combinations([lab(c, eyes) for c in colours], 2)
    return min(float(np.linalg.norm(a - b)) for a, b in pairs)


def test_the_conversion_knows_black_white_and_red():
    assert np.allclose(lab("#ffffff", "normal"), [100, 0, 0], atol=0.05)
    assert np.allclose(lab("#ff0000", "normal"), [53.24, 80.09, 67.20], atol=0.05)
    # What stood here before: em and oracle of the default table.
    assert nearest(("#2f9e8f", "#c0568f"), "deuteranopia") < 20


@pytest.mark.parametrize(
    ("eyes", "least"), [("normal", 50), ("protanopia", 24), ("deuteranopia", 24)]
)
def test_colours_are_apart_for_every_eye(eyes, least):
    assert nearest(COLOURS, eyes) >= least
    assert all(np.linalg.norm(lab(c, eyes) - [100, 0, 0]) > 24 for c in COLOURS)  # on paper


def test_forty_looks_differ_and_the_first_ten_in_colour_and_marker():
    found = [look(i) for i in range(40)]
    assert len(set(found)) == 40
    for part in ("colour", "marker"):
        assert len({getattr(x, part) for x in found[:10]}) == 10
    assert len({(x.colour, x.marker) for x in found[:20]}) == 20


def test_a_method_looks_the_same_in_every_table():
    both = looks(["naive", "mine", "em"])
    assert looks(["em"])["em"] == both["em"] and looks(["naive", "em"])["naive"] == both["naive"]
    assert registry.methods().keys() - registry.presets().keys() <= set(PLACES), (
        "a method of the package has its own look"
    )
    names = [*PLACES, *(f"row {i}" for i in range(30))]
    assert len(set(looks(names).values())) == len(names)
    assert list(looks(names)) == names
