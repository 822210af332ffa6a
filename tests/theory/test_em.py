"""EM: its E-step on a Gaussian follows the closed recursion; scales, rounds and hand-over."""

import copy
from types import SimpleNamespace

import pytest
import torch
from cleanprior.methods.em import method as em_module
from cleanprior.methods.em import start as start_module
from cleanprior.methods.em.start import exact_draws
from cleanprior.methods.em.steps import best_scale, misfit

from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.diffusion.posterior import DPS, MMPS
from cleanprior.gaussian.dense import GaussianPrior
from cleanprior.operators import Denoising, RandomInpainting
from cleanprior.operators.likelihood import Likelihood
from cleanprior.progress import Progress
from cleanprior.training import Problem, Round, Session
from cleanprior.training.checkpoint import Store

SHAPE = (1, 1, 1)


def make_em(*overrides: str, name: str = "em_mmps"):
    return build(compose([f"method={name}", *overrides])["method"])


def make_session(data: Measurements, averaged=None, store=None) -> Session:
    return Session(
        measurements=data,
        clean=None,
        averaged=averaged or {},
        device=torch.device("cpu"),
        store=Store(store),
        progress=Progress(),
        seed=0,
    )


def attach(method, operator) -> None:
    """Give a method its problem without networks: the E-steps here use analytic denoisers."""
    method.problem = Problem(operator, operator.name, {}, 0.5, operator.sigma)


def measured_noise(sigma: float, n: int) -> tuple[Denoising, Measurements]:
    operator = Denoising(SHAPE, sigma)
    clean = torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(0))
    return operator, Measurements.draw(clean, operator, 0, "train")


def scalar_prior(variance: float) -> GaussianPrior:
    covariance = torch.full((1, 1), variance, dtype=torch.float64)
    return GaussianPrior(torch.zeros(1, dtype=torch.float64), covariance, SHAPE)


def test_exact_e_steps_follow_the_recursion_to_its_fixed_point() -> None:
    """v' = g^2 V + g sigma^2 with g = v / (v + sigma^2); fixed point V - sigma^2."""
    sigma, n = 0.5, 40000
    operator, data = measured_noise(sigma, n)
    spread = data.y.double().square().mean().item()
    v = expected = 0.3
    for number in range(25):
        session = make_session(data)
        session.seed = number
        draws = exact_draws(scalar_prior(v), operator, session, torch.arange(n), 0.0, n)
        g = expected / (expected + sigma**2)
        expected = g**2 * spread + g * sigma**2
        v = draws.double().square().mean().item()
        assert v == pytest.approx(expected, rel=0.03)
    assert v == pytest.approx(spread - sigma**2, rel=0.03)


def test_a_sampled_e_step_has_the_exact_variance() -> None:
    """The E-step's own path: moment matching with an analytic denoiser, chunk by chunk."""
    sigma, n, v = 0.5, 6000, 0.3
    operator, data = measured_noise(sigma, n)
    method = make_em("method.chunk=2000")
    method.posterior = MMPS(256, 0.005, 20.0, 7.0, 0.0, 2, 1e-6, float("inf"), 0.0)
    attach(method, operator)
    session = make_session(data)
    draws = method._draws(scalar_prior(v), method.posterior, torch.arange(n), 1, session)
    g = v / (v + sigma**2)
    expected = g**2 * data.y.double().square().mean().item() + g * sigma**2
    assert draws.double().square().mean().item() == pytest.approx(expected, rel=0.05)
    assert session.costs["evaluations"] == 256 * n


def gaussian_toy(sigma: float):
    shape = (1, 2, 4)
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(8, 8, generator=generator, dtype=torch.float64) / 3
    covariance = root @ root.T + 0.05 * torch.eye(8, dtype=torch.float64)
    x = (torch.randn(400, 8, generator=generator, dtype=torch.float64) @ root.T).float()
    operator = RandomInpainting(shape, 0.3, False, sigma)
    data = Measurements.draw(x.reshape(-1, *shape), operator, 0, "train")
    prior = GaussianPrior(torch.zeros(8, dtype=torch.float64), covariance, shape)
    return operator, data, prior


