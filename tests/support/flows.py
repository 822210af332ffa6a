"""Small FlowDiffs in a session, for the tests of both flows."""

import torch

from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.progress import Progress
from cleanprior.seeding import generator_for
from cleanprior.training import Round, Session
from cleanprior.training.averages import Averages
from cleanprior.training.checkpoint import Store

CPU = torch.device("cpu")
OPERATORS = ["inpainting", "denoising", "blur"]


def make_flowdiff(*overrides):
    dense = ["method.hidden=16", "method.couplings=4", "method.context=8"]
    conv = ["method.conv_couplings=2", "method.conv_hidden=8", "method.conv_context=8"]
    return build(compose(["method=flowdiff", *dense, *conv, *overrides])["method"])


def make_measurements(operator, n, seed=0, scale=0.6):
    """Measurements of smooth random images; no clean image is kept."""
    x = torch.randn((n, *operator.image_shape), generator=generator_for(seed, "x"))
    return Measurements.draw((scale * x).cumsum(3).tanh(), operator, seed, "train")


def begin(method, problem, measurements, name="pre-train"):
    method.setup(problem, CPU)
    averaged = Averages(method.networks(), 0.9).modules
    session = Session(measurements, None, averaged, CPU, Store(None), Progress(), problem.seed)
    method.begin_round(0, Round(name, 1), session)
    return session


def randomise(module, seed=0, scale=0.3):
    """Give every weight, the zero last layers included, a random value."""
    generator = generator_for(seed, "weights")
    for p in module.parameters():
        p.data = scale * torch.randn(p.shape, generator=generator, dtype=p.dtype)
