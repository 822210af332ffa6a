"""The contracts for strangers: built-in parts keep them, and a part that breaks one is told."""

import copy

import pytest
import torch

from cleanprior.config import registry
from cleanprior.data import digits
from cleanprior.operators.likelihood import Likelihood
from cleanprior.prior import image_generators
from cleanprior.testing import DataContract, PosteriorContract, methods, operators, posteriors
from cleanprior.testing.data import check_images
from cleanprior.testing.parts import make_operator, no_global_randomness
from cleanprior.training import Loss


class TestDigits(DataContract):
    name = "digits"


class TestPiGDM(PosteriorContract):
    name = "pigdm"


def test_a_wrong_adjoint_is_told():
    operator = make_operator("blur", (1, 8, 8))
    operator.A_adjoint = lambda y, params: 1.01 * operator.physics.A_adjoint(y)
    with pytest.raises(AssertionError, match="not the transpose of A: relative error"):
        operators.check_adjoint(operator)


def test_an_operator_that_draws_globally_is_told():
    def make():
        operator = make_operator("denoising", (1, 8, 8), "sigma=0.1")
        operator.draw = lambda n, generator: {"unused": torch.rand(n)}
        operator.A = lambda x, params: x
        return operator

    with pytest.raises(AssertionError, match="the global one was used"):
        operators.check_seeds(make)


def test_a_capability_that_is_not_kept_is_told():
    operator = make_operator("blur", (1, 8, 8))
    operator.capabilities = operator.capabilities | {"identity"}
    with pytest.raises(AssertionError, match="the YAML says"):
        operators.check_capabilities(operator, "blur")


def with_loss(loss):
    cell = methods.Cell.of("naive", "inpainting")
    cell.method.loss = lambda *given: loss(type(cell.method).loss(cell.method, *given))
    return cell


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda made: Loss(made.total * torch.rand(())), "only randomness"),
        (lambda made: Loss(made.total * float("nan")), "the loss of 'denoiser' is nan"),
        (lambda made: Loss(made.total * 0), "all gradients of 'denoiser' are 0"),
        (lambda made: (torch.rand(()), made)[1], "the global one was used"),
    ],
)
def test_a_loss_that_breaks_its_promise_is_told(tmp_path, loss, message):
    with pytest.raises(AssertionError, match=message):
        methods.check_method(with_loss(loss), tmp_path)


def test_rounds_that_spend_another_budget_are_told():
    cell = methods.Cell.of("naive", "inpainting")
    plan = cell.method.rounds
    cell.method.rounds = lambda budget: plan(budget + 1)
    with pytest.raises(AssertionError, match="1501 steps of a budget of 1500"):
        methods.check_budget(cell)


def test_a_sampler_that_counts_wrongly_is_told():
    contract = TestPiGDM()
    operator, data = contract.problem("inpainting")
    sampler = contract.make()

    class Cheap(type(sampler)):
        def __call__(self, *given):
            draw = super().__call__(*given)
            return type(draw)(draw.x, 1, draw.backwards)

    cheap = copy.copy(sampler)
    cheap.__class__ = Cheap
    parts = (Likelihood.of(operator, data), image_generators(0, range(4)))
    with pytest.raises(AssertionError, match="it says .*'forward': 1"):
        posteriors.check_counts(cheap, posteriors.gaussian_denoiser(operator), *parts)


def test_images_out_of_range_are_told():
    data = digits()
    with pytest.raises(AssertionError, match="needed: within"):
        check_images(type(data)("mine", data.train * 127, data.test))


def test_the_guard_itself_lets_a_passed_generator_pass():
    with no_global_randomness():
        torch.rand(2, generator=torch.Generator().manual_seed(0))


def test_every_posterior_yaml_has_a_key_for_every_argument():
    for name in registry.readable("posterior"):
        operators.check_card("posterior", name)
