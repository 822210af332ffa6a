"""Consistency: it is 0 for the exact denoiser, and its options do what they say."""

import pytest
import torch
from cleanprior.methods.consistency import reverse_process
from pair import EYE, SIGMA, C, Exact, wiener

from cleanprior.seeding import generator_for


@pytest.fixture
def residuals(make_tweedie, draw):
    """Estimates of the residual over draws of x at one pair of levels."""

    def estimate(model, n=40_000, **changes):
        settings = {"steps": 48, "children": 4} | changes
        overrides = [f"consistency.{k}={v}" for k, v in settings.items()]
        consistency = make_tweedie(model, *overrides).consistency
        _, y = draw(n)
        high, low = torch.full((n,), SIGMA), torch.full((n,), 0.2)
        with torch.no_grad():
            return consistency.residual(model, y, high, low, generator_for(0, "r")).double()

    return estimate


def test_the_exact_denoiser_is_consistent_and_a_wrong_one_is_not(residuals):
    found = residuals(Exact())
    assert abs(found.mean()) < 4 * found.std() / len(found) ** 0.5
    wrong = residuals(Exact(0.8))
    assert wrong.mean() > 20 * wrong.std() / len(wrong) ** 0.5


def test_the_squared_mean_is_biased_by_the_variance_over_the_number_of_children(residuals):
    """Var[D(x', s') | x] = Cov[x | x_s] - Cov[x | x_s'], a mean over pixels, over the children."""
    found = residuals(Exact(), estimator="mean")

    def spread(sigma):
        return sigma**2 * wiener(sigma)

    expected = (spread(SIGMA) - spread(0.2)).trace() / 2 / 4
    assert abs(found.mean() / expected - 1) < 0.05


def test_the_reverse_process_reaches_the_law_of_the_lower_level(draw):
    n = 100_000
    _, y = draw(n)
    x = reverse_process(
        Exact(), y, torch.full((n,), SIGMA), torch.full((n,), 0.2), 64, generator_for(0, "r")
    )
    found = torch.cov(x.flatten(1).double().T)
    expected = C + 0.04 * EYE
    assert (found - expected).norm() / expected.norm() < 0.03


def test_the_levels_of_consistency_begin_above_the_noise_and_go_below(make_tweedie):
    consistency = make_tweedie(None).consistency
    level = torch.full((10_000,), SIGMA)
    high, low = consistency.levels(level, generator_for(0, "c"))
    assert (high >= SIGMA).all() and (high <= SIGMA * consistency.start * 1.0001).all()
    assert (low <= high).all() and (low >= consistency.sigma_min).all()
    assert (low < SIGMA).float().mean() > 0.8


def test_consistency_reaches_the_loss_with_its_weight_and_its_cost(make_tweedie, draw, batch_of):
    model = Exact(0.8)
    _, y = draw(16)
    keys = ["consistency.share=0.5", "consistency.children=2", "consistency.steps=3"]
    plain = make_tweedie(model).loss(batch_of(y), generator_for(0, "l"), "denoiser")
    method = make_tweedie(model, "consistency.weight=2", *keys, is_consistent=True)
    loss = method.loss(batch_of(y), generator_for(0, "l"), "denoiser")
    torch.testing.assert_close(loss.parts["tweedie"], plain.total.detach())
    torch.testing.assert_close(
        loss.total.detach(), loss.parts["tweedie"] + 2 * loss.parts["consistency"]
    )
    assert method._session.costs == {"evaluations": 8.0 * (1 + 2 * 4)}
    assert torch.autograd.grad(loss.total, model.anchor)[0].isfinite().all()


def test_the_residual_pulls_on_the_weights_in_proportion_to_its_own(make_tweedie, draw, batch_of):
    model = Exact(0.8)
    _, y = draw(16)
    slopes = []
    for weight in (0, 1, 3):
        method = make_tweedie(model, f"consistency.weight={weight}", is_consistent=True)
        loss = method.loss(batch_of(y), generator_for(0, "l"), "denoiser")
        slopes.append(torch.autograd.grad(loss.total, model.anchor)[0].item())
    plain, once, thrice = slopes
    assert abs(once - plain) > 1e-3
    assert thrice - plain == pytest.approx(3 * (once - plain), rel=1e-4)


