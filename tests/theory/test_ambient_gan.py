"""AmbientGAN: measurements of the generated law match y, and nothing else reaches the critic."""

from dataclasses import replace

import pytest
import torch
from cleanprior.methods.ambient_gan.method import critic_loss, generator_loss
from cleanprior.methods.ambient_gan.networks import Critic, Generator, SpectralNorm, halvings
from torch import nn

from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.errors import UserError
from cleanprior.progress import Progress
from cleanprior.seeding import generator_for
from cleanprior.training import Round, Session
from cleanprior.training.checkpoint import Store
from cleanprior.training.warning import codes

SMALL = ("generator_width=16", "critic_width=16", "latent=8")


def make_method(*overrides):
    keys = [f"method.{o}" for o in (*SMALL, *overrides)]
    return build(compose(["method=ambient_gan", *keys])["method"])


def start(method, problem, data):
    method.setup(problem, torch.device("cpu"))
    session = Session(data, None, {}, torch.device("cpu"), Store(None), Progress(), 0)
    method.begin_round(0, Round("train", 1), session)
    return session


def train(method, problem, data, steps, batch):
    keys = [f"training.budget={steps * batch}", f"training.batch={batch}", "training.ema=0.99"]
    trainer = build(compose([*keys, "training.device=cpu"])["training"])
    networks, report = trainer.fit(method, problem, data, 0)
    assert report.status == "done"
    assert report.images == steps * batch
    return networks, report


# -- the law that is learned -------------------------------------------------------------------


class Affine(nn.Module):
    """x = a z + b, one pixel."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.5))

    def forward(self, z):
        return (self.a * z + self.b).reshape(-1, 1, 1, 1)


class Quadratic(nn.Module):
    """D(y) = v y + w y^2: it tells first and second moments apart."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2))

    def forward(self, u):
        y = u.flatten(1)[:, 0]
        return self.weights[0] * y + self.weights[1] * y**2


def test_deconvolution_finds_the_variance_below_the_noise(make_operator, make_problem):
    operator = make_operator("denoising", (1, 1, 1), "sigma=0.5")
    x = torch.randn((20_000, 1, 1, 1), generator=generator_for(0, "x"))
    data = Measurements.draw(x, operator, 0, "train")
    method = make_method("latent=1", "gamma=1.0", "generator_lr=0.01", "critic_lr=0.02")
    with_networks(method, Affine(), Quadratic())
    networks, _ = train(method, make_problem(operator), data, 500, 512)
    found = networks["generator"]
    variance = float(found.a**2)
    assert variance == pytest.approx(float(data.y.var()) - 0.25, rel=0.03)
    assert float(found.b) == pytest.approx(float(data.y.mean()), abs=0.03)


def with_networks(method, generator, critic):
    """Exchange the networks of a method for those of a test."""

    def build():
        type(method).build(method)
        method.generator, method.critic = generator, critic

    method.build = build


COVARIANCE = torch.tensor([[0.6, 0.4], [0.4, 0.5]])


class Pair(nn.Module):
    """x = L z + b, two pixels."""

    def __init__(self):
        super().__init__()
        self.root, self.mean = nn.Parameter(0.5 * torch.eye(2)), nn.Parameter(torch.zeros(2))

    def forward(self, z):
        return (z @ self.root.T + self.mean).reshape(-1, 1, 1, 2)


class Moments(nn.Module):
    """Means and second moments of two pixels: their product is 0 unless both are seen."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(5))

    def forward(self, u):
        a, b = u[:, 0, 0].unbind(1)
        return torch.stack([a, b, a * a, b * b, a * b], 1) @ self.weights


def test_masked_pairs_show_the_law_that_zero_filled_ones_do_not_have(make_operator, make_problem):
    """Each pixel is hidden with probability 0.5: a quarter of the images shows the correlation."""
    operator = make_operator("inpainting", (1, 1, 2), "p=0.5", "sigma=0")
    x = torch.randn((20_000, 2), generator=generator_for(0, "x"))
    x = x @ torch.linalg.cholesky(COVARIANCE).T + torch.tensor([0.3, -0.2])
    data = Measurements.draw(x.reshape(-1, 1, 1, 2), operator, 0, "train")
    method = make_method("latent=2", "gamma=1.0", "generator_lr=0.01", "critic_lr=0.02")
    with_networks(method, Pair(), Moments())
    networks, _ = train(method, make_problem(operator), data, 300, 512)
    root = networks["generator"].root.detach()

    def error(covariance):
        return float((covariance - COVARIANCE).norm() / COVARIANCE.norm())

    assert error(root @ root.T) < 0.1
    assert error(torch.cov(data.y.flatten(1).T)) > 0.4
    assert (networks["generator"].mean - x.mean(0)).abs().max() < 0.05


# -- what the critic sees ----------------------------------------------------------------------

OPERATORS = {
    "inpainting": ("p=0.4", "sigma=0"),
    "blur": ("sigma=0",),
    "compressed_sensing": ("sigma=0",),
    "downsampling": ("sigma=0",),
}


class Recorder(nn.Module):
    """Keeps what it is shown, and scores it."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(())), []

    def forward(self, u):
        self.seen.append(u.detach())
        return self.weight * u.flatten(1).sum(1)


