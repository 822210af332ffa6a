"""Small trainings that the contract tests of trainers and methods share."""

import pytest
import torch

from cleanprior import registry
from cleanprior.training import Trainer

SHAPE = (1, 8, 8)
IMAGES = 48
BATCH = 8
STEPS = 20
# Small E-steps and flows; methods that are not named here run as their YAML has them.
CHEAP = {
    "em": ["method.posterior.steps=3", "method.scale_images=6", "method.scales=[0.5,1.0]"],
    "em_mmps": ["method.posterior.steps=3", "method.gaussian_iterations=1"],
    "flowdiff": [
        "method.couplings=2",
        "method.hidden=8",
        "method.context=8",
        "method.gaussian_iterations=1",
        "method.final_draws=1",
    ],
}
METHODS = sorted(registry.methods())
LEARNERS = [m for m in METHODS if m != "observations"]
over_learners = pytest.mark.parametrize("name", LEARNERS)


def make_trainer(steps=STEPS, batch=BATCH, **changes):
    values = {
        "budget": steps * batch,
        "batch": batch,
        "lr": 2e-3,
        "weight_decay": 0.0,
        "warmup": 2,
        "final_lr": 0.05,
        "ema": 0.9,
        "clip": 1.0,
        "precision": "fp32",
        "device": "cpu",
        "sigma_data": 0.5,
        "checkpoint_seconds": 1e9,
        "log_every": 1,
    }
    return Trainer(**(values | changes))


def fit(setting, seed=0, folder=None, trainer=None):
    method, problem, data, clean = setting
    return (trainer or make_trainer()).fit(method, problem, data, seed, folder, clean)


def weights(networks):
    return {f"{n}.{k}": v.clone() for n, m in networks.items() for k, v in m.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


def differs(a, b):
    return any(not torch.equal(a[k], b[k]) for k in a)
