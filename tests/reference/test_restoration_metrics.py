"""PSNR after a contrast stretch, the noise's own residual, LPIPS against its package."""

import hashlib
import math

import lpips
import pytest
import torch

from cleanprior.data import Measurements
from cleanprior.evaluation.metrics import perceptual
from cleanprior.evaluation.metrics.networks import Unavailable
from cleanprior.evaluation.metrics.perceptual import Lpips, refusal
from cleanprior.evaluation.metrics.restoration import (
    consistency,
    expected_consistency,
    psnr,
    psnr_minmax,
)
from cleanprior.operators.likelihood import Likelihood


def images(n=4, channels=1, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, channels, side, side, generator=generator) * 2 - 1


def test_psnr_minmax_forgets_the_contrast_of_either_image_and_psnr_does_not():
    truth = images()
    x = (truth + 0.2 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))).clamp(
        -1, 1
    )
    found = psnr_minmax(x, truth)
    assert torch.allclose(psnr_minmax(0.5 * x + 0.1, truth), found, atol=0.02)
    assert torch.allclose(psnr_minmax(x, 0.25 * truth - 0.3), found, atol=0.02)
    assert (psnr(0.5 * x + 0.1, truth) - psnr(x, truth)).abs().min() > 0.2
    # Only positive maps: a negative is another image.
    assert (psnr_minmax(-x, truth) - found).abs().min() > 1


def test_psnr_minmax_is_the_closed_form_on_two_levels():
    """One of 64 pixels of a black-and-white image is mid-grey, level 128 of 255."""
    truth = torch.ones(1, 1, 8, 8)
    truth[..., :4] = -1
    x = truth.clone()
    x[0, 0, 0, 0] = 0.004
    expected = -10 * math.log10((128 / 255) ** 2 / 64)
    assert psnr_minmax(x, truth).item() == pytest.approx(expected, abs=1e-9)


def test_psnr_minmax_stretches_each_image_by_itself():
    x, truth = images(), images(seed=3)
    x[0] *= 0.1
    one = torch.stack([psnr_minmax(a[None], b[None])[0] for a, b in zip(x, truth, strict=True)])
    assert torch.equal(psnr_minmax(x, truth), one)


def test_psnr_minmax_of_constant_images_is_finite():
    assert torch.isfinite(psnr_minmax(torch.zeros(2, 1, 4, 4), images(2, side=4))).all()


def test_expected_consistency_is_the_mean_of_the_truth(make_operator):
    """4,000 measurements of 4x4 images: standard error about 0.3 %; sigma_y itself is 3 % off."""
    operator = make_operator("inpainting", (1, 4, 4), "sigma=0.3")
    x = images(4000, side=4)
    data = Measurements.draw(x, operator, 0, "train")
    found = consistency(x, Likelihood.of(operator, data))
    expected = expected_consistency(Likelihood.of(operator, data))
    assert found.mean().item() == pytest.approx(expected.mean().item(), rel=0.01)
    assert expected.mean().item() < 0.985 * 0.3


def test_expected_consistency_of_noise_free_measurements_is_zero(make_operator):
    operator = make_operator("inpainting", (1, 8, 8))
    data = Measurements.draw(images(), operator, 0, "train")
    assert expected_consistency(Likelihood.of(operator, data)).max() == 0


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)


@pytest.mark.parametrize("channels", [1, 3])
def test_lpips_equals_the_package(network, channels):
    x, truth = images(70, channels, 32), images(70, channels, 32, seed=1)
    found = Lpips(network)(1.5 * x, truth)
    for i in (0, 65):
        a = (1.5 * x[i : i + 1]).clamp(-1, 1).repeat(1, 3 // channels, 1, 1)
        expected = network(a, truth[i : i + 1].repeat(1, 3 // channels, 1, 1)).item()
        assert found[i].item() == pytest.approx(expected, rel=1e-6)
    assert Lpips(network)(truth, truth).abs().max() < 1e-6


def test_lpips_without_weights_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(Unavailable, match=r"'alexnet-owt-7be5be79.pth' is not .*download=true"):
        Lpips.load(is_downloading=False)


def test_lpips_reads_the_weights_that_are_there(tmp_path, monkeypatch, network):
    """Other weights of AlexNet, under a name that promises their hash: not random ones."""
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    weights = {
        f"features.{number}.{key}": value
        for cut in network.net.children()
        for number, layer in cut.named_children()
        for key, value in layer.state_dict().items()
    }
    assert len(weights) == 10
    torch.save(weights, folder / "x")
    digest = hashlib.sha256((folder / "x").read_bytes()).hexdigest()[:8]
    (folder / "x").rename(folder / f"alexnet-{digest}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(perceptual, "ALEXNET", f"https://host/alexnet-{digest}.pth")
    x, truth = images(2, 3, 32), images(2, 3, 32, seed=1)
    loaded = Lpips.load(is_downloading=False)
    assert torch.equal(loaded(x, truth), Lpips(network)(x, truth))


def test_lpips_refuses_damaged_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth").write_bytes(b"no weights")
    with pytest.raises(Unavailable, match="damaged"):
        Lpips.load(is_downloading=False)


def test_weights_that_cannot_be_fetched_are_a_reason(tmp_path, monkeypatch):
    def refuse(url, path, progress):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(Unavailable, match="LPIPS: .* cannot be fetched: no network"):
        Lpips.load(is_downloading=True)


def test_lpips_says_which_images_it_cannot_compare():
    assert refusal((3, 32, 32)) is None
    assert "31 pixels" in refusal((1, 8, 8))
    assert "2 channels" in refusal((2, 64, 64))
