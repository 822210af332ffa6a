"""The protocol: every value is documented, every absent one has a reason, draws are its own."""

import dataclasses
import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cleanprior.config import build, compose
from cleanprior.data import CleanData, Measurements
from cleanprior.data.datasets import digits
from cleanprior.diffusion.posterior import Draw
from cleanprior.errors import UserError
from cleanprior.evaluation.metrics import features
from cleanprior.evaluation.metrics.features import Classifier
from cleanprior.evaluation.routes import routes_of, shared_route
from cleanprior.metric_names import METRICS, describe, in_order, is_metric
from cleanprior.operators.base import take
from cleanprior.progress import Progress
from cleanprior.seeding import scoped_rng
from cleanprior.testing.training import assert_same
from cleanprior.training import Route
from cleanprior.training.warning import codes

SMALL = {"test_images": 12, "draws": 3, "samples": 60, "sampling_seeds": [0, 1], "grid": 4}


@pytest.fixture(scope="module")
def prior(make_operator):
    """Any denoiser will do: one without training."""
    from cleanprior.prior import Prior
    from cleanprior.training import Problem

    config = compose(["method=naive"])
    backbone = {k: v for k, v in config["backbone"].items() if k not in ("name", "about")}
    backbone["hid_channels"] = [8, 16]
    operator = make_operator("inpainting", (1, 8, 8))
    with scoped_rng(0):
        denoiser = Problem(operator, "inpainting", backbone, 0.5, 0.0).denoiser()
    return Prior(denoiser, (1, 8, 8), backbone)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.getbasetemp()


@pytest.fixture
def evaluate(digits_data, make_operator, prior, cache):
    def run(
        ways=(),
        data=digits_data,
        has_prior=True,
        has_trained=True,
        sigma=0.0,
        has_gaps=False,
        **changes,
    ):
        config = compose(["method=naive", "posterior.steps=2", "sampler.steps=2"])
        protocol = build(config["evaluation"] | SMALL | changes)
        operator = make_operator("inpainting", (1, 8, 8), f"sigma={sigma}")
        trained = Measurements.draw(digits_data.train, operator, 0, "train")
        parts = build(config["posterior"]), operator, build(config["sampler"])
        shared = shared_route("mmps", prior, *parts)
        rows, pictures, notes = protocol.evaluate(
            routes_of(shared if has_prior else None, list(ways), has_gaps),
            data,
            Measurements.draw(digits_data.test, operator, 0, "test"),
            operator,
            cache,
            Progress(),
            trained=trained if has_trained else None,
        )
        return rows, pictures, notes

    return run


def test_every_value_is_a_number_with_a_name_and_every_absent_one_has_a_reason(evaluate):
    (row,), pictures, notes = evaluate(samples=260)
    for key, value in row.metrics.items():
        assert type(value) is float, key
        assert describe(key)
        assert key not in row.missing
    names = {f"{k}_classifier": k for k in ("inception_score", "inception_score_std")}
    found = {names.get(k, k) for k in row.metrics}
    assert set(METRICS) - found == {"lpips", "lpips_point"}
    assert "31 pixels" in row.missing["lpips"]
    kinds = {"psnr", "psnr_minmax", "ssim", "consistency"}
    assert set(row.per_image) == kinds | {f"{k}_point" for k in kinds}
    assert all(len(values) == 12 for values in row.per_image.values())
    assert len(row.curves["rank_histogram"]) == 4
    assert row.seconds.keys() == {"restoration", "sampling"}
    assert (row.way, row.draws, row.samples) == ("mmps: one draw, mean of 3", 3, 260)
    assert len(row.curves["fd_by_seed"]) == len(row.curves["proximal_fd_by_seed"]) == 2
    assert row.metrics["fd"] == pytest.approx(sum(row.curves["fd_by_seed"]) / 2)
    assert notes["proximal_floor"] < row.metrics["proximal_fd"]
    assert notes["proximal_floor"] < notes["proximal_ceiling"]
    assert notes["fd_exact"] < notes["test_split"]["fd"] == notes["fd_train_test"]
    assert notes["fd_train_test"] < row.metrics["fd"]
    assert pictures["mean.mmps: one draw, mean of 3"].shape == (4, 1, 8, 8)
    pairs = pictures["memorised.sample"], pictures["memorised.neighbour"]
    assert pairs[0].shape == pairs[1].shape == (4, 1, 8, 8)


