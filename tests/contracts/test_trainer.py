"""The one loop: reproducible, resumable bit for bit, and blind to clean images."""

import gc
import subprocess
import sys
import types
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from cleanprior import registry
from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.diffusion.denoiser import Denoiser, denoising_loss
from cleanprior.errors import UserError
from cleanprior.training import Loss, Method, Round, Trainer
from cleanprior.training.batches import batch_index
from cleanprior.training.checkpoint import Store, read_tensors, write_tensors

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


@pytest.fixture
def setting(make_operator, make_problem, digits_data):
    """Everything that training one method needs, on the first problem that it supports."""

    def make(name, seed=0, x=None):
        config = compose([f"method={name}", *CHEAP.get(name, [])])
        for operator_name, sigma in (
            ("inpainting", "0"),
            ("inpainting", "0.1"),
            ("denoising", "0.3"),
        ):
            method = build(config["method"])
            operator = make_operator(operator_name, SHAPE, f"sigma={sigma}")
            problem = make_problem(operator, seed)
            if method.supports(problem) is None:
                break
        else:
            pytest.fail(f"{name} supports none of the problems that are tried")
        x = digits_data.train[:IMAGES].clone() if x is None else x
        data = Measurements.draw(x, operator, 0, "train")
        entitled = {"all": len(x)}.get(method.clean_images, method.clean_images)
        clean = x[: min(entitled, 10)].clone() if entitled else None
        return method, problem, data, clean

    return make


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


# -- seeds -----------------------------------------------------------------------------------------


@over_learners
def test_same_seed_same_weights_and_another_seed_differs(setting, name):
    torch.manual_seed(1)
    first, report = fit(setting(name))
    torch.manual_seed(2)
    second, _ = fit(setting(name))
    assert report.status == "done"
    assert_same(weights(first), weights(second))
    other, _ = fit(setting(name, seed=1), seed=1)
    assert differs(weights(first), weights(other))


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
    assert report.steps[method.budgeted] == STEPS
    assert report.images == STEPS * BATCH
    assert not any(p.requires_grad or m.training for m in networks.values() for p in m.parameters())


@over_learners
def test_the_prior_of_a_trained_method_denoises(setting, name):
    built = setting(name)
    networks, _ = fit(built)
    prior = built[0].prior(networks)
    if prior is None:
        pytest.skip(f"{name} has no denoiser")
    x = torch.zeros(3, *SHAPE)
    assert prior(x, 0.5).shape == x.shape
    assert prior(x, 0.5).isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_own_ways_work_after_training(setting, name):
    built = setting(name)
    method, _, data, _ = built
    networks, _ = fit(built)
    batch = data.batch(torch.arange(4))
    generator = torch.Generator().manual_seed(0)
    for way in method.ways(networks):
        assert way.restore or way.sample
        if way.restore:
            generators = [torch.Generator().manual_seed(i) for i in range(4)]
            x, evaluations = way.restore(batch, generators)
            assert x.shape == (4, *SHAPE)
            assert x.isfinite().all()
            assert evaluations >= 0
        if way.sample:
            assert way.sample(3, generator).shape == (3, *SHAPE)


def test_a_method_without_networks_meets_its_measurements_when_resumed_too(setting, tmp_path):
    for _ in range(2):
        built = setting("observations")
        networks, report = fit(built, folder=tmp_path)
        assert (networks, report.status) == ({}, "done")
        (way,) = built[0].ways(networks)
        assert way.sample(3, torch.Generator().manual_seed(0)).shape == (3, *SHAPE)


# -- interruptions ---------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def run_with_interruptions(make, folder, arm):
    """Start again after every interruption, each time with new objects, as a new process would."""
    for attempt in range(200):
        built = make()
        arm(built[0], attempt)
        try:
            networks, report = fit(built, 0, folder, make_trainer(checkpoint_seconds=0))
        except Interrupted:
            continue
        return networks, report, attempt
    pytest.fail("the run never ended")


@over_learners
def test_resumed_is_uninterrupted_bit_for_bit(setting, tmp_path, name):
    def arm(method, attempt):
        calls, loss = Counter(), method.loss

        def interrupted(*arguments):
            calls["loss"] += 1
            if calls["loss"] == 7:
                raise Interrupted
            return loss(*arguments)

        method.loss = interrupted

    expected, report = fit(setting(name))
    networks, resumed, attempts = run_with_interruptions(lambda: setting(name), tmp_path, arm)
    assert attempts >= 3
    assert_same(weights(networks), weights(expected))
    assert (resumed.steps, resumed.images) == (report.steps, report.images)
    assert resumed.costs == report.costs
    assert resumed.log == report.log
    assert [h["loss"] for h in resumed.history] == [h["loss"] for h in report.history]


