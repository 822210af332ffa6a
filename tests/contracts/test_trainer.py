"""The one loop: reproducible, under one budget, the same for each process and network."""

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from trained import (
    BATCH,
    METHODS,
    SHAPE,
    STEPS,
    assert_same,
    differs,
    fit,
    make_trainer,
    over_learners,
    weights,
)

from cleanprior.diffusion.denoiser import Denoiser, denoising_loss
from cleanprior.training import Loss, Method, Round, batches
from cleanprior.training import run as run_module
from cleanprior.training.batches import batch_index
from cleanprior.training.watch import Watch


@over_learners
def test_same_seed_same_weights_and_another_seed_differs(setting, trained, name):
    *_, report, first = trained(name)
    torch.manual_seed(2)
    second, _ = fit(setting(name))
    assert report.status == "done"
    assert_same(first, weights(second))
    other, _ = fit(setting(name, seed=1), seed=1)
    assert differs(first, weights(other))


@over_learners
def test_training_moves_the_weights_and_leaves_every_global_generator_alone(setting, name):
    method, problem, data, clean = setting(name)
    method.setup(problem, torch.device("cpu"))
    start = weights(method.networks())
    torch.manual_seed(7)
    np.random.seed(7)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    networks, report = fit((method, problem, data, clean))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == before_numpy).all()
    after = weights(networks)
    for network in networks:
        inside = [k for k in after if k.startswith(f"{network}.")]
        assert any(not torch.equal(after[k], start[k]) for k in inside), network
    assert all(v.isfinite().all() for v in after.values())
    assert method.spent(report.steps) == STEPS
    assert report.images == STEPS * BATCH
    assert not any(p.requires_grad or m.training for m in networks.values() for p in m.parameters())


@over_learners
def test_the_prior_of_a_trained_method_denoises(trained, name):
    built, networks, *_ = trained(name)
    prior = built[0].prior(networks)
    if prior is None:
        pytest.skip(f"{name} has no denoiser")
    x = torch.zeros(3, *SHAPE)
    assert prior(x, 0.5).shape == x.shape
    assert prior(x, 0.5).isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_own_ways_work_after_training(trained, name):
    (method, _, data, _), networks, *_ = trained(name)
    batch = data.batch(torch.arange(4))
    generator = torch.Generator().manual_seed(0)
    for route in method.routes(networks):
        assert route.restore or route.sample
        if route.restore:
            generators = [torch.Generator().manual_seed(i) for i in range(4)]
            draw = route.restore(batch, generators)
            x, evaluations = draw.x, draw.evaluations
            assert x.shape == (4, *SHAPE)
            assert x.isfinite().all()
            assert evaluations >= 0
        if route.sample:
            assert route.sample(3, generator).shape == (3, *SHAPE)


def test_a_method_without_networks_meets_its_measurements_when_resumed_too(setting, tmp_path):
    for _ in range(2):
        built = setting("observations")
        networks, report = fit(built, folder=tmp_path)
        assert (networks, report.status) == ({}, "done")
        (route,) = built[0].routes(networks)
        assert route.sample(3, torch.Generator().manual_seed(0)).shape == (3, *SHAPE)


# -- the budget ------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Planned(Method):
    """A method whose plan and loss a test chooses."""

    plan: tuple = (Round("train", STEPS),)
    spoil_at: int = -1

    def build(self):
        self.calls = Counter()
        self.denoiser = self.problem.denoiser()
        self.critic = nn.Linear(1, 1)

    def networks(self):
        return {"denoiser": self.denoiser, "critic": self.critic}

    def rounds(self, budget):
        return self.plan

    def loss(self, batch, generator, turn):
        self.calls[turn] += 1
        if turn == "critic":
            return Loss(self.critic(torch.ones(1, 1)).square().sum(), {"size": torch.tensor(1.0)})
        total = denoising_loss(self.denoiser, batch.y, generator)
        return Loss(total * (float("nan") if self.calls[turn] == self.spoil_at else 1))

    def prior(self, averaged):
        return None


@pytest.fixture
def planned(setting):
    def make(**arguments):
        _, problem, data, _ = setting("naive")
        return Planned(**arguments), problem, data, None

    return make


@pytest.mark.parametrize("planned_steps", [STEPS - 1, STEPS + 1, 0])
def test_a_plan_that_misses_the_budget_is_refused(planned, planned_steps):
    message = f"plans {planned_steps} steps of 'denoiser'; the budget, equal for all methods, is 20"
    with pytest.raises(ValueError, match=message):
        fit(planned(plan=(Round("train", planned_steps),)))


def test_turns_of_the_budgeted_network_add_up_and_others_are_free(planned):
    plan = (
        Round("a", 4, ("denoiser", "critic", "denoiser")),
        Round("b", 12, ("denoiser",), begin="averaged"),
        Round("c", 5, ("critic",), begin="scratch"),
    )
    built = planned(plan=plan)
    _, report = fit(built)
    assert report.steps == {"denoiser": STEPS, "critic": 9}
    assert report.images == STEPS * BATCH
    assert [h["round"] for h in report.history].count("b") == 12


@pytest.mark.parametrize("step", [1, 5])
def test_a_loss_that_is_not_finite_ends_the_run_as_diverged(planned, step):
    networks, report = fit(planned(spoil_at=step))
    assert report.status == "diverged"
    assert report.steps["denoiser"] == step - 1
    assert all(v.isfinite().all() for v in weights(networks).values())