def test_unknown_metrics_have_no_description():
    with pytest.raises(KeyError):
        describe("fdx")
    assert not any(is_metric(k) for k in ("is_own", "method", "fdx", "seed"))
    assert is_metric("inception_score_classifier")
    assert "efficientnet" in describe("kid_se_efficientnet")
    assert describe("kid_se_efficientnet").startswith(METRICS["kid_se"])


def test_metrics_stand_in_one_order_whatever_was_measured_first() -> None:
    keys = [
        "kid_se",
        "method",
        "fd_pixels",
        "spread_ratio",
        "kid",
        "psnr",
        "fd",
        "kid_dinov2",
    ]
    ordered = ["psnr", "spread_ratio", "fd", "fd_pixels", "kid", "kid_dinov2", "kid_se"]
    assert in_order(keys) == in_order(reversed(keys)) == ordered


def test_another_evaluation_is_the_same_and_another_seed_is_not(evaluate):
    first, second = evaluate()[0][0], evaluate()[0][0]
    assert first.metrics == second.metrics
    other = evaluate(seed=1)[0][0]
    assert other.metrics["spread_ratio"] != first.metrics["spread_ratio"]
    assert other.metrics["fd"] == first.metrics["fd"]
    other = evaluate(sampling_seeds=[2, 3])[0][0]
    for key in ("fd", "proximal_fd", "kid"):
        assert other.metrics[key] != first.metrics[key]
    # A sampling seed is what its own number says, whatever stands beside it.
    alone = evaluate(sampling_seeds=[1])[0][0]
    assert alone.metrics["fd"] == pytest.approx(first.curves["fd_by_seed"][1], rel=1e-4)
    assert "fd_std" not in alone.metrics


def test_more_draws_do_not_change_the_first(evaluate):
    several, one = evaluate()[0][0], evaluate(draws=1)[0][0]
    assert one.way == "mmps: one draw"
    for key in ("psnr", "ssim", "consistency"):
        assert one.per_image[key] == pytest.approx(several.per_image[key], abs=1e-3)
        assert "draws=1" in one.missing[f"{key}_point"]
    assert "no spread" in one.missing["spread_ratio"]


def test_restorations_and_samples_do_not_depend_on_the_chunk(evaluate):
    """Draws of several rounds share a chunk; only rounding may differ."""
    (first,), pictures, _ = evaluate()
    (second,), others, _ = evaluate(chunk=7)
    for key in ("restored", "mean", "samples"):
        name = f"{key}.{first.way}"
        assert torch.allclose(pictures[name], others[name], atol=1e-3), key
    assert second.metrics["psnr_point"] == pytest.approx(first.metrics["psnr_point"], abs=0.01)


