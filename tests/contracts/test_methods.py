"""What every installed method promises, on every operator that it supports."""

import pytest
import torch

from cleanprior import capabilities, registry
from cleanprior.config import build, compose
from cleanprior.data import Batch, Measurements
from cleanprior.prior import Prior, image_generators
from cleanprior.progress import Progress
from cleanprior.training import Problem, Session
from cleanprior.training.averages import Averages
from cleanprior.training.checkpoint import Store

CELLS = [(m, o) for m in registry.methods() for o in registry.options("operator")]


def images(digits_data, operator_name: str) -> torch.Tensor:
    """Twelve digits; for MRI two of them as real and imaginary part."""
    x = digits_data.train[:12]
    return torch.cat([x, x.flip(0)], 1) if operator_name == "mri" else x


def make_cell(name: str, operator_name: str, digits_data, tiny_backbone):
    config = compose([f"method={name}", f"operator={operator_name}"])
    x = images(digits_data, operator_name)
    operator = build(config["operator"], image_shape=tuple(x.shape[1:]))
    method = build(config["method"])
    problem = Problem(operator, operator_name, tiny_backbone, 0.5, operator.sigma)
    data = Measurements.draw(x, operator, 0, "train")
    return method, problem, data


@pytest.mark.parametrize(("name", "operator_name"), CELLS)
def test_a_method_learns_samples_and_saves_or_says_why_not(
    name: str, operator_name: str, digits_data, tiny_backbone, tmp_path
) -> None:
    method, problem, data = make_cell(name, operator_name, digits_data, tiny_backbone)
    reason = method.supports(problem)
    if reason is not None:
        assert len(reason) > 20, "a refusal is a sentence"
        described = registry.read("operator", operator_name)
        facts = capabilities.facts_of(
            operator_name,
            described["capabilities"],
            described["sigma"],
            getattr(method, "sigma_floor", 0.0),
        )
        told = capabilities.refusal(name, method.needs, facts)
        assert (told is None) == (method.supports(problem) is None), "list and training agree"
        return
    before = torch.get_rng_state()
    method.setup(problem, torch.device("cpu"))
    networks = dict(method.networks())
    averages = Averages(networks, 0.9)
    x = images(digits_data, operator_name)
    shape = (3, *x.shape[1:])
    clean = x if method.clean_images else None
    session = Session(
        data, clean, averages.modules, torch.device("cpu"), Store(None), Progress(), 0
    )
    plan = method.rounds(100)
    training_set = method.begin_round(0, plan[0], session)
    for turn in dict.fromkeys(plan[0].turns if networks else ()):
        batch = training_set.batch(torch.arange(8) % len(training_set))
        loss = method.loss(batch, torch.Generator().manual_seed(0), turn)
        again = method.loss(batch, torch.Generator().manual_seed(0), turn)
        assert torch.isfinite(loss.total)
        assert torch.equal(loss.total, again.total), "the generator is the only randomness"
        loss.total.backward()
        norms = [p.grad.norm() for p in networks[turn].parameters() if p.grad is not None]
        assert norms
        assert all(torch.isfinite(n) for n in norms)
        assert max(norms) > 0
    prior = method.prior(averages.modules)
    batch = data.batch(torch.arange(3))
    if prior is not None:
        prior.save(tmp_path / "prior")
        loaded = Prior.load(tmp_path / "prior")
        noisy = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        assert torch.equal(loaded(noisy, 0.3), prior(noisy, 0.3))
        sampler = build(compose(["sampler.steps=3"])["sampler"])
        assert prior.sample(3, sampler, 0).shape == shape
    check_ways(method, averages, batch, shape)
    assert torch.equal(torch.get_rng_state(), before), "the global generator is untouched"


def check_ways(method, averages: Averages, batch: Batch, shape: tuple[int, ...]) -> None:
    for way in method.ways(averages.modules):
        assert way.restore is not None or way.sample is not None
        if way.restore is not None:
            x, evaluations = way.restore(batch, image_generators(0, range(3)))
            assert x.shape == shape
            assert torch.isfinite(x).all()
            assert evaluations >= 0
            single, _ = way.restore(
                Batch(
                    batch.y[:1],
                    {k: v[:1] for k, v in batch.params.items()},
                    batch.sigma_y[:1],
                    batch.index[:1],
                ),
                image_generators(0, range(1)),
            )
            assert torch.allclose(single, x[:1], atol=1e-4), "an image does not depend on its batch"
        if way.sample is not None:
            assert way.sample(3, torch.Generator().manual_seed(0)).shape == shape


@pytest.mark.parametrize("name", registry.methods())
def test_every_method_gets_the_same_bytes_and_an_equal_budget(
    name: str, digits_data, tiny_backbone
) -> None:
    method, problem, data = make_cell(name, "inpainting", digits_data, tiny_backbone)
    reference = make_cell("naive", "inpainting", digits_data, tiny_backbone)[2]
    assert data.hash == reference.hash
    if method.supports(problem) is None:
        method.setup(problem, torch.device("cpu"))
        if method.networks():
            planned = sum(r.steps * r.turns.count(method.budgeted) for r in method.rounds(1500))
            assert planned == 1500


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("sure_score", {"probe": "rademacher", "divergence": "jvp", "detach": True}),
        ("sure_score", {"reduction": "mean", "lambda_schedule": "ramp", "levels": "continuous"}),
        ("gsure", {"w": "coverage", "div_weight": "unbiased", "probe": "rademacher"}),
        ("ambient_tweedie", {"sigma_draw": "truncate", "weight": "edm", "augment": "none"}),
        ("ambient", {"preconditioning": "split", "gate": "none", "resample_further": True}),
        ("em", {"handoff": "float", "lambda_schedule": [], "reuse": False, "stop": "none"}),
        ("ambient_gan", {"loss_function": "hinge", "scale": "none", "critic_sees_params": True}),
    ],
)
def test_what_the_authors_do_is_an_option_and_no_default(name, ours):
    config = compose([f"method={name}"])["method"]
    assert {key: config[key] for key in ours} == ours
