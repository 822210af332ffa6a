"""Grids show pixels: enlarged by whole factors, reduced by means, never interpolated."""

import io

import numpy as np
import pytest
from cleanprior.benchmarks.figures import tiles
from cleanprior.benchmarks.figures.grids import WIDTH, Strip, grid
from cleanprior.benchmarks.figures.tiles import View
from PIL import Image

from cleanprior import rendering


def noise(n, c, h, w, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (n, c, h, w)).astype(np.float32)


def opened(strips, title="a title"):
    view = View.of(np.concatenate([s.images for s in strips]))
    return np.asarray(Image.open(io.BytesIO(grid(strips, view, title))))


@pytest.mark.parametrize(
    ("side", "factor", "smaller"),
    [(8, 12, 1), (28, 3, 1), (64, 1, 1), (160, 1, 1), (161, 1, 2), (320, 1, 2), (1024, 1, 7)],
)
def test_sizes_are_whole_factors(side, factor, smaller):
    assert tiles.enlargement(side, side // 2) == factor
    assert tiles.reduction(side // 2, side) == smaller


def test_a_small_image_is_in_the_grid_pixel_by_pixel():
    image = noise(3, 1, 8, 8)
    picture = opened([Strip("digits", image)])
    wanted = np.round((image[0, 0] + 1) / 2 * 255).astype(np.uint8).repeat(12, 0).repeat(12, 1)
    places = np.argwhere((picture[..., 0] == wanted[0, 0]) & (picture[..., 1] == wanted[0, 0]))
    assert any(np.array_equal(picture[y : y + 96, x : x + 96, 0], wanted) for y, x in places)


def test_a_large_image_is_reduced_by_means_and_does_not_alias():
    lines = np.ones((1, 1, 320, 320), np.float32)
    lines[..., ::2] = -1  # every second column: thinning would leave white or black
    small = tiles.reduced(View(1).colours(lines))
    assert small.shape == (1, 160, 160, 3) and set(np.unique(small)) <= {127, 128}
    image = noise(1, 3, 325, 321)
    small = tiles.reduced(View(3).colours(image))
    assert small.shape == (1, 109, 107, 3)
    square = (image[0, :, :3, :3].mean((1, 2)) + 1) / 2 * 255
    assert np.abs(small[0, 0, 0] - square).max() <= 0.51


@pytest.mark.parametrize("shape", [(8, 8), (64, 64), (320, 320), (40, 700), (3, 2000), (1, 1)])
def test_a_grid_is_as_wide_as_a_page_can_show(shape):
    picture = opened([Strip("a", noise(10, 1, *shape)), Strip("b" * 300, noise(10, 1, *shape))])
    assert WIDTH <= picture.shape[1] <= WIDTH + 20 and picture.shape[0] < 1600


def test_complex_images_are_magnitudes_on_one_scale():
    full = noise(4, 2, 8, 8)
    view = View.of(full)
    bright, dim = view.colours(full), view.colours(full / 2)
    kept = bright < 1
    assert np.allclose(dim[kept], bright[kept] / 2, atol=1e-6)  # not stretched to its own range
    assert "magnitude" in view.said
    assert np.array_equal(bright[..., 0], bright[..., 2])


def test_more_channels_show_the_first_three_and_say_so():
    image = noise(2, 5, 8, 8)
    view = View.of(image)
    assert np.allclose(view.colours(image), (image[:, :3].transpose(0, 2, 3, 1) + 1) / 2, atol=1e-6)
    assert view.said == "channels 1 to 3 of 5 as red, green, blue"
    assert View.of(image[:, :3]).said == View.of(image[:, :1]).said == ""


def test_what_was_hidden_has_a_colour_and_what_is_no_number_is_black():
    image = noise(1, 1, 4, 4)
    image[0, 0, 0, 0] = np.nan
    seen = np.ones((1, 1, 4, 4), np.float32)
    seen[0, 0, 1] = 0
    shown = View(1).colours(image, seen)
    assert np.allclose(shown[0, 1], tiles.HIDDEN) and np.all(shown[0, 0, 0] == 0)


def test_small_pictures_are_lossless_and_large_ones_are_light():
    small = tiles.side_by_side(tiles.reduced(View(1).colours(noise(10, 1, 28, 28))), 0)
    assert tiles.uri(small).startswith("data:image/png;")
    y, x = np.mgrid[0:160, 0:160] / 20
    photo = np.stack([np.sin(x + i) * np.cos(y) for i in range(10)])[:, None].astype(np.float32)
    large = tiles.uri(tiles.side_by_side(tiles.reduced(View(1).colours(photo)), 0))
    assert large.startswith("data:image/jpeg;") and len(large) < 150_000


def test_a_phase_is_a_hue_and_no_signal_has_none():
    turns = np.array([0, 1 / 3, 2 / 3, 1 / 2, 1 / 12])
    x = np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)]).astype(np.float32)
    colours = rendering.phases(x.T.reshape(5, 2, 1, 1), peak=1.0)[:, 0, 0]
    circle = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1], [1, 0.5, 0]]
    np.testing.assert_allclose(colours, circle, atol=1e-5)
    faint = rendering.phases(0.25 * x.T.reshape(5, 2, 1, 1), peak=1.0)[:, 0, 0]
    np.testing.assert_allclose(faint, np.array(circle) / 2, atol=1e-5)
    assert not rendering.phases(np.full((1, 2, 1, 1), np.nan, np.float32)).any()


def test_complex_images_are_shown_by_magnitude_and_phase():
    x = np.zeros((3, 2, 8, 8), np.float32)
    x[:, 1] = -0.5  # a quarter of a turn back
    picture = np.asarray(Image.open(io.BytesIO(rendering.grid(x))))
    half = picture.shape[0] // 2
    assert (picture[half // 2, 30] == 255).all()
    assert picture[half + half // 2, 30].tolist() == [128, 0, 255]
    rows = tiles.under_each_other([np.zeros((3, 4, 4, 3), np.uint8)] * 2, gap=2)
    assert rows.shape == (10, 16, 3)
    assert (rows[4:6] == 255).all()