def test_ways_that_know_the_posterior_are_calibrated_and_point_estimates_say_so(
    evaluate, digits_data
):
    """Around a centre, truth and draws alike: a way that draws as the truth was drawn."""
    centre = torch.zeros(1, 8, 8)

    def noise(generators, width):
        return torch.stack([width * torch.randn(1, 8, 8, generator=g) for g in generators])

    generator = torch.Generator().manual_seed(0)
    test = torch.stack(
        [centre + 0.3 * torch.randn(1, 8, 8, generator=generator) for _ in range(60)]
    )
    data = CleanData("noise", digits_data.train, test)

    def ways(width):
        return Route(f"width {width}", restore=lambda b, g: Draw(centre + noise(g, width), 1))

    point = Route("mean", restore=lambda b, g: Draw(0 * noise(g, 1), 1), kind="point")
    alike = Route("alike", restore=lambda b, g: Draw(0 * noise(g, 1), 1))
    rows, _, _ = evaluate(
        [ways(0.3), ways(0.15), point, alike],
        data=data,
        has_prior=False,
        test_images=40,
        draws=8,
    )
    calibrated, narrow, mean, constant = rows
    assert calibrated.metrics["spread_ratio"] == pytest.approx(1, abs=0.08)
    assert calibrated.metrics["coverage"] == pytest.approx(0.9, abs=0.03)
    assert narrow.metrics["spread_ratio"] < 0.6
    assert narrow.metrics["coverage"] < 0.7
    assert "all alike" in constant.missing["spread_ratio"]
    # Half of the error of a draw is its own; of the mean of 8 it is an eighth.
    gain = calibrated.metrics["psnr_point"] - calibrated.metrics["psnr"]
    assert gain == pytest.approx(10 * math.log10(2 / (1 + 1 / 8)), abs=0.3)
    # A point estimate stands with means only, and was asked for once.
    assert (mean.way, mean.draws) == ("mean: point estimate", 1)
    assert "psnr" not in mean.metrics and "psnr" not in mean.per_image
    assert mean.metrics["psnr_point"] > calibrated.metrics["psnr_point"]
    assert "no draw" in mean.missing["psnr"]
    assert "no spread" in mean.missing["spread_ratio"]


def test_a_way_is_handed_each_measurement_with_its_own_parameters(
    evaluate, digits_data, make_operator
):
    operator = make_operator("inpainting", (1, 8, 8))
    measured = Measurements.draw(digits_data.test, operator, 0, "test")
    batches, seeds = [], []

    def restore(batch, generators):
        batches.append(batch)
        seeds.extend(g.initial_seed() for g in generators)
        assert len(generators) == len(batch)
        rows = [0.01 * torch.randn(1, 8, 8, generator=g) for g in generators]
        return Draw(digits_data.test[batch.index] + torch.stack(rows), 1)

    (row,), _, _ = evaluate([Route("own", restore=restore)], has_prior=False, draws=8)
    # Every draw is compared with its own image, and no draw is made twice.
    assert row.metrics["psnr_point"] > 40
    # The mean of 8 draws around the truth itself is off by 1 / 8 of their variance.
    assert row.metrics["spread_ratio"] == pytest.approx((1 + 8) ** 0.5, rel=0.2)
    assert len(set(seeds)) == len(seeds) == 12 * 8
    for batch in batches:
        assert torch.equal(batch.y, measured.y[batch.index])
        expected = take(measured.params, batch.index)
        assert torch.equal(batch.params["mask"], expected["mask"])
    assert torch.cat([b.index for b in batches]).tolist() == list(range(12)) * 8