def test_the_reverse_process_begins_at_its_level(make_tweedie, draw, batch_of):
    """Its images are y with the noise that is missing from sigma_y to s."""
    model, asked = Exact(), []
    model.register_forward_pre_hook(lambda m, inputs: asked.append(inputs[:2]))
    keys = ["share=1", "children=2", "steps=1", "start=4"]
    keys = [f"consistency.{k}" for k in ("weight=1", *keys)]
    method = make_tweedie(model, *keys, is_consistent=True)
    _, y = draw(1000)
    method.loss(batch_of(y), generator_for(0, "l"), "denoiser")
    x, high = asked[1]
    added = (x - y.repeat_interleave(2, 0)).flatten(1).square().mean(1)
    assert (high**2 > SIGMA**2).all()
    assert (added / (high**2 - SIGMA**2)).mean().item() == pytest.approx(1, abs=0.1)


def test_clean_images_have_no_consistency_term(make_tweedie, draw, batch_of):
    x, _ = draw(16)
    method = make_tweedie(Exact(0.8), "consistency.weight=1", is_consistent=True)
    parts = method.loss(batch_of(x, 0.0), generator_for(0, "l"), "denoiser").parts
    assert parts["consistency"] == 0


@pytest.mark.parametrize(("weight", "steps"), [("0", [100]), ("1", [80, 20])])
def test_consistency_is_on_at_the_end_of_the_budget(make_tweedie, weight, steps):
    plan = make_tweedie(None, f"consistency.weight={weight}").rounds(100)
    assert [r.steps for r in plan] == steps


def test_the_residual_is_in_the_loss_of_its_own_round_only(make_tweedie, draw, batch_of):
    method = make_tweedie(Exact(0.8), "consistency.weight=1")
    _, y = draw(16)
    parts = []
    for number, part in enumerate(method.rounds(100)):
        method.begin_round(number, part, method._session)
        parts.append(set(method.loss(batch_of(y), generator_for(0, "l"), "denoiser").parts))
    assert parts == [set(), {"tweedie", "consistency"}]


# -- the authors' options --------------------------------------------------------------------------


def test_shared_levels_are_one_draw_and_act_from_the_noise_downwards(make_tweedie, draw):
    consistency = make_tweedie(None, "consistency.pairing=shared").consistency
    n = 20_000
    high, low = consistency.levels(torch.full((n,), SIGMA), generator_for(0, "c"))
    below = low < SIGMA
    assert torch.equal(high[below], torch.full_like(high[below], SIGMA))
    assert torch.equal(high[~below], low[~below])
    assert (low >= consistency.sigma_min).all()
    # log sigma ~ N(-1.2, 1.2^2)
    at = torch.special.ndtr((torch.tensor(SIGMA).log() + 1.2) / 1.2)
    assert below.float().mean().item() == pytest.approx(at.item(), abs=0.015)
    _, y = draw(8)
    level = torch.full((8,), 0.9)
    same = consistency.residual(Exact(0.8), y, level, level, generator_for(0, "r"))
    assert (same == 0).all()


@pytest.mark.parametrize("gradient", ["true", "false"])
def test_the_gradient_goes_through_the_reverse_process_on_demand(make_tweedie, draw, gradient):
    """Against a central difference, which moves the children along with the weights."""
    model = Exact(0.8)
    keys = [f"consistency.gradient={gradient}", "consistency.estimator=mean"]
    consistency = make_tweedie(model, *keys).consistency
    _, y = draw(64)
    high, low = torch.full((64,), SIGMA), torch.full((64,), 0.2)

    def residual():
        return consistency.residual(model, y, high, low, generator_for(0, "r")).mean()

    (slope,) = torch.autograd.grad(residual(), model.anchor)
    values = []
    for anchor in (1.01, 0.99):
        model.anchor.data.fill_(anchor)
        values.append(residual().item())
    is_total = abs(slope.item() - (values[0] - values[1]) / 0.02) < 0.02 * abs(slope.item())
    assert is_total == (gradient == "true")


def test_the_residual_may_have_edms_weight_at_its_upper_level(make_tweedie, draw, batch_of):
    parts = []
    for weighting in ("none", "edm"):
        keys = [f"consistency.weighting={weighting}", "consistency.start=1.000001"]
        method = make_tweedie(Exact(0.8), "consistency.weight=1", *keys, is_consistent=True)
        _, y = draw(16)
        parts.append(method.loss(batch_of(y), generator_for(0, "l"), "denoiser").parts)
    weight = (SIGMA**2 + 0.25) / (SIGMA * 0.5) ** 2
    torch.testing.assert_close(
        parts[1]["consistency"], weight * parts[0]["consistency"], rtol=1e-4, atol=0
    )