class Returns(nn.Module):
    """A generator that has found clean images, one after the other."""

    def __init__(self, x):
        super().__init__()
        self.x = nn.Parameter(x)
        self.last = None

    def forward(self, z):
        self.last = self.x * 1
        if self.last.requires_grad:
            self.last.retain_grad()
        return self.last


@pytest.fixture
def clean(digits_data):
    return digits_data.train[:12].clone()


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("scale", ["none", "inverse_keep"])
def test_real_and_fake_are_equal_where_the_images_and_operators_are(
    make_operator, make_problem, clean, monkeypatch, name, scale
):
    operator = make_operator(name, (1, 8, 8), *OPERATORS[name])
    data = Measurements.draw(clean, operator, 0, "train")
    method = make_method(f"scale={scale}", "gamma=0")
    start(method, make_problem(operator), data)
    method.generator, method.critic = Returns(clean), Recorder()
    monkeypatch.setattr(torch, "randint", lambda high, size, generator: torch.arange(12))
    method.loss(data.batch(torch.arange(12)), generator_for(0, "loss"), "critic")
    real, fake = method.critic.seen
    assert torch.equal(real, fake)
    assert real.shape[1] == 1 + operator.description_channels


def test_hidden_pixels_get_no_gradient_and_measurements_stay(make_operator, make_problem, clean):
    operator = make_operator("inpainting", (1, 8, 8), "p=0.5", "sigma=0.2")
    data = Measurements.draw(clean, operator, 0, "train")
    method = make_method("dequantisation=0.1")
    start(method, make_problem(operator), data)
    method.generator = Returns(clean)
    kept = []
    simulate = method.simulate
    method.simulate = lambda n, random: kept.append(simulate(n, random)) or kept[-1]
    loss = method.loss(data.batch(torch.arange(12)), generator_for(0, "loss"), "generator")
    loss.total.backward()
    gradient, mask = method.generator.last.grad, kept[0].params["mask"]
    assert (gradient[mask == 0] == 0).all()
    assert (gradient[mask == 1] != 0).any()
    method = make_method()
    before = data.hash
    networks, report = train(method, make_problem(operator), data, 4, 12)
    assert Measurements(data.y, data.params, data.sigma_y).hash == before
    assert report.costs["critic_evaluations"] == 4 * 3 * 12


def test_fakes_carry_fresh_noise_of_the_level_of_their_measurement(
    make_operator, make_problem, clean
):
    operator = make_operator("inpainting", (1, 8, 8), "p=0.5", "sigma=0.3")
    data = Measurements.draw(clean.repeat(50, 1, 1, 1), operator, 0, "train")
    half = torch.arange(len(data)) % 2 == 0
    data = replace(data, sigma_y=torch.where(half, 0.3, 0.0))
    method = make_method()
    start(method, make_problem(operator), data)
    like = data.batch(torch.arange(len(data)))
    x = clean.repeat(50, 1, 1, 1)
    first, second = (method.measure(x, like, generator_for(s, "noise")) for s in (0, 1))
    error = first - operator.A(x, data.params)
    seen = data.params["mask"] == 1
    assert (error[~seen] == 0).all()
    assert (error[~half] == 0).all()
    noise = error[half][seen[half]]
    assert float(noise.std()) == pytest.approx(0.3, rel=0.05)
    assert not torch.equal(first[half], second[half])
    fakes = [method.simulate(64, generator_for(s, "loss")) for s in (0, 1)]
    assert not torch.equal(fakes[0].params["mask"], fakes[1].params["mask"])
    known = {m.numpy().tobytes() for m in data.params["mask"]}
    assert {m.numpy().tobytes() for m in fakes[0].params["mask"]} <= known


