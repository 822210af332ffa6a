"""Small trainings that the contract tests of trainers and methods share."""

import pytest
import torch

from cleanprior.config import registry
from cleanprior.testing.training import (
    BATCH,
    IMAGES,
    STEPS,
    assert_same,
    fit,
    make_trainer,
    weights,
)

SHAPE = (1, 8, 8)
# A cell in seconds.
TINY = [
    "training.budget=128",
    "training.batch=16",
    "evaluation.samples=60",
    "evaluation.test_images=4",
    "evaluation.draws=2",
    "evaluation.sampling_seeds=[0]",
    "evaluation.features=pixels",
    "posterior.steps=3",
    "sampler.steps=3",
]
# Small E-steps and flows; methods that are not named here run as their YAML has them.
CHEAP = {
    "diffem": [
        "method.posterior.steps=3",
        "method.gaussian_iterations=1",
        "method.final_draws=1",
    ],
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
# A preset is its method with other values.
METHODS = sorted(registry.methods().keys() - registry.presets().keys())
LEARNERS = [m for m in METHODS if m != "observations"]
over_learners = pytest.mark.parametrize("name", LEARNERS)


def differs(a, b):
    return any(not torch.equal(a[k], b[k]) for k in a)


__all__ = [
    "BATCH",
    "CHEAP",
    "IMAGES",
    "LEARNERS",
    "METHODS",
    "SHAPE",
    "STEPS",
    "assert_same",
    "differs",
    "fit",
    "make_trainer",
    "over_learners",
    "weights",
]
