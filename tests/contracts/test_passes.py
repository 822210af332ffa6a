"""Passes and FLOPs: counted where they happen, without a trace in what is trained."""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from trained import BATCH, STEPS, assert_same, fit, weights

from cleanprior.cells.costs import training_costs, use_costs
from cleanprior.config import build, compose
from cleanprior.evaluation.routes import shared_route
from cleanprior.passes import Meter
from cleanprior.training.checkpoint import Store


def watched(network: nn.Module) -> Meter:
    meter = Meter()
    meter.watch({"net": network})
    return meter


@pytest.mark.parametrize("name", ["em_mmps", "ambient_gan", "gsure"])
def test_counting_changes_no_bit_of_a_training(setting, monkeypatch, name):
    counted, report = fit(setting(name))
    assert report.passes
    monkeypatch.setattr(Meter, "watch", lambda *_: [])
    plain, uncounted = fit(setting(name))
    assert uncounted.passes == {}
    assert_same(weights(counted), weights(plain))
    assert [h["loss"] for h in report.history] == [h["loss"] for h in uncounted.history]


def test_the_price_times_the_count_is_what_torch_counts_in_a_whole_training(setting):
    with FlopCounterMode(display=False) as counter:
        _, report = fit(setting("naive"))
    costs = training_costs(report)
    assert costs["train_forwards"] == costs["train_backwards"] == STEPS * BATCH
    # The counter also saw the two images on which each price was found.
    probe = 2 * sum(report.pass_flops["denoiser"].values())
    assert costs["train_flops"] + probe == counter.get_total_flops() > 0
    assert costs["uncounted"] == {}


def test_e_steps_and_extra_networks_are_in_the_costs(setting):
    naive, em, flow = (
        training_costs(fit(setting(name))[1]) for name in ("naive", "em_mmps", "flowdiff")
    )
    assert em["passes"]["denoiser"]["backward"] == STEPS * BATCH
    assert em["passes"]["denoiser"]["vjp"] > 0 and em["train_flops"] > 1.5 * naive["train_flops"]
    assert set(flow["passes"]) == {"denoiser", "flow"}


@pytest.mark.parametrize("name", ["mmps", "dps", "pigdm"])
def test_one_restoration_costs_the_passes_that_its_sampler_names(setting, name):
    method, problem, data, _ = setting("naive")
    method.setup(problem, torch.device("cpu"))
    networks = method.networks()
    steps = ["posterior.steps=4", "sampler.steps=4"]
    config = compose(["method=naive", f"posterior={name}", *steps])
    posterior, sampler = build(config["posterior"]), build(config["sampler"])
    prior = method.prior(networks)
    route = shared_route(name, prior, posterior, problem.operator, sampler)
    (shared,) = use_costs(networks, [route], data)
    some = data.batch(torch.arange(8))
    draw = prior.restore(some, problem.operator, posterior, 0)
    assert shared["restore_forwards"] == draw.evaluations
    assert 0 < shared["restore_backwards"] <= draw.backwards
    assert shared["sample_forwards"] == config["sampler"]["steps"]
    assert "sample_backwards" not in shared
    assert shared["restore_flops"] > shared["sample_flops"] / shared["sample_forwards"] > 0


def test_what_a_method_does_in_its_own_way_is_counted_and_what_it_cannot_is_absent(setting):
    method, problem, data, _ = setting("ambient_gan")
    method.setup(problem, torch.device("cpu"))
    networks = method.networks()
    (own,) = use_costs(networks, method.routes(networks), data)
    assert own.keys() == {"sample_flops", "sample_forwards"} and own["sample_forwards"] == 1


class Dropping(nn.Module):
    """Draws from the global generator and keeps running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_neither_random_numbers_nor_running_statistics_nor_gradients_are_touched():
    torch.manual_seed(0)
    plain = Dropping()
    counted = copy.deepcopy(plain)
    meter = watched(counted)
    x = torch.randn(5, 1, 8, 8)
    results = []
    for network in (plain, counted):
        torch.manual_seed(1)
        output = network(x)
        output.sum().backward()
        meter.price()
        results.append((output, torch.rand(3), network.state_dict(), network.layers[0].weight.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert_same(results[0][2], results[1][2])
    assert torch.equal(results[0][3], results[1][3])
    assert meter.passes == {"net": {"forward": 5, "backward": 5}}


def test_copies_and_fixed_weights_are_counted_and_a_stopped_meter_is_still():
    network = nn.Linear(4, 4)
    meter = watched(network)
    teacher = copy.deepcopy(network).requires_grad_(False)
    x = torch.ones(3, 4, requires_grad=True)
    teacher(x).sum().backward()
    with torch.no_grad():
        teacher(x)
    assert meter.passes == {"net": {"forward": 6, "vjp": 3}}
    meter.price()
    assert meter.flops == {"net": {"forward": 32, "vjp": 32}}
    meter.is_on = False
    teacher(x).sum().backward()
    assert meter.passes == {"net": {"forward": 6, "vjp": 3}}


def test_a_gradient_that_is_differentiated_again_counts_once_more():
    network = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    meter = watched(network)
    x = torch.ones(3, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert meter.passes["net"]["backward"] == 9  # the slope, its graph, and through the output


@dataclass(frozen=True)
class Base:
    mean: Tensor
    note: str


class OnParts(nn.Module):
    """Takes what only it knows, and returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, base: Base) -> tuple[Tensor, Tensor]:
        out = self.layer(x - base.mean)
        return out, out.sum(1)


class Stubborn(nn.Linear):
    """Refuses any other batch."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != 7:
            raise RuntimeError("only seven")
        return super().forward(x)


class Plain(nn.Module):
    """Has no operation with a formula."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cos()


def test_a_network_with_arguments_of_its_own_is_counted():
    network = OnParts()
    meter = watched(network)
    x = torch.randn(6, 4)
    first, second = network(x, base=Base(torch.zeros(6, 4), "a"))
    (first.sum() + second.sum()).backward()
    assert meter.passes == {"net": {"forward": 6, "backward": 6}}
    meter.price()
    assert meter.flops["net"]["forward"] == 32 and meter.uncounted == {}


@pytest.mark.parametrize(
    ("network", "reason"), [(Stubborn(4, 4), "only seven"), (Plain(), "FLOP formula")]
)
def test_a_network_that_cannot_be_priced_has_passes_and_a_reason(network, reason):
    meter = watched(network)
    network(torch.ones(7, 4))
    assert meter.total("forward") == 7
    assert meter.total_flops() is None and reason in meter.uncounted["net"]


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q = self.layer(x)
        return F.scaled_dot_product_attention(q, q, q)


def test_attention_costs_the_same_on_a_cpu_as_its_products():
    network = Attending()
    meter = watched(network)
    network(torch.randn(2, 4, 16, 8)).sum().backward()  # heads, positions, features
    meter.price()
    products = 2 * 2 * 4 * 16 * 16 * 8
    linear = 2 * 4 * 16 * 8 * 8
    assert meter.flops["net"]["forward"] == products + linear
    assert meter.flops["net"]["backward"] >= 2 * products + linear


def test_a_result_that_is_found_again_brings_its_passes(tmp_path):
    network = nn.Linear(4, 4)
    found = []
    for _ in range(2):
        meter = watched(network)
        store = Store(tmp_path, meter)
        store.once("a", lambda: ({"x": network(torch.ones(5, 4)).detach()}, {}))
        found.append(meter.passes)
        meter.is_on = False
    assert found == [{"net": {"forward": 5}}] * 2