def test_a_network_gets_gradients_in_its_own_turn_only(make_operator, make_problem, clean):
    operator = make_operator("inpainting", (1, 8, 8))
    data = Measurements.draw(clean, operator, 0, "train")
    method = make_method("critic_steps=3")
    start(method, make_problem(operator), data)
    assert method.rounds(7)[0].turns == ("critic", "critic", "critic", "generator")
    for turn, network in method.networks().items():
        method.loss(data.batch(torch.arange(12)), generator_for(0, "loss"), turn).total.backward()
        others = [n for k, n in method.networks().items() if k != turn]
        assert all(p.grad is not None for p in network.parameters())
        assert all(p.grad is None for n in others for p in n.parameters())
        network.zero_grad(set_to_none=True)


# -- losses and networks -----------------------------------------------------------------------


def test_losses_are_their_formulas():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    expected = {
        "hinge": (0.25 + 0.75, 0.75),
        "wgan_gp": (-0.75 - 1.25, 0.75),
        "dcgan": (
            -(real.sigmoid().log().mean() + (1 - fake.sigmoid()).log().mean()),
            -fake.sigmoid().log().mean(),
        ),
    }
    for name, (critic, generator) in expected.items():
        assert float(critic_loss(name, real, fake)) == pytest.approx(float(critic))
        assert float(generator_loss(name, fake)) == pytest.approx(float(generator))


class Slope(nn.Module):
    """D(u) = 3 sum of the image's pixels."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(3.0))

    def forward(self, u):
        return self.weight * u[:, 0].flatten(1).sum(1)


@pytest.mark.parametrize("loss", ["hinge", "wgan_gp", "dcgan"])
def test_the_penalty_counts_observed_entries(make_operator, make_problem, clean, loss):
    operator = make_operator("inpainting", (1, 8, 8), "p=0.5")
    data = Measurements.draw(clean, operator, 0, "train")
    method = make_method(f"loss_function={loss}", "gamma=4")
    start(method, make_problem(operator), data)
    method.critic = Slope()
    batch = data.batch(torch.arange(12))
    parts = method.loss(batch, generator_for(0, "loss"), "critic").parts
    seen = data.params["mask"].flatten(1).sum(1)
    share = seen.mean() / 64
    r1 = 0.5 * 4 * share * (9 * seen).mean()
    gp = 4 * ((3 * seen.sqrt() - 1) ** 2).mean()
    assert float(parts["penalty"]) == pytest.approx(float(gp if loss == "wgan_gp" else r1))


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 2, 3, 3)])
def test_the_spectral_norm_is_exact_with_its_gradient(shape):
    weight = torch.randn(shape, generator=generator_for(0, "w")).double().requires_grad_()
    mine = SpectralNorm()(weight)
    expected = weight / torch.linalg.matrix_norm(weight.flatten(1), ord=2)
    assert torch.allclose(mine, expected)
    direction = torch.randn(shape, generator=generator_for(1, "w")).double()
    first, second = (
        torch.autograd.grad((t * direction).sum(), weight)[0] for t in (mine, expected)
    )
    assert torch.allclose(first, second)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 1, 2), (2, 28, 12), (1, 7, 9)])
def test_networks_follow_the_size_of_the_image(shape):
    assert {(1, 8, 8): 1, (3, 32, 32): 3, (2, 28, 12): 2}.get(shape, 0) == halvings(shape)
    x = Generator(shape, 8, 16)(torch.zeros(2, 8))
    assert x.shape == (2, *shape)
    assert Critic(shape, 2, 16)(torch.zeros(2, shape[0] + 2, *shape[1:])).shape == (2,)


# -- what is said ------------------------------------------------------------------------------


def test_a_fixed_blur_is_warned_of_and_masks_are_not(make_operator, make_problem):
    method = make_method()
    for name, code in (("blur", "null"), ("inpainting", ""), ("downsampling", "null")):
        problem = make_problem(make_operator(name, (1, 8, 8)))
        assert method.supports(problem) is None
        assert codes(method.warnings(problem)) == code


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss_function=wgan", "loss_function='wgan'; allowed: hinge, wgan_gp, dcgan"),
        ("scale=keep", "scale='keep'; allowed: none, inverse_keep"),
        ("gamma=-1", "gamma=-1; allowed: at least 0"),
        ("critic_steps=0", "critic_steps=0; allowed: at least 1"),
        ("beta1=1", r"beta1=1; allowed: \[0, 1\)"),
        ("critic_lr=0", "critic_lr=0; allowed: above 0"),
        ("generator_width=20", "generator_width=20; allowed: multiples of 8"),
    ],
)
def test_a_value_out_of_range_is_told(override, message):
    with pytest.raises(UserError, match=message):
        make_method(override)
