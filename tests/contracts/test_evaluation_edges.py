"""The protocol where images are few, tiny, constant or broken: a dash with a reason, no NaN."""

import json
import sys
import threading

import pytest
import torch

from cleanprior.config import build, compose
from cleanprior.data import CleanData, Measurements
from cleanprior.diffusion.posterior import Draw
from cleanprior.evaluation.marks import Leak
from cleanprior.evaluation.routes import alone
from cleanprior.operators.likelihood import Likelihood
from cleanprior.progress import Progress
from cleanprior.training import Route

KEYS = ("fd", "kid", "precision", "recall", "memorised", "proximal_fd")


@pytest.fixture
def judge(make_operator):
    """Evaluate own ways on images of any shape; records must be strict JSON."""

    def run(train, test, ways, operator="inpainting", override="p=0.5", **changes):
        shape = tuple(train.shape[1:])
        data = CleanData("toy", train, test)
        made = make_operator(operator, shape, override)
        given = {"test_images": 360, "draws": 3, "samples": 50, "sampling_seeds": [0], "grid": 2}
        config = compose(["method=naive", "sampler.steps=2"])
        protocol = build(config["evaluation"] | given | {"features": "pixels"} | changes)
        rows, pictures, notes = protocol.evaluate(
            ways,
            data,
            Measurements.draw(test, made, 0, "test"),
            made,
            None,
            Progress(),
            trained=Measurements.draw(train, made, 0, "train"),
        )
        json.dumps([[row.to_json() for row in rows], notes], allow_nan=False)
        return rows, pictures, notes

    return run


def images(n, *shape, seed=0):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def guess(shape, value=0.0, kind="point"):
    """A way that restores and samples noise around a value."""

    def restore(batch, generators):
        rows = [value + 0.1 * torch.randn(shape, generator=g) for g in generators]
        return Draw(torch.stack(rows), 1)

    def sample(n, generator):
        return value + 0.1 * torch.randn(n, *shape, generator=generator)

    return Route("guess", restore=restore, sample=sample, kind=kind)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 2), (3, 2, 5)])
def test_images_smaller_than_a_window_have_no_ssim_and_say_why(judge, shape):
    ways = [guess(shape), guess(shape, kind="draws")]
    rows, _, _ = judge(images(60, *shape), images(5, *shape, seed=1), ways)
    for row in rows:
        assert not any(key.startswith("ssim") for key in row.metrics)
        assert "window is 3x3" in row.missing["ssim_point"]
        assert "psnr_point" in row.metrics and "fd" in row.metrics


def test_constant_images_and_samples_have_singular_covariances_and_no_crash(judge):
    shape = (1, 8, 8)
    still = Route(
        "still",
        restore=lambda b, g: Draw(torch.zeros(len(b), *shape), 0),
        sample=lambda n, g: torch.ones(n, *shape),
    )
    (row,), _, notes = judge(torch.zeros(60, *shape), torch.zeros(5, *shape), [still])
    assert row.metrics["fd"] == pytest.approx(64)
    assert row.metrics["memorised_ratio"] >= 0
    assert "leak?" not in row.marks, "nothing is hidden in a data set of one image"
    assert notes["fd_exact"] == 0


def test_two_test_images_have_no_distance_of_their_split(judge):
    shape = (1, 8, 8)
    (row,), _, notes = judge(
        images(60, *shape), images(2, *shape, seed=1), [guess(shape, kind="draws")]
    )
    assert row.metrics["spread_ratio"] > 0 and row.metrics["fd"] > 0
    assert "2 images" in notes["test_split_missing"]
    assert not {"fd_random_splits", "fd_exact_test", "fd_train_test"} & notes.keys()


