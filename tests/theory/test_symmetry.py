"""Declared symmetries: what they show of a fixed operator, and EM that uses them."""

import pytest
import torch

from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.gaussian.dense import GaussianPrior
from cleanprior.operators import Likelihood
from cleanprior.operators.symmetry import DENSE, LEAST, least_shown, transformed
from cleanprior.seeding import generator_for
from cleanprior.testing.parts import make_operator

LINE = (1, 1, 16)


def fixed_mask(shape, p=0.5, seed=3):
    """Return an operator whose mask is the same for all images."""
    operator = make_operator("inpainting", shape, f"p={p}")
    one = operator.draw(1, generator_for(seed, "mask"))
    return operator.with_law_of({k: v.repeat(8, 1, 1, 1) for k, v in one.items()})


def elements(size, symmetries):
    """Return transforms of an image with different pixels, many of them."""
    image = torch.arange(float(size[0] * size[1])).reshape(1, 1, *size)
    many = image.expand(400, -1, -1, -1)
    found = transformed(many, symmetries, generator_for(0, "g"))
    return image[0], {tuple(x.flatten().tolist()) for x in found}


@pytest.mark.parametrize(
    ("symmetries", "count"),
    [((), 1), (("flip",), 2), (("turn",), 4), (("shift",), 16), (("flip", "turn"), 8)],
)
def test_transforms_are_the_group_and_each_comes(symmetries, count):
    image, found = elements((4, 4), symmetries)
    assert len(found) == count
    expected = {tuple(image.flatten().tolist())}
    for turn in range(4 if "turn" in symmetries else 1):
        for down in range(4 if "shift" in symmetries else 1):
            for right in range(4 if "shift" in symmetries else 1):
                moved = torch.rot90(image, turn, (1, 2)).roll((down, right), (1, 2))
                expected.add(tuple(moved.flatten().tolist()))
                if "flip" in symmetries:
                    expected.add(tuple(moved.flip(2).flatten().tolist()))
    assert found == expected


def test_each_image_has_its_own_element_and_channels_move_together():
    x = torch.randn(64, 3, 5, 5, generator=generator_for(0, "x"))
    moved = transformed(x, ("shift", "flip"), generator_for(1, "g"))
    again = transformed(x, ("shift", "flip"), generator_for(1, "g"))
    assert torch.equal(moved, again) and not torch.equal(moved, x)
    torch.testing.assert_close(moved.flatten(2).sort(2).values, x.flatten(2).sort(2).values)
    same = x[:, :1].expand(-1, 3, -1, -1)
    assert (transformed(same, ("shift",), generator_for(2, "g")).diff(dim=1) == 0).all()


def test_turns_need_square_images():
    x = torch.zeros(2, 1, 4, 6)
    with pytest.raises(ValueError, match="turn needs square images, these have 4x6"):
        transformed(x, ("turn",), generator_for(0, "g"))
    assert transformed(x, ("flip", "shift"), generator_for(0, "g")).shape == x.shape


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 6), (1, 40, 40)])
def test_a_fixed_mask_shows_everything_with_shifts_and_not_alone(shape):
    operator = fixed_mask(shape)
    assert (shape[0] * shape[1] * shape[2] > DENSE) == (shape == (1, 40, 40))
    assert least_shown(operator, ()) < LEAST < least_shown(operator, ("shift",))


def test_a_blur_commutes_with_shifts_and_gains_nothing():
    operator = make_operator("blur", (1, 8, 8), "blur_std=3.0", "kernel_size=7")
    alone = least_shown(operator, ())
    assert alone < LEAST
    assert least_shown(operator, ("shift",)) == pytest.approx(alone, abs=1e-5)


def em(operator, *overrides):
    config = compose(["method=em_mmps", "operator=inpainting", *overrides])
    method = build(config["method"])
    trainer = build(config["training"])
    return method, trainer.problem(operator, config)


def test_what_symmetries_do_not_show_is_refused_and_what_they_do_is_no_null():
    mask = fixed_mask((1, 8, 8))
    plain, problem = em(mask)
    assert "null" in [w.code for w in plain.warnings(problem)]
    declared, problem = em(mask, "method.invariance=[shift]")
    assert declared.supports(problem) is None
    assert [w.code for w in declared.warnings(problem)] == ["floor", "invariant"]
    blurred, problem = em(
        make_operator("blur", (1, 8, 8), "blur_std=3.0", "kernel_size=7"),
        "method.invariance=[shift]",
    )
    assert "smallest eigenvalue" in blurred.supports(problem)
    turned, problem = em(fixed_mask((1, 4, 8)), "method.invariance=[turn]")
    assert "needs square images" in turned.supports(problem)


def spectrum(covariance):
    """Return the eigenvalues of the circulant part of a covariance."""
    lags = torch.stack([covariance.roll((-k, -k), (0, 1))[0] for k in range(len(covariance))])
    return torch.fft.fft(lags.mean(0)).real


@pytest.mark.parametrize("symmetries", [("shift",), ()])
def test_em_recovers_an_invariant_law_from_one_fixed_mask_only_with_its_symmetry(symmetries):
    """Exact E-steps, and for the network what it would learn: the moments of what it is given."""
    frequencies = torch.fft.fftfreq(16, dtype=torch.float64)
    true = 0.3 / (1 + 10 * frequencies**2)
    basis = torch.fft.fft(torch.eye(16, dtype=torch.complex128), norm="ortho")
    covariance = (basis.conj().T @ torch.diag(true.to(torch.complex128)) @ basis).real
    noise = torch.randn(4000, 16, generator=generator_for(0, "x"), dtype=torch.float64)
    x = (noise @ torch.linalg.cholesky(covariance).T).float().reshape(-1, *LINE)
    operator = fixed_mask(LINE)
    operator.sigma = 0.05
    data = Measurements.draw(x, operator, 0, "train")
    likelihood = Likelihood.of(operator, data)
    found = 0.2 * torch.eye(16, dtype=torch.float64)
    for k in range(50):
        prior = GaussianPrior(torch.zeros(16, dtype=torch.float64), found, LINE)
        drawn = prior.draw(likelihood, generator_for(k, "draw"))
        moved = transformed(drawn, symmetries, generator_for(k, "group"))
        flat = moved.flatten(1).double()
        found = flat.T @ flat / len(flat)
    error = ((spectrum(found) - spectrum(covariance)).abs() / spectrum(covariance)).mean()
    assert (error < 0.1) == (symmetries == ("shift",)), error


def test_an_m_step_trains_on_transforms_of_its_restorations(monkeypatch):
    from cleanprior.methods.em import method as em_module

    seen = []
    monkeypatch.setattr(em_module, "denoising_loss", lambda d, x, g: seen.append(x) or x.sum())
    x = torch.randn(32, 1, 8, 8, generator=generator_for(0, "x"))
    data = Measurements.draw(x, make_operator("inpainting", (1, 8, 8), "p=0.5"), 0, "train")
    batch = em_module.Images(x, data, torch.arange(32)).batch(torch.arange(32))
    for overrides in ([], ["method.invariance=[shift,flip]"]):
        method, _ = em(make_operator("inpainting", (1, 8, 8), "p=0.5"), *overrides)
        method.denoiser = None
        method.loss(batch, generator_for(0, "loss"), "denoiser")
    assert torch.equal(seen[0], x)
    torch.testing.assert_close(seen[1], transformed(x, ("shift", "flip"), generator_for(0, "loss")))
    assert not torch.equal(seen[1], x)