def test_further_features_are_further_columns(evaluate, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (row,), _, notes = evaluate(features=["pixels", "classifier", "inception"])
    assert {"fd", "kid", "fd_classifier", "recall_classifier", "inception_score_classifier"} <= set(
        row.metrics
    )
    assert row.metrics["fd"] < row.metrics["fd_classifier"]
    assert "download=true" in row.missing["fd_inception"]
    assert notes["test_split"].keys() >= {"fd", "fd_classifier"}
    (row,), _, notes = evaluate(features="inception")
    assert "fd" not in row.metrics
    assert "download=true" in row.missing["fd"]
    assert "features" not in notes


def test_a_network_that_never_met_a_whole_image_samples_by_its_own_way(evaluate):
    ways = [
        Route(sample=lambda n, g: torch.rand(n, 1, 8, 8, generator=g), samples_by="through a mask"),
        Route("one step", restore=lambda b, g: Draw(torch.zeros(len(b), 1, 8, 8), 1), kind="point"),
    ]
    shared, own, _ = evaluate(ways, has_gaps=True)[0]
    assert "psnr" in shared.metrics and "fd" not in shared.metrics
    assert "never trained on whole images" in shared.missing["generation"]
    assert own.way == "samples: through a mask" and "fd" in own.metrics
    # Without such a way, or without gaps, the shared sampler is asked.
    assert "fd" in evaluate(ways[1:], has_gaps=True)[0][0].metrics
    assert "fd" in evaluate(ways)[0][0].metrics


@pytest.mark.parametrize(
    ("name", "operator", "override", "code"),
    [
        ("ambient", "inpainting", "p=0.5", "shift"),
        ("ambient", "inpainting", "p=0.0", "shift"),  # corrupted further all the same
        ("masked_loss", "inpainting", "p=0.5", "shift"),
        ("masked_loss", "inpainting", "p=0.0", ""),
        ("naive", "inpainting", "p=0.5", "shift"),
        ("naive", "denoising", "sigma=0.3", ""),
        ("naive", "mri", "sigma=0.0", ""),
        ("oracle", "inpainting", "p=0.5", ""),
    ],
)
def test_methods_trained_with_gaps_say_so(
    make_operator, make_problem, name, operator, override, code
):
    method = build(compose([f"method={name}"])["method"])
    problem = make_problem(
        make_operator(operator, (2 if operator.startswith("mri") else 1, 8, 8), override)
    )
    assert codes(method.warnings(problem)) == code
    assert method.has_gaps(problem) == (code == "shift")


def test_samples_that_are_not_finite_have_no_value(evaluate):
    way = Route("own", sample=lambda n, g: torch.full((n, 1, 8, 8), torch.nan))
    (row,), _, _ = evaluate([way], has_prior=False)
    assert row.missing["generation"] == "samples are not finite"
    assert "fd" not in row.metrics


def test_copies_of_training_images_are_told_as_memorised(evaluate, digits_data):
    way = Route("own", sample=lambda n, g: digits_data.train[100 : 100 + n].clone())
    (row,), pictures, _ = evaluate([way], has_prior=False)
    assert row.metrics["memorised"] == 1
    assert row.metrics["memorised_ratio"] == 1
    assert torch.equal(pictures["memorised.sample"], pictures["memorised.neighbour"])


def test_without_training_measurements_there_is_no_proximal_distance(evaluate):
    (row,), _, notes = evaluate(has_trained=False)
    assert "proximal_fd" not in row.metrics
    assert row.missing["proximal_fd"]
    assert "proximal_floor" not in notes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"draws": 0}, "draws=0"),
        ({"samples": 1}, "samples=1"),
        ({"sampling_seeds": []}, "sampling_seeds"),
        ({"sampling_seeds": [1, 1]}, "different whole numbers"),
        ({"sampling_seeds": 3}, "sampling_seeds=3"),
        ({"sampling_seconds": -1}, "sampling_seconds=-1"),
        ({"kid_size": 0}, "kid_size"),
        ({"proximal_features": "classifier"}, "no clean image"),
        ({"proximal_features": "auto"}, "no clean image"),
        ({"manifold": 3}, "above neighbours"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        build(compose(["method=naive"])["evaluation"] | change)


def test_a_row_is_plain_values(evaluate):
    import json

    (row,), _, notes = evaluate()
    assert json.loads(json.dumps(row.to_json(), allow_nan=False)) == dataclasses.asdict(row)
    json.dumps(notes, allow_nan=False)


def test_cells_side_by_side_train_one_classifier(tmp_path, monkeypatch):
    trained = []
    train = Classifier._train

    def counted(*arguments):
        trained.append(1)
        time.sleep(0.1)  # the other one is asking
        train(*arguments)

    monkeypatch.setattr(features, "STEPS", 2)
    monkeypatch.setattr(Classifier, "_train", counted)
    data = digits()
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: Classifier.of(data, tmp_path), range(2)))
    assert len(trained) == 1 and found[0].key == found[1].key
    assert_same(found[0].net.state_dict(), found[1].net.state_dict())