@pytest.mark.parametrize("step", [1, 5, STEPS])
def test_numbers_that_are_read_a_step_late_change_no_weight(planned, monkeypatch, step):
    """What a GPU's training does: a step that diverges is seen in the next one, and skipped."""
    monkeypatch.setattr(run_module, "Watch", lambda _, ranks: Watch(True, ranks))
    spoilt, report = fit(planned(spoil_at=step))
    assert report.status == "diverged"
    assert all(v.isfinite().all() for v in weights(spoilt).values())
    late, told = fit(planned())
    monkeypatch.undo()
    at_once, expected = fit(planned())
    assert told.history == expected.history and told.steps == expected.steps
    assert_same(weights(late), weights(at_once))


def test_a_gradient_that_is_not_finite_ends_the_run_as_diverged(planned):
    built = planned()
    method = built[0]

    def loss(batch, generator, turn):
        weight = next(method.denoiser.parameters())
        return Loss((weight - weight.detach()).abs().sqrt().sum())

    method.loss = loss
    assert fit(built)[1].status == "diverged"


def test_a_new_round_begins_as_its_plan_says(planned):
    """``averaged`` starts from the averaged weights, ``scratch`` from new ones."""
    plan = (Round("a", 10), Round("b", 5, begin="averaged"), Round("c", 5, begin="scratch"))
    built = planned(plan=plan)
    method, starts, ends = built[0], {}, {}
    loss = method.loss

    def begin_round(number, round, session):
        ends[round.name] = weights(session.averaged)
        return session.measurements

    def noting(batch, generator, turn):
        seen = method.calls.total()
        if seen in (0, 10) and len(starts) < 2:
            starts[seen] = {
                f"denoiser.{k}": v.clone() for k, v in method.denoiser.state_dict().items()
            }
        return loss(batch, generator, turn)

    method.begin_round, method.loss = begin_round, noting
    fit(built)
    denoiser = {k: v for k, v in ends["b"].items() if k.startswith("denoiser.")}
    assert_same(starts[10], denoiser)
    assert differs(starts[0], starts[10])


def test_weights_are_averaged(planned):
    """After one step the average is what the warm-up of the decay, 1 / 10, makes of two points."""
    built = planned(plan=(Round("train", 2),))
    networks, _ = fit(built, trainer=make_trainer(steps=2))
    current = weights(built[0].networks())
    assert differs(weights(networks), current)
    assert isinstance(networks["denoiser"], Denoiser)


# -- batches ---------------------------------------------------------------------------------------


@pytest.fixture(params=["listed", "computed"], scope="module")
def orders(request):
    """Orders of epochs as lists, and as those of very many images are computed."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "computed":
            patch.setattr(batches, "LISTED", 0)
        yield request.param


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40), batch=st.integers(1, 17), seed=st.integers(0, 5), ranks=st.integers(1, 3)
)
def test_each_image_comes_once_an_epoch_whatever_the_batch(orders, n, batch, seed, ranks):
    epochs = 3
    steps = -(-epochs * n // (batch * ranks))
    parts = [
        batch_index(n, batch, k, seed, 0, rank, ranks)
        for k in range(steps)
        for rank in range(ranks)
    ]
    assert all(len(p) == batch for p in parts)
    order = torch.cat(parts)
    for epoch in range(epochs):
        inside = order[epoch * n : (epoch + 1) * n]
        assert sorted(inside.tolist()) == list(range(n))


def test_processes_share_an_epoch_without_overlap(orders):
    together = batch_index(64, 16, 1, 0, 0)
    split = [batch_index(64, 8, 1, 0, 0, rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat(split), together)


def test_the_order_of_very_many_images_is_no_list_and_no_pattern(monkeypatch):
    monkeypatch.setattr(batches, "_permutation", None)
    order = torch.cat([batch_index(10**8, 4096, k, 0, 0) for k in range(5)])
    assert len(order.unique()) == len(order)
    x = order.double() / 10**8
    # Uniform, and no place follows from the one before: five standard deviations of 20,480 draws.
    assert abs(x.mean() - 0.5) < 5 * 12**-0.5 * len(x) ** -0.5
    assert abs(torch.corrcoef(torch.stack([x[1:], x[:-1]]))[0, 1]) < 5 * len(x) ** -0.5
    again = batch_index(10**8, 4096, 3, 0, 0)
    assert torch.equal(again, order[3 * 4096 : 4 * 4096])


def test_epochs_rounds_and_seeds_have_their_own_order(orders):
    found = [
        batch_index(50, 50, 0, 0, 0),
        batch_index(50, 50, 1, 0, 0),
        batch_index(50, 50, 0, 0, 1),
        batch_index(50, 50, 0, 1, 0),
    ]
    assert len({tuple(o.tolist()) for o in found}) == 4


DISTRIBUTED = """
import sys, torch
torch.set_num_threads(1)
from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.training import Problem
from safetensors.torch import save_file

config = compose(["method=naive", "training.budget=64", "training.batch=4", "training.device=cpu"])
data = build(config["data"])
operator = build(config["operator"], image_shape=(1, 8, 8))
measured = Measurements.draw(data.train[:32], operator, 0, "train")
trainer, method = build(config["training"]), build(config["method"])
backbone = {**config["backbone"], "hid_channels": [8, 16]}
backbone.pop("name"), backbone.pop("about")
problem = Problem(operator, "inpainting", backbone, 0.5, 0.0)
averaged, report = trainer.fit(method, problem, measured, 0)
assert report.images == 64, report.images
assert report.steps == {"denoiser": 8}, report.steps
rank = trainer.accelerator.process_index
save_file(averaged["denoiser"].state_dict(), f"{sys.argv[1]}/rank{rank}.safetensors")
"""


def test_two_processes_share_the_budget_and_end_with_the_same_weights(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(DISTRIBUTED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc_per_node", "2", str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    first = load_file(tmp_path / "rank0.safetensors")
    second = load_file(tmp_path / "rank1.safetensors")
    assert all(torch.equal(first[k], second[k]) for k in first)