@pytest.mark.parametrize("name", ["em", "em_mmps"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_resumed_at_the_end_of_a_round_is_uninterrupted(
    setting, tmp_path, monkeypatch, name, moment
):
    """A stop around the moment in which a round's E-step results are removed."""
    expected, report = fit(setting(name))
    clear, calls = Store.clear, Counter()

    def interrupted(store):
        calls["clear"] += 1
        if moment == "after":
            clear(store)
        if calls["clear"] % 2:
            raise Interrupted
        clear(store)

    monkeypatch.setattr(Store, "clear", interrupted)
    networks, resumed, attempts = run_with_interruptions(
        lambda: setting(name), tmp_path, lambda *_: None
    )
    assert attempts >= 1
    assert_same(weights(networks), weights(expected))
    assert resumed.costs == report.costs


def test_an_e_step_result_is_computed_once(tmp_path):
    store, calls = Store(tmp_path), []

    def compute():
        calls.append(1)
        return {"x": torch.arange(3.0)}, {"evaluations": 5.0}

    for _ in range(2):
        tensors, costs = store.once("a", compute)
        assert tensors["x"].tolist() == [0, 1, 2]
        assert costs == {"evaluations": 5.0}
    assert len(calls) == 1
    store.clear()
    store.once("a", compute)
    assert len(calls) == 2


def test_a_finished_run_is_not_trained_again(setting, tmp_path):
    expected, _ = fit(setting("naive"), folder=tmp_path)
    built = setting("naive")
    built[0].loss = lambda *_: pytest.fail("trained again")
    again, report = fit(built, folder=tmp_path)
    assert_same(weights(again), weights(expected))
    assert report.steps == {"denoiser": STEPS}


def test_a_damaged_checkpoint_is_named(setting, tmp_path):
    fit(setting("naive"), folder=tmp_path)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"checkpoint\.safetensors' is damaged; remove it to start"):
        fit(setting("naive"), folder=tmp_path)


def test_a_refused_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"x": torch.ones(2)}, {"step": 1})

    def refuse(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("cleanprior.training.checkpoint.save_file", refuse)
    with pytest.raises(UserError, match="No space left on device; earlier results are intact"):
        write_tensors(path, {"x": torch.zeros(2)}, {"step": 2})
    tensors, meta = read_tensors(path)
    assert tensors["x"].tolist() == [1, 1]
    assert meta == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]


# -- clean images ----------------------------------------------------------------------------------

OPAQUE = (
    type,
    types.ModuleType,
    types.FrameType,
    types.CodeType,
    str,
    bytes,
    int,
    float,
    type(None),
)


def tensors_reachable(*roots):
    """Yield every tensor that attributes, containers and closures of the roots lead to."""
    seen, queue = set(), list(roots)
    while queue:
        node = queue.pop()
        if id(node) in seen or isinstance(node, OPAQUE):
            continue
        seen.add(id(node))
        if isinstance(node, torch.Tensor):
            yield node
            if node._base is not None:
                queue.append(node._base)
        elif isinstance(node, types.FunctionType):
            queue.extend(gc.get_referents(*(node.__closure__ or ())))
            queue.extend(node.__defaults__ or ())
        else:
            queue.extend(gc.get_referents(node))


def holds_a_clean_image(tensor, clean_rows, size):
    """Whether a whole clean image stands anywhere in a tensor's memory, also outside its view."""
    if tensor.dtype not in (torch.float32, torch.float64):
        return False
    whole = torch.tensor([], dtype=tensor.dtype).set_(tensor.detach().cpu().untyped_storage())
    if len(whole) % size:
        return False
    return any(row.tobytes() in clean_rows for row in whole.reshape(-1, size).float().numpy())


@pytest.mark.parametrize("name", METHODS)
def test_clean_images_cannot_be_reached_unless_entitled(setting, digits_data, name):
    built = setting(name)
    method, problem, data, clean = built
    x = digits_data.train[:IMAGES]
    sessions, begin = [], method.begin_round

    def begin_round(number, round, session):
        training_set = begin(number, round, session)
        sessions.extend([session, training_set])
        return training_set

    method.begin_round = begin_round
    networks, report = fit(built)
    rows = {row.tobytes() for row in x.flatten(1).numpy()}
    found = list(tensors_reachable(method, sessions, problem, data, networks, report))
    assert any(t is data.y for t in found), "the walk reaches the measurements"
    holders = [t.shape for t in found if holds_a_clean_image(t, rows, 64)]
    if clean is None:
        assert not holders
    else:
        assert holders, "the walk finds the clean images where a method is entitled to them"
        assert len(sessions[0].clean) == len(clean)


def test_the_walk_finds_a_hidden_clean_image(digits_data):
    x = digits_data.train[:4].clone()
    rows = {row.tobytes() for row in x.flatten(1).numpy()}
    hidden = {"deep": [lambda: x[1:2]], "view": x[2, 0, 0, :3]}
    for part in ("deep", "view"):
        assert any(holds_a_clean_image(t, rows, 64) for t in tensors_reachable(hidden[part]))


@pytest.mark.parametrize("name", LEARNERS)
def test_canary_weights_do_not_change_when_clean_images_become_nan(setting, digits_data, name):
    built = setting(name)
    if built[3] is not None:
        pytest.skip(f"{name} is entitled to clean images")
    expected, _ = fit(built)
    x = digits_data.train[:IMAGES].clone()
    spoiled = setting(name, x=x)
    x.fill_(float("nan"))
    networks, report = fit(spoiled)
    assert report.status == "done"
    assert_same(weights(networks), weights(expected))


def test_the_canary_would_sing(setting, digits_data):
    """The oracle, which does read clean images, diverges when they are NaN."""
    method, problem, data, clean = setting("oracle")
    _, report = fit((method, problem, data, torch.full_like(clean, float("nan"))))
    assert report.status == "diverged"


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


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40), batch=st.integers(1, 17), seed=st.integers(0, 5), ranks=st.integers(1, 3)
)
def test_each_image_comes_once_an_epoch_whatever_the_batch(n, batch, seed, ranks):
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


def test_processes_share_an_epoch_without_overlap():
    together = batch_index(64, 16, 1, 0, 0)
    split = [batch_index(64, 8, 1, 0, 0, rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat(split), together)


def test_epochs_rounds_and_seeds_have_their_own_order():
    orders = [
        batch_index(50, 50, 0, 0, 0),
        batch_index(50, 50, 1, 0, 0),
        batch_index(50, 50, 0, 0, 1),
        batch_index(50, 50, 0, 1, 0),
    ]
    assert len({tuple(o.tolist()) for o in orders}) == 4


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