def test_few_samples_and_few_training_images_have_dashes_with_the_reason(judge):
    shape = (1, 8, 8)
    (row,), _, notes = judge(
        images(60, *shape), images(60, *shape, seed=1), [guess(shape)], samples=13
    )
    assert not any(
        key.startswith(("fd", "kid", "prec", "rec", "mem", "prox")) for key in row.metrics
    )
    for key in KEYS:
        assert row.missing[key] == "13 samples; a distance needs 50", key
    assert "fd_exact" not in notes and "fd_exact_test" in notes
    (row,), _, _ = judge(images(20, *shape), images(60, *shape, seed=1), [guess(shape)])
    for key in KEYS:
        assert row.missing[key].startswith(("the training split holds 20", "20 training")), key


def test_broken_restorations_are_counted_and_have_no_value(judge):
    shape = (1, 8, 8)

    def broken(batch, generators):
        x = torch.zeros(len(batch), *shape)
        x[0] = torch.nan
        return Draw(x, 1)

    train, test = images(60, *shape), images(4, *shape, seed=1)
    (row,), _, _ = judge(train, test, [Route("broken", restore=broken)])
    assert row.missing["restoration"] == "1 of 12 restorations are not finite"
    assert not any(key.startswith("psnr") for key in row.metrics)
    with pytest.raises(ValueError, match="returned restorations of shape"):
        judge(train, test, [Route("flat", restore=lambda b, g: Draw(torch.zeros(len(b), 64), 1))])
    with pytest.raises(ValueError, match="returned samples of shape"):
        judge(train, test, [Route(sample=lambda n, g: torch.zeros(3, *shape), samples_by="three")])


def test_what_leaves_the_range_is_marked(judge):
    shape = (1, 8, 8)
    train, test = images(60, *shape), images(4, *shape, seed=1)
    rows, _, _ = judge(train, test, [guess(shape), guess(shape, 3.0)])
    assert rows[0].marks == []
    assert rows[1].marks == ["range"]
    assert "samples leave" in rows[1].marked["range"]
    assert "restorations leave" in rows[1].marked["range"]


def smooth(n, seed):
    """Images of a few smooth patterns: hidden pixels can be told from seen ones, in part."""
    axis = torch.linspace(0, 3.14, 8)
    waves = torch.stack(
        [torch.outer(torch.cos(i * axis), torch.cos(j * axis)) for i in range(4) for j in range(4)]
    )
    generator = torch.Generator().manual_seed(seed)
    x = torch.einsum("nk,kij->nij", torch.randn(n, 16, generator=generator), waves) / 8
    return (x + 0.05 * torch.randn(n, 8, 8, generator=generator)).clamp(-1, 1)[:, None]


@pytest.mark.parametrize(
    ("operator", "override"),
    [("inpainting", "p=0.5"), ("denoising", "sigma=0.3"), ("downsampling", "sigma=0.0")],
)
def test_a_restoration_that_has_seen_the_truth_is_marked_and_the_best_one_is_not(
    judge, make_operator, operator, override
):
    train, test = smooth(300, 0), smooth(30, 1)
    made = make_operator(operator, (1, 8, 8), override)
    flat = train.flatten(1).double()
    mean, covariance = flat.mean(0), torch.cov(flat.T)

    def best(batch, generators):
        rows = []
        for j, A in enumerate(made.matrix(batch.params, len(batch))):
            inner = A @ covariance @ A.T + max(float(batch.sigma_y[j]), 1e-3) ** 2 * torch.eye(
                len(A)
            )
            gain = torch.linalg.solve(inner, A @ covariance).T
            rows.append(mean + gain @ (batch.y[j].flatten().double() - A @ mean))
        return Draw(torch.stack(rows).float().reshape(-1, 1, 8, 8), 1)

    thief = Route("thief", restore=lambda b, g: Draw(test[b.index] + 0.005, 1), kind="point")
    honest = Route("best", restore=best, kind="point")
    rows, _, notes = judge(train, test, [thief, honest], operator, override)
    assert rows[0].marks == ["leak?"]
    assert "truth reached the method" in rows[0].marked["leak?"]
    assert rows[1].marks == []
    error = 4 / 10 ** (rows[1].metrics["psnr_point"] / 10)
    assert error == pytest.approx(notes["least_error"], rel=0.4)