def guided_em(scales, cap: bool):
    method = make_em(name="em")
    method.posterior = DPS(40, 0.02, 10.0, 7.0, 1.0, 0.2, cap, "norm")
    method.scales, method.scale_images = scales, 200
    return method


def test_the_scale_is_the_same_for_two_searches_with_one_seed() -> None:
    operator, data, prior = gaussian_toy(0.3)
    found = []
    for _ in range(2):
        method = guided_em([0.5, 1.0, 2.0], cap=True)
        attach(method, operator)
        found.append(method._choose_scale(prior, 1, make_session(data)).scale)
    assert found[0] == found[1]
    other = make_session(data)
    assert found[0] in [0.1, 0.2, 0.4]
    method._choose_scale(prior, 1, other)
    assert other.log["scales"] == [found[0]]
    assert other.costs["evaluations"] == 3 * 200 * 40


def test_a_search_compares_scales_on_one_noise_and_begins_at_the_last_scale(monkeypatch) -> None:
    operator, data, prior = gaussian_toy(0.3)
    method = guided_em([0.5, 1.0, 2.0], cap=True)
    attach(method, operator)
    seen, call = [], DPS.__call__

    def spy(self, *arguments):
        seen.append((self.scale, [g.initial_seed() for g in arguments[-1]]))
        return call(self, *arguments)

    monkeypatch.setattr(DPS, "__call__", spy)
    session = make_session(data)
    session.log["scales"] = [0.8]
    method.chunk = len(data)
    method._choose_scale(prior, 2, session)
    assert [scale for scale, _ in seen] == pytest.approx([0.4, 0.8, 1.6])
    assert seen[0][1] == seen[1][1] == seen[2][1]
    assert session.costs["backwards"] == session.costs["evaluations"] == 3 * 200 * 40


@pytest.mark.parametrize(("sigma", "cap"), [(0.0, True), (0.0, False), (0.3, True)])
def test_a_mask_without_noise_and_a_cap_need_no_search(monkeypatch, sigma, cap) -> None:
    operator, data, prior = gaussian_toy(sigma)
    operator.capabilities = frozenset({"mask"})
    method = guided_em([0.5, 1.0, 2.0], cap)
    attach(method, operator)
    session = make_session(data)
    scale = method._choose_scale(prior, 1, session).scale
    is_searched = not (cap and sigma == 0)
    assert bool(session.costs.get("evaluations")) is is_searched
    if not is_searched:
        assert session.log["scales"] == [0.4]
        # ... which is what the search would have chosen.
        monkeypatch.setattr(em_module, "is_capped", lambda *_: False)
        assert method._choose_scale(prior, 1, make_session(data)).scale == scale == 0.4


def resumed_rounds(seed: int = 0, **changes):
    """Return the sets of two resumed rounds on four pixels' Gaussian, and their session."""
    torch.manual_seed(seed)
    operator, data, prior = gaussian_toy(0.3)
    method = make_em()
    method.posterior = MMPS(6, 0.02, 10.0, 7.0, 1.0, 2, 0.0, float("inf"), 0.0)
    for key, value in ({"pool": 0.1} | changes).items():
        setattr(method, key, value)
    attach(method, operator)
    session = make_session(data)
    session.averaged = {"denoiser": prior}
    plan = [Round(f"round {k}", 1, begin="averaged") for k in (1, 2)]
    return [method.begin_round(k, plan[k - 1], session) for k in (1, 2)], session


