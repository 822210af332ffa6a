"""EM's options: hand-over, fixed scales, reuse, stop rules, what is logged, solvers."""

from types import SimpleNamespace

import pytest
import torch
from cleanprior.methods.em import EM
from cleanprior.methods.em.steps import (
    drift,
    fit_of,
    followed_covariance,
    has_stopped,
    stretched,
    union,
)

from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.diffusion.posterior import DPS, MMPS
from cleanprior.errors import UserError
from cleanprior.operators.likelihood import Likelihood
from cleanprior.seeding import generator_for
from cleanprior.training import Problem

QUICK = {
    "em": ["method.scales=[]", "method.posterior.steps=3"],
    "em_mmps": ["method.posterior.steps=3", "method.gaussian_iterations=1"],
}


def make_em(name: str, *overrides: str):
    return build(compose([f"method={name}", *QUICK[name], *overrides])["method"])


@pytest.fixture
def train(digits_data, make_operator, tiny_backbone):
    """Train on forty masked digits; returns the networks, the report and each round's set."""

    def run(method, steps=12, folder=None):
        operator = make_operator("inpainting", (1, 8, 8))
        data = Measurements.draw(digits_data.train[:40], operator, 0, "train")
        keys = [f"budget={8 * steps}", "batch=8", "precision=fp32", "checkpoint_seconds=0"]
        trainer = build(compose([f"training.{k}" for k in keys])["training"])
        problem = Problem(operator, "inpainting", tiny_backbone, 0.5, 0.0)
        clean = digits_data.train[40:60] if method.clean_images else None
        sets, begin = [], method.begin_round
        method.begin_round = lambda *a: sets.append(begin(*a)) or sets[-1]
        networks, report = trainer.fit(method, problem, data, 0, folder, clean)
        return networks, report, sets

    return run


# -- hand-over -------------------------------------------------------------------------------------


def test_a_picture_file_stretches_and_rounds_each_image() -> None:
    x = torch.rand(3, 1, 4, 4, generator=generator_for(0, "x")) * 0.5
    x[2] = 0.3
    out = stretched(x)
    assert out[:2].amin((1, 2, 3)).tolist() == [-1, -1]
    assert out[:2].amax((1, 2, 3)).tolist() == [1, 1]
    levels = (out + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    span = x[0].max() - x[0].min()
    exact = 2 * (x[0] - x[0].min()) / span - 1
    assert 0 < (out[0] - exact).abs().max() <= 1 / 255 + 1e-6
    assert (out[2] == -1).all(), "an image of one value has no contrast to stretch"


@pytest.mark.parametrize("handoff", ["float", "minmax_png"])
def test_the_m_step_is_given_what_the_handoff_says(train, monkeypatch, handoff: str) -> None:
    monkeypatch.setattr("cleanprior.methods.em.steps.PLATEAU", 1e9)
    keys = [f"method.handoff={handoff}", "method.stop=residual", "method.patience=1"]
    keys += ["method.resume_rounds=2", "method.narrow_rounds=0"]
    _, report, sets = train(make_em("em_mmps", *keys), steps=6)
    assert report.log["skipped"] == [2], "the hand-over of a round without E-step is tested too"
    for s in sets:
        levels = (s.images + 1) * 127.5
        is_picture = bool((levels - levels.round()).abs().max() < 1e-3)
        assert is_picture == (handoff == "minmax_png")


# -- scales ----------------------------------------------------------------------------------------


def test_a_schedule_gives_each_round_its_scale_and_searches_nothing(train, monkeypatch) -> None:
    seen = []
    call = DPS.__call__

    def spy(self, *arguments):
        seen.append(self.scale)
        return call(self, *arguments)

    monkeypatch.setattr(DPS, "__call__", spy)
    _, report, _ = train(make_em("em", "method.lambda_schedule=[0.7,0.5,0.3]", "method.pool=1.0"))
    assert report.log["scales"] == seen == [0.7, 0.5, 0.3]
    assert report.costs["evaluations"] == 3 * 3 * 40, "three rounds, three steps, no search"


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("em", ["lambda_schedule=[1.0]"], "needed: one for each of the 3 rounds"),
        ("em", ["lambda_schedule=[1,1,1]", "scales=[1.0]"], "set scales=\\[\\]"),
        ("em_mmps", ["lambda_schedule=[1,1]"], "are for a guided E-step sampler"),
        ("em", ["stop=scale"], "stop=scale follows the search"),
        ("em", ["stop=soon"], "allowed: none, scale, residual"),
        ("em", ["handoff=png"], "allowed: float, minmax_png"),
        ("em", ["patience=0"], "allowed: at least 1"),
        ("em_mmps", ["gaussian=sparse"], "allowed: auto, dense, low_rank"),
        ("em_mmps", ["rank=0"], "allowed: at least 1"),
        ("em_mmps", ["posterior.solver=lu"], "allowed: cg, gmres"),
    ],
)
def test_what_does_not_fit_is_refused(name, keys, message) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        make_em(name, *[f"method.{k}" for k in keys])