def test_copies_among_the_test_images_are_no_leak(judge):
    train = smooth(100, 0)
    finder = Route("finder", restore=lambda b, g: Draw(train[b.index], 1), kind="point")
    (row,), _, _ = judge(train, train[:20], [finder])
    assert row.metrics["psnr_point"] > 100
    assert row.marks == []


def test_what_determines_the_image_is_no_leak(judge):
    train, test = smooth(100, 0), smooth(10, 1)
    exact = Route("exact", restore=lambda b, g: Draw(b.y, 1), kind="point")
    (row,), _, notes = judge(train, test, [exact], "denoising", "sigma=0.0")
    assert row.marks == []
    assert notes["least_error"] < 1e-6


def test_large_images_have_no_bound(make_operator):
    x = torch.zeros(3, 1, 64, 64)
    operator = make_operator("denoising", (1, 64, 64))
    given = Likelihood.of(operator, Measurements.draw(x, operator, 0, "test"))
    assert Leak.of(x, x, given) is None


def spy(names, found):
    """Look for local variables of these names in every frame that a route can climb to."""
    frame = sys._getframe()
    while frame is not None:
        found.extend(name for name in names if name in frame.f_locals)
        self = frame.f_locals.get("self")
        found.extend(name for name in names if hasattr(self, name))
        frame = frame.f_back


def test_a_plug_in_that_climbs_the_frames_finds_no_truth(judge):
    shape = (1, 8, 8)
    found, depth = [], []
    names = (
        "truth",
        "clean",
        "data",
        "test",
        "train",
        "judge",
        "judge_samples",
        "measured",
        "cell",
    )

    def restore(batch, generators):
        spy(names, found)
        depth.append(threading.current_thread() is threading.main_thread())
        return Draw(torch.zeros(len(batch), *shape), 1)

    def sample(n, generator):
        spy(names, found)
        return torch.zeros(n, *shape)

    way = Route("spy", restore=restore, sample=sample)
    judge(images(60, *shape), images(4, *shape, seed=1), [way])
    assert depth == [False]
    assert found == []
    # The spy would find them on the stack of the protocol itself.
    truth = images(4, *shape)
    spy(names, found)
    assert "truth" in found and len(truth)


def test_errors_of_a_stack_of_its_own_arrive(judge):
    def fail():
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        alone(fail)


def test_large_images_get_fewer_samples_and_are_told(judge, monkeypatch):
    """Time is told by a clock that each image moves by a second."""
    from cleanprior.evaluation import routes

    now = [0.0]
    monkeypatch.setattr(routes, "clock", lambda: now[0])

    def sample(n, generator):
        now[0] += n
        return torch.zeros(n, 1, 33, 33)

    x = images(60, 1, 33, 33)
    way = Route(sample=sample, samples_by="slow")
    (row,), _, notes = judge(
        x, x[:2], [way], samples=400, sampling_seeds=[0, 1], sampling_seconds=450
    )
    assert row.samples == notes["samples"] == 200
    assert row.marks == ["fewer"]
    assert "200 samples of 2 sampling seeds, where 400" in row.marked["fewer"]
    (row,), _, _ = judge(x, x[:2], [way], samples=400, sampling_seeds=[0, 1], sampling_seconds=3)
    assert row.samples == 50 and len(row.curves["fd_by_seed"]) == 1
    (row,), _, _ = judge(x, x[:2], [way], samples=400, sampling_seconds=0)
    assert (row.samples, row.marks) == (400, [])
    small = images(60, 1, 8, 8)
    way = Route(
        "",
        sample=lambda n, g: (now.__setitem__(0, now[0] + n), torch.zeros(n, 1, 8, 8))[1],
        samples_by="slow",
    )
    (row,), _, _ = judge(small, small[:2], [way], samples=400, sampling_seconds=1)
    assert (row.samples, row.marks) == (400, [])
