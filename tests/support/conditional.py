"""What the tests of DiffEM share: a method by hand, its session, its networks."""

import torch
from cleanprior.methods.diffem.channel import Channel
from exact import ExactConditional
from torch import nn

from cleanprior.config import build, compose
from cleanprior.data import Batch, Measurements
from cleanprior.gaussian.dense import GaussianPrior
from cleanprior.operators import Denoising
from cleanprior.operators.base import Operator
from cleanprior.progress import Progress
from cleanprior.seeding import generator_for
from cleanprior.training import Problem, Round, Session
from cleanprior.training.checkpoint import Store

CPU = torch.device("cpu")
EM, PRIOR = Round("round 1", 1, ("conditional",)), Round("prior", 1)


def make(*overrides: str, name: str = "diffem"):
    return build(compose([f"method={name}", *(f"method.{o}" for o in overrides)])["method"])


class OneStream(Session):
    """A session whose images share a generator: many small images are drawn in no time."""

    def generators(self, role, numbers, **keys):
        return self.generator(role, first=numbers[0], **keys)


def session_of(data, averaged=None, seed=0, kind=Session, folder=None):
    return kind(data, None, averaged or {}, CPU, Store(folder), Progress(), seed)


def set_up(method, operator, backbone):
    """Give a method its problem and small networks."""
    problem = Problem(operator, operator.name, dict(backbone), 0.5, operator.sigma)
    method.setup(problem, CPU)
    return method


def able(operator, *more):
    """Return a hand-made operator with the capabilities of its YAML."""
    operator.capabilities = frozenset({"gaussian", "same_shape", *more})
    return operator


def moments(x):
    flat = x.flatten(1).double()
    mean = flat.mean(0)
    return mean, (flat - mean).T @ (flat - mean) / len(flat)


def prior_of(mean, covariance, shape):
    return GaussianPrior(mean, covariance, shape)


def e_step(method, prior, session, has_mask, number=1):
    session.averaged = {"conditional": ExactConditional(prior, 0.5, has_mask)}
    return method.begin_round(number, EM, session).images


class Reads(nn.Module):
    """Returns the measurement that it is told, and keeps everything that it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.sigma_data, self.seen = 0.5, []

    def forward(self, x, sigma, told):
        self.seen.append((x, sigma, told))
        return 0.5 * told[:, : x.shape[1]]


def spied(operator, x, *keys, seeds=(0, 1), n=40):
    """Ask the loss of some images; return it and what the network was told of them."""
    method = make(*keys)
    method.problem = Problem(operator, operator.name, {}, 0.5, operator.sigma)
    method.channel = Channel(operator, 0.5, method.condition, method.noise_shape)
    method.device, method.conditional = CPU, Reads()
    data = Measurements.draw(
        torch.rand(n, *x.shape[1:]) if n != len(x) else x, operator, 0, "train"
    )
    method._session = session_of(data)
    batch = Batch(data.y, data.params, data.sigma_y, torch.arange(n), x)
    losses = [
        method.loss(batch, generator_for(s, "loss"), "conditional").total.item() for s in seeds
    ]
    return losses, method.conditional.seen, data, method


class Rounded(Operator):
    """An instrument that rounds, without a derivative: no Gaussian noise, no linear A."""

    def A(self, x, params):
        return torch.from_numpy((x.detach().numpy() * 2).round() / 2)


def rounded():
    operator = Rounded(Denoising((1, 8, 8), 0.0).physics, (1, 8, 8), 0.0)
    operator.capabilities = frozenset({"fixed", "same_shape"})
    return operator