# -- stop rules ------------------------------------------------------------------------------------


def test_the_rules_that_stop() -> None:
    assert not has_stopped("none", 1, [1, 1, 1], [1, 1, 1])
    assert not has_stopped("scale", 2, [4, 2], [])
    assert not has_stopped("scale", 2, [4, 2, 1.5, 1], [])
    assert not has_stopped("scale", 2, [4, 2, 3, 1], [])
    assert has_stopped("scale", 2, [4, 2, 2, 3], [])
    assert has_stopped("scale", 2, [2, 2, 3], []), "patience rounds after the first are enough"
    assert not has_stopped("scale", 2, [2, 2], [])
    assert not has_stopped("residual", 2, [], [1.0, 1.0])
    assert not has_stopped("residual", 2, [], [1.0, 0.5, 0.501])
    assert has_stopped("residual", 2, [], [5.0, 0.5, 0.501, 0.499])
    assert not has_stopped("residual", 2, [], [0.5, 0.5, 0.5, 0.6])


@pytest.mark.parametrize(
    ("name", "number", "logged"),
    [
        # Round k has k - 1 scales behind it; fits begin with the Gaussian start, or one later.
        ("em", 3, {"scales": [2.0, 2.0, 1.0]}),
        ("em", 3, {"residual": [0.5, 0.5, 0.1]}),
        ("em_mmps", 2, {"residual": [0.5, 0.5, 0.1]}),
    ],
)
def test_a_round_that_is_resumed_decides_from_the_rounds_before_it(name, number, logged) -> None:
    (key,) = logged
    rule = {"scales": "scale", "residual": "residual"}[key]
    scales = "[1.0]" if rule == "scale" else "[]"
    method = make_em(name, "method.patience=1", f"method.stop={rule}", f"method.scales={scales}")
    for seen in (logged[key][:2], logged[key]):
        assert method._has_stopped(number, SimpleNamespace(log={key: seen}))
    assert not method._has_stopped(number + 1, SimpleNamespace(log=logged))


@pytest.mark.parametrize("name", ["em", "em_mmps"])
def test_a_stopped_phase_trains_on_under_the_same_budget(train, name, monkeypatch) -> None:
    """With a plateau as wide as the world, every round after the second fit skips its E-step."""
    monkeypatch.setattr("cleanprior.methods.em.steps.PLATEAU", 1e9)
    keys = ["method.resume_rounds=4", "method.stop=residual", "method.patience=1"]
    method = make_em(name, *keys)
    _, report, sets = train(method)
    first = 3 if name == "em" else 2  # the start of em makes no restoration
    expected = list(range(first, 5))
    assert report.log["skipped"] == expected
    for k in expected:
        assert torch.equal(sets[k].images, sets[first - 1].images)
        assert torch.equal(sets[k].index, sets[first - 1].index)
    assert report.steps == {"denoiser": 12}
    count = {"em": 2 * 20 + 40, "em_mmps": 40}[name]  # pools of half, then the reset round's all
    assert report.costs["evaluations"] == 3 * count


# -- reuse -----------------------------------------------------------------------------------------


def test_the_union_prefers_new_restorations() -> None:
    old = torch.tensor([0, 2, 5]), torch.tensor([10.0, 12.0, 15.0])
    index, x = union(old, (torch.tensor([2, 3]), torch.tensor([22.0, 23.0])))
    assert index.tolist() == [0, 2, 3, 5]
    assert x.tolist() == [10, 22, 23, 15]