def test_the_noise_of_an_e_step_belongs_to_its_image_and_round() -> None:
    operator, data, prior = gaussian_toy(0.3)
    method = make_em()
    method.posterior = MMPS(6, 0.02, 10.0, 7.0, 1.0, 2, 1e-6, float("inf"), 0.0)
    attach(method, operator)

    def draws(chunk, number=1, index=range(12), seed=0):
        torch.manual_seed(seed)
        method.chunk = chunk
        index = torch.tensor(list(index))
        return method._draws(prior, method.posterior, index, number, make_session(data))

    together = draws(12)
    torch.testing.assert_close(draws(5, seed=1), together, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(draws(12, index=range(6, 12)), together[6:], rtol=1e-3, atol=1e-4)
    assert ((draws(12, number=2) - together).flatten(1).abs().amax(1) > 1e-2).all()


def test_a_round_draws_its_own_pool_and_stays_in_range_and_is_counted() -> None:
    (first, second), session = resumed_rounds()
    again = resumed_rounds(seed=1)[0][0]
    assert torch.equal(first.index, again.index)
    assert torch.equal(first.images, again.images)
    assert len(first) == len(second) == 40
    assert not torch.equal(first.index, second.index)
    assert first.images.abs().max() == 1, "a Gaussian leaves [-1, 1], a restoration does not"
    # Six steps, with two iterations and the last pull-back each.
    assert session.costs == {"evaluations": 2 * 40 * 6, "backwards": 2 * 40 * 6 * 2}


def test_one_method_in_two_runs_keeps_nothing_of_the_first(tmp_path) -> None:
    operator, data, prior = gaussian_toy(0.3)
    method = make_em("method.reuse=true", "method.pool=0.1")
    method.posterior = MMPS(3, 0.02, 10.0, 7.0, 1.0, 1, 0.0, float("inf"), 0.0)
    attach(method, operator)
    plan = Round("round", 1, begin="averaged")
    for run in ("a", "b"):
        session = make_session(data, store=tmp_path / run)
        session.averaged = {"denoiser": prior}
        sizes = [len(method.begin_round(k, plan, session)) for k in (1, 2)]
        assert sizes[0] == 40
        assert 40 < sizes[1] <= 80
        assert len(session.log["drift"]) == 1
        assert len(list((tmp_path / run).rglob("kept/*"))) == 2


def test_chunks_of_the_gaussian_start_have_noise_of_their_own() -> None:
    operator, data = measured_noise(0.5, 8)
    same = Measurements(torch.zeros_like(data.y), data.params, data.sigma_y)
    torch.manual_seed(0)
    x = exact_draws(scalar_prior(1.0), operator, make_session(same), torch.arange(8), 0.0, 4)
    assert (x[:4] - x[4:]).abs().min() > 1e-4
    torch.manual_seed(1)
    again = exact_draws(scalar_prior(1.0), operator, make_session(same), torch.arange(8), 0.0, 4)
    assert torch.equal(again, x)


@pytest.mark.parametrize(("kind", "iterations"), [("dense", 7), ("low_rank", 3)])
def test_each_gaussian_start_has_its_own_number_of_iterations(
    monkeypatch, kind: str, iterations: int
) -> None:
    keys = ["gaussian_iterations=7", "low_rank_iterations=3", f"gaussian={kind}"]
    method = make_em(*[f"method.{k}" for k in keys])
    operator, data, prior = gaussian_toy(0.3)
    attach(method, operator)
    asked = []
    monkeypatch.setattr(start_module, "fit_start", lambda *a: asked.append((a[0], a[4])) or prior)
    method._gaussian_draws(torch.arange(4), make_session(data))
    assert asked == [(kind, iterations)]


def test_the_clean_start_trains_on_the_clean_images() -> None:
    operator, data, _ = gaussian_toy(0.0)
    method = make_em(name="em")
    attach(method, operator)
    session = make_session(data)
    session.clean = torch.rand(5, 1, 2, 4, generator=torch.Generator().manual_seed(3))
    images = method.begin_round(0, Round("round 0", 1), session)
    assert torch.equal(images.images, session.clean)
    assert torch.equal(images.batch(torch.arange(5)).images, session.clean)


def test_with_noise_the_chosen_residual_is_the_expected_one() -> None:
    """Discrepancy principle: within 5 % of m sigma^2, on a fine grid."""
    sigma = 0.3
    operator, data, prior = gaussian_toy(sigma)
    method = guided_em([float(s) for s in torch.logspace(-1, 1, 41)], cap=False)
    attach(method, operator)
    session = make_session(data)
    sampler = method._choose_scale(prior, 1, session)
    index = torch.randperm(len(data), generator=session.generator("scale-images", round=1))[:200]
    batch = data.batch(index)
    generators = session.generators("scale", index.tolist(), round=1)
    x = sampler(prior, Likelihood.of(operator, batch), generators).x
    squared = ((batch.y - operator.A(x, batch.params)) * batch.params["mask"]).square().sum()
    assert squared.item() == pytest.approx(sigma**2 * batch.params["mask"].sum().item(), rel=0.1)


def test_a_residual_of_the_size_of_the_noise_fits_best() -> None:
    """And one of 0, which reproduces the noise, misses it by m sigma^2."""
    operator, data, _ = gaussian_toy(0.3)
    batch = data.batch(torch.arange(400))
    assert misfit(Likelihood.of(operator, batch), batch.y + 0.3) == pytest.approx(0, abs=1e-5)
    expected = 0.09 * batch.params["mask"].flatten(1).sum(1).mean().item()
    assert misfit(Likelihood.of(operator, batch), batch.y) == pytest.approx(expected, rel=1e-5)


def test_a_candidate_that_is_not_finite_is_never_chosen() -> None:
    operator, data, _ = gaussian_toy(0.0)
    batch = data.batch(torch.arange(4))
    assert misfit(Likelihood.of(operator, batch), torch.full((4, 1, 2, 4), float("nan"))) == float(
        "inf"
    )
    assert best_scale([0.5, 1.0, 2.0], [1.0, 1.9, float("inf")]) == 1.0


def train(method, digits_data, make_operator, tiny_backbone, folder=None, steps=20):
    operator = make_operator("inpainting", (1, 8, 8))
    data = Measurements.draw(digits_data.train[:40], operator, 0, "train")
    config = compose(
        [f"training.budget={8 * steps}", "training.batch=8", "training.precision=fp32"]
    )
    trainer = build(config["training"])
    problem = Problem(operator, "inpainting", tiny_backbone, 0.5, 0.0)
    clean = digits_data.train[40:60] if method.clean_images else None
    return trainer.fit(method, problem, data, 0, folder, clean), data


def test_rounds_hand_over_weights_as_they_promise(
    digits_data, make_operator, tiny_backbone
) -> None:
    """A resumed round starts from the averaged weights, a reset round from new ones."""
    method = make_em("method.scales=[]", "method.posterior.steps=3", name="em")
    seen: dict[str, dict] = {}
    modes: list[bool] = []
    begin, loss = method.begin_round, method.loss

    def begin_round(number, plan, session):
        if number:
            modes.append(session.averaged["denoiser"].training)
        seen[f"average {number}"] = copy.deepcopy(session.averaged["denoiser"].state_dict())
        method.number, method.is_first = number, True
        return begin(number, plan, session)

    def spying_loss(batch, generator, turn):
        if method.is_first:
            seen[f"start {method.number}"] = copy.deepcopy(method.denoiser.state_dict())
            method.is_first = False
        return loss(batch, generator, turn)

    method.begin_round, method.loss = begin_round, spying_loss
    train(method, digits_data, make_operator, tiny_backbone)

    def same(a: str, b: str) -> bool:
        return all(torch.equal(seen[a][k], seen[b][k]) for k in seen[a])

    plan = method.rounds(20)
    assert [r.begin for r in plan] == ["continue", "averaged", "averaged", "scratch"]
    for number, r in enumerate(plan[1:], 1):
        assert same(f"start {number}", f"average {number}") == (r.begin == "averaged")
    assert not same("start 3", "start 0"), "a reset draws new weights"
    assert modes == [False, False, False], "E-steps use averaged weights in eval mode"


def test_measurements_keep_their_bytes_and_no_picture_is_written(
    digits_data, make_operator, tiny_backbone, tmp_path
) -> None:
    method = make_em("method.posterior.steps=3", "method.gaussian_iterations=1")
    (_, report), data = train(method, digits_data, make_operator, tiny_backbone, tmp_path)
    assert report.status == "done"
    assert data._digest() == data.hash
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} <= {".safetensors"}


@pytest.mark.parametrize("budget", [7, 20, 1500])
@pytest.mark.parametrize("name", ["em", "em_mmps"])
def test_the_rounds_add_up_to_the_budget(name: str, budget: int) -> None:
    assert sum(r.steps for r in make_em(name=name).rounds(budget)) == budget


def test_the_published_gaussian_start_sees_no_clean_image() -> None:
    assert make_em().clean_images == 0
    assert SimpleNamespace(**vars(make_em(name="em"))).clean_images == 50
    with pytest.raises(ValueError, match="start=clean needs clean_images above 0"):
        make_em("method.clean_images=0", name="em")
    with pytest.raises(ValueError, match="add up to at most 1"):
        make_em("method.start_share=0.9", name="em")