def test_reused_restorations_are_those_of_the_last_round(train) -> None:
    keys = ["method.resume_rounds=3", "method.pool=0.5"]
    *_, sets = train(make_em("em_mmps", "method.reuse=true", *keys))
    # A stop rule keeps restorations too; they are not trained on.
    *_, alone = train(make_em("em_mmps", "method.stop=residual", "method.patience=9", *keys))
    assert [len(s) for s in sets] == [40] * 4, "the Gaussian start restored everything"
    assert [len(s) for s in alone] == [40, 20, 20, 20]
    for k in range(1, 4):
        old = ~torch.isin(sets[k].index, alone[k].index)
        assert int(old.sum()) == 20
        assert torch.equal(sets[k].images[old], sets[k - 1].images[old])
        changed = (sets[k].images[~old] != sets[k - 1].images[~old]).flatten(1).any(1)
        assert changed.all()


# -- what is kept and logged -----------------------------------------------------------------------


def test_an_interrupted_run_with_reuse_and_a_stop_is_the_uninterrupted_one(
    train, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("cleanprior.methods.em.steps.PLATEAU", 1e9)
    keys = ["resume_rounds=4", "reuse=true", "pool=0.5", "stop=residual", "patience=2"]

    def make():
        return make_em("em_mmps", *[f"method.{k}" for k in keys])

    class Interrupted(Exception):
        pass

    networks, report, _ = train(make())
    assert report.log["skipped"] == [3, 4]
    interruptions = 0
    for _ in range(20):
        method = make()
        loss, calls = method.loss, []

        def interrupted(*arguments, loss=loss, calls=calls):
            calls.append(1)
            if len(calls) == 5:
                raise Interrupted
            return loss(*arguments)

        method.loss = interrupted
        try:
            again, resumed, _ = train(method, folder=tmp_path)
            break
        except Interrupted:
            interruptions += 1
    assert interruptions == 2
    assert resumed.log == report.log
    for k, v in networks["denoiser"].state_dict().items():
        assert torch.equal(again["denoiser"].state_dict()[k], v)
    assert len(list(tmp_path.rglob("kept/*"))) <= 2, "older rounds are forgotten"


def test_the_fit_and_the_drift_are_those_of_their_definitions(make_operator) -> None:
    operator = make_operator("inpainting", (1, 4, 4), "sigma=0.3", "p=0.5")
    x = torch.randn(30, 1, 4, 4, generator=generator_for(0, "x"))
    data = Measurements.draw(x, operator, 0, "train")
    index = torch.arange(5, 25)
    mask = data.params["mask"][index].flatten(1)
    noise = ((data.y - operator.A(x, data.params))[index].flatten(1) * mask).square().sum(1)
    expected = (noise / mask.sum(1)).mean().item()
    mean, ratio = fit_of(Likelihood.of(operator, data), index, x[index], 0.0, 7)
    assert mean == pytest.approx(expected, rel=1e-5)
    assert ratio == pytest.approx(expected / 0.09, rel=1e-5)
    filled = Measurements(data.y + 7 * (1 - data.params["mask"]), data.params, data.sigma_y)
    hidden = fit_of(Likelihood.of(operator, filled), index, x[index], 0.0, 7)[0]
    assert hidden == pytest.approx(expected, rel=1e-5), "what was not measured does not count"
    silent = Measurements(data.y, data.params, 0 * data.sigma_y)
    assert fit_of(Likelihood.of(operator, silent), index, x[index], 0.0, 7)[1] is None
    floor = fit_of(Likelihood.of(operator, silent), index, x[index], 0.1, 7)[1]
    assert floor == pytest.approx(expected / 0.01, rel=1e-5)
    covariance = followed_covariance(x)
    dense = torch.cov(x.flatten(1).T, correction=0).double()
    torch.testing.assert_close(covariance, dense, rtol=1e-4, atol=1e-5)
    assert drift(1.5 * covariance, covariance) == pytest.approx(0.5)
    assert followed_covariance(torch.randn(3, 3, 32, 32)).shape == (256, 256)


def test_records_show_residual_and_drift_of_each_round(train) -> None:
    _, report, _ = train(make_em("em_mmps"))
    assert report.log["gaussian"] == "dense"
    assert len(report.log["residual"]) == len(report.log["residual_ratio"]) == 6
    assert len(report.log["drift"]) == 5
    assert all(v > 0 for key in ("residual", "drift") for v in report.log[key])


# -- the start and the solver ----------------------------------------------------------------------


def test_large_images_are_supported_unless_the_start_is_dense(make_operator, make_problem) -> None:
    problem = make_problem(make_operator("inpainting", (3, 64, 64)))
    assert make_em("em_mmps").supports(problem) is None
    assert make_em("em_mmps", "method.gaussian=low_rank").supports(problem) is None
    reason = make_em("em_mmps", "method.gaussian=dense").supports(problem)
    assert "at most 1024 numbers; these have 12288: use gaussian=low_rank" in reason


def test_a_low_rank_start_feeds_the_first_round(train) -> None:
    keys = ["gaussian=low_rank", "low_rank_iterations=4", "rank=8"]
    _, report, sets = train(make_em("em_mmps", *[f"method.{k}" for k in keys]), steps=6)
    assert report.log["gaussian"] == "low_rank"
    assert len(sets[0]) == 40
    assert report.log["residual_ratio"][0] < 2


def test_gmres_solves_what_conjugate_gradient_solves(gaussian, make_operator) -> None:
    """All iterations: the conditional mean. One: the step that makes the residual smallest."""
    operator = make_operator("inpainting", gaussian.image_shape, "p=0.3", "sigma=0.2")
    x = torch.randn(4, *gaussian.image_shape, generator=generator_for(0, "x"))
    data = Measurements.draw(x, operator, 0, "train")
    problem = Likelihood.of(operator, data)

    def mean(solver: str, iterations: int):
        sampler = MMPS(3, 0.1, 5.0, 7.0, 1.0, iterations, 0.0, float("inf"), 0.0, solver)
        return sampler.guide(gaussian, x, 0.8, problem)[0].flatten(1)

    torch.testing.assert_close(mean("gmres", 6), mean("cg", 12), rtol=1e-4, atol=1e-5)
    level = 0.8**2
    shrink = gaussian.covariance @ torch.linalg.inv(gaussian.covariance + level * torch.eye(6))
    denoised = gaussian(x, torch.full((4,), 0.8)).flatten(1).double()
    for i, a in enumerate(operator.matrix(data.params, 4)):
        system = 0.04 * torch.eye(6) + level * a @ shrink @ a.T
        b = (data.y[i].flatten().double() - a @ denoised[i]) * a.diagonal()
        image = system @ b
        step = (image @ b) / (image @ image) * b
        expected = denoised[i] + level * shrink.T @ a.T @ step
        torch.testing.assert_close(mean("gmres", 1)[i].double(), expected, rtol=1e-4, atol=1e-5)


# -- rounds that go on -----------------------------------------------------------------------------


@pytest.mark.parametrize("resume", ["continue", "averaged"])
def test_resumed_rounds_share_an_optimiser_or_begin_anew(resume: str) -> None:
    method = make_em("em_mmps", f"method.resume={resume}")
    begins = [r.begin for r in method.rounds(100)[1:]]
    assert set(begins) == {resume}
    assert sum(r.steps for r in method.rounds(100)) == 100


def test_the_first_rounds_draw_narrowly_and_the_last_as_configured(train, monkeypatch) -> None:
    walks = []
    inner = EM._draw_chunk

    def spy(self, denoise, sampler, part, number, session):
        walks.append((number, sampler.walk))
        return inner(self, denoise, sampler, part, number, session)

    monkeypatch.setattr(EM, "_draw_chunk", spy)
    train(make_em("em_mmps", "method.resume_rounds=3", "method.narrow_rounds=2"))
    assert dict(walks) == {1: "ancestral", 2: "ancestral", 3: "exponential"}


def test_narrow_rounds_are_resumed_rounds() -> None:
    with pytest.raises(UserError, match="narrow_rounds=4; allowed: 0 to resume_rounds, 3"):
        make_em("em_mmps", "method.resume_rounds=3", "method.narrow_rounds=4")
