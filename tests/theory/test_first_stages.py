"""Self-supervised first stages: what their losses teach on Gaussian images; restoration."""

import pytest
import torch
from pair import SHAPE, SIGMA, C, Linear
from torch import nn

from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.diffusion.denoiser import SIGMA_MIN, Denoiser
from cleanprior.errors import UserError
from cleanprior.operators.base import take
from cleanprior.progress import Progress
from cleanprior.seeding import generator_for
from cleanprior.testing.parts import make_operator
from cleanprior.training import Session
from cleanprior.training.checkpoint import Store

LINE = torch.tensor([[1.0, 0.6, 0.3], [0.6, 0.8, 0.5], [0.3, 0.5, 0.9]]).double()
ALL = ("ssdu_then_train", "es_then_train", "r2r_then_train", "moi_then_train")


class Table(Denoiser):
    """One matrix for each mask of a line of pixels; it keeps the levels that it is asked at."""

    def __init__(self, pixels):
        super().__init__(nn.Identity(), 0.5, 1)
        self.matrices = nn.Parameter(torch.zeros(2**pixels, pixels, pixels))
        self.bits = 2 ** torch.arange(pixels)
        self.levels = []

    def forward(self, x, sigma, condition=None):
        self.levels.append(sigma)
        number = (condition.flatten(1).long() * self.bits).sum(1)
        return (self.matrices[number] @ x.flatten(1)[:, :, None]).reshape(x.shape)

    def of(self, seen):
        """Return the matrix under which these pixels are seen."""
        return self.matrices[sum(2**j for j in seen)].detach().double()


def method_on(name, operator, network, data, *overrides):
    """Return a method inside a session, as its YAML says, with another restorer."""
    method = build(compose([f"method={name}", *(f"method.{o}" for o in overrides)])["method"])
    trainer = build(compose([f"method={name}"])["training"])
    config = compose([f"method={name}", "backbone.hid_channels=[8,8]", "backbone.hid_blocks=[1,1]"])
    method.setup(trainer.problem(operator, config), torch.device("cpu"))
    assert method.supports(method.problem) is None
    return inside(method, network, data)


def inside(method, network, data):
    method.restorer = network
    method._session = Session(data, None, {}, torch.device("cpu"), Store(None), Progress(), 0)
    return method


def gaussian(covariance, operator, count=200_000):
    """Return measurements of Gaussian lines of pixels."""
    root = torch.linalg.cholesky(covariance).float()
    x = torch.randn((count, len(root)), generator=generator_for(0, "x")) @ root.T
    return Measurements.draw(x.reshape(count, 1, 1, -1), operator, 0, "train")


def minimise(method, data, steps=15):
    """Minimise the loss of stage 1 over all measurements; its draws stay the same."""
    batch = data.batch(torch.arange(len(data)))
    parameters = list(method.restorer.parameters())
    search = torch.optim.LBFGS(
        parameters, max_iter=steps, line_search_fn="strong_wolfe", tolerance_change=1e-10
    )

    def closure():
        search.zero_grad()
        total = method.loss(batch, generator_for(0, "loss"), "restorer").total
        total.backward()
        return total

    search.step(closure)
    print("EVALS", search.state[parameters[0]]["func_evals"])
    return method.restorer


def conditional(covariance, seen, noise=0.0):
    """Return E[x | x_seen + noise] as a matrix."""
    inner = covariance[seen][:, seen] + noise**2 * torch.eye(len(seen), dtype=torch.float64)
    found = torch.zeros_like(covariance)
    found[:, seen] = covariance[:, seen] @ torch.linalg.inv(inner)
    return found


def off(found, covariance, seen, noise=0.0):
    """Return how far a matrix is from the conditional mean, as a root of the mean of squares."""
    return (found.of(seen) - conditional(covariance, seen, noise)).square().mean().sqrt()


def one_mask(mask):
    """Return the operator whose mask, a line, is the same for all images."""
    operator = make_operator("inpainting", (1, 1, len(mask)), "p=0.5")
    return operator.with_law_of({"mask": torch.tensor(mask).repeat(8, 1, 1, 1)})


# -- what the losses teach -------------------------------------------------------------------------


def test_recorruption_teaches_the_mean_given_the_noisier_image():
    operator = make_operator("denoising", SHAPE, f"sigma={SIGMA}")
    data = gaussian(C, operator, 400_000)
    method = method_on("r2r_then_train", operator, Linear(), data, "draws=8")
    noise = SIGMA * (1 + method.alpha**2) ** 0.5
    found = minimise(method, data, 10).matrix.detach()
    expected = C @ torch.linalg.inv(C + noise**2 * torch.eye(2))
    assert (found - expected).abs().max() < 0.02
    draw = method.restoration(method.restorer)(data.batch(torch.arange(50)), [])
    assert draw.evaluations == 8
    y = data.y[:50].flatten(1)
    torch.testing.assert_close(draw.x.flatten(1), y @ found.T, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_splitting_teaches_the_mean_given_what_the_split_shows(sigma):
    operator = make_operator("inpainting", (1, 1, 3), "p=0.3", f"sigma={sigma}")
    data = gaussian(LINE, operator, 400_000)
    method = method_on("ssdu_then_train", operator, Table(3), data)
    found = minimise(method, data)
    noise = sigma * (1 + method.alpha**2) ** 0.5
    for seen in ([0], [1], [2], [0, 1], [0, 2], [1, 2]):
        expected = conditional(LINE, seen, noise)
        # Without noise nobody compares what f was given: it is y.
        rows = [j for j in range(3) if sigma or j not in seen]
        assert (found.of(seen) - expected)[rows].abs().max() < 0.02, seen
    levels = torch.cat(found.levels).unique()
    torch.testing.assert_close(levels, torch.tensor([(noise**2 + 0.25) ** 0.5]))


def test_one_fixed_mask_teaches_what_it_hides_with_shifts_and_not_without():
    """Pixel 2 of a ring of four is never shown; pairs at each distance are."""
    ring = torch.tensor([1.0, 0.6, 0.3, 0.6]).double()
    covariance = torch.stack([ring.roll(k) for k in range(4)])
    operator = one_mask([1.0, 1.0, 0.0, 1.0])
    data = gaussian(covariance, operator)
    method = method_on("es_then_train", operator, Table(4), data)
    found = minimise(method, data)
    for seen in ([0, 1], [0, 3], [1, 3]):
        assert off(found, covariance, seen) < 0.02, seen
    alone = build(compose(["method=ssdu_then_train"])["method"])
    assert "varies between images" in alone.supports(method.problem)
    alone.problem = method.problem
    blind = minimise(inside(alone, Table(4), data), data)
    assert (blind.of([0, 1])[3] - conditional(covariance, [0, 1])[3]).abs().max() < 0.03
    assert blind.of([0, 1])[2].abs().max() == 0
    assert conditional(covariance, [0, 1])[2].abs().max() > 0.3


def test_noisy_equivariant_splitting_is_not_taught_the_noise():
    operator = one_mask([1.0, 1.0, 0.0, 1.0])
    operator.sigma = 0.15
    covariance = torch.eye(4).double() * 0.5
    data = gaussian(covariance, operator)
    method = method_on("es_then_train", operator, Table(4), data)
    noise = 0.15 * (1 + method.alpha**2) ** 0.5
    found = minimise(method, data)
    for seen in ([0, 1], [0, 3], [1, 3]):
        assert off(found, covariance, seen, noise) < 0.02, seen


def test_several_operators_teach_what_each_hides_of_simple_images():
    """Images are multiples of one; a pixel of three is hidden, and no operator shows all three."""
    truth = torch.tensor([1.0, 0.7, -0.5])
    operator = make_operator("box", (1, 1, 3), "side=1")
    z = torch.randn((2000, 1), generator=generator_for(0, "z"))
    data = Measurements.draw((z * truth).reshape(-1, 1, 1, 3), operator, 0, "train")
    method = method_on("moi_then_train", operator, Table(3), data)
    nn.init.normal_(method.restorer.matrices, std=0.1, generator=generator_for(0, "start"))
    found = minimise(method, data, 300)
    for seen in ([0, 1], [0, 2], [1, 2]):
        given = truth * torch.tensor([float(j in seen) for j in range(3)])
        assert (found.of(seen).float() @ given - truth).abs().max() < 0.02, seen
    assert method._session.costs["evaluations"] >= 2000, "the second evaluation is counted"
    method.weight = 1e-12
    nn.init.normal_(method.restorer.matrices, std=0.1, generator=generator_for(0, "start"))
    blind = minimise(method, data, 100)
    assert abs(blind.of([0, 1])[2] @ torch.tensor([1.0, 0.7, 0.0]).double() + 0.5) > 0.2


def test_noise_of_other_operators_is_measured_too():
    """f of one pixel that all operators show: with z of a level it shrinks, without it does not."""
    operator = make_operator("inpainting", (1, 1, 2), "p=0.1", "sigma=0.5")
    data = gaussian(C, operator, 20_000)
    method = method_on("moi_then_train", operator, Table(2), data)
    batch = data.batch(torch.arange(20_000))
    method.restorer.matrices.data[:] = torch.eye(2)

    def loss():
        return float(method.loss(batch, generator_for(0, "loss"), "restorer").total.detach())

    with_all = loss()
    method.weight = 1e-12
    # f(A_2 x + s z) - x where f is the identity: s^2 on the seen, x^2 and the noise on the others.
    noise = 0.25 * (1 + method.alpha**2)
    shown, power = 0.9, float(C.diagonal().mean())
    given = shown * (power + noise)
    assert with_all - loss() == pytest.approx(shown * 0.25 + (1 - shown) * given, rel=0.03)


# -- restoration -----------------------------------------------------------------------------------


CASES = [
    ("ssdu_then_train", "inpainting", (1, 8, 8), "sigma=0.1", 1),
    ("ssdu_then_train", "inpainting", (1, 8, 8), "sigma=0.1", 7),
    ("ssdu_then_train", "inpainting", (1, 8, 8), "sigma=0", 1),
    ("ssdu_then_train", "mri", (2, 8, 8), "sigma=0", 1),
    ("ssdu_then_train", "compressed_sensing", (1, 8, 8), "sigma=0.05", 2),
    ("es_then_train", "inpainting", (1, 8, 8), "sigma=0.1", 8),
    ("es_then_train", "inpainting", (1, 8, 8), "sigma=0", 8),
    ("moi_then_train", "mri_multicoil", (2, 8, 8), "sigma=0", 1),
]


@pytest.mark.parametrize(("name", "operator_name", "shape", "key", "count"), CASES)
def test_a_restoration_is_no_matter_of_its_batch_and_agrees_with_y(
    name, operator_name, shape, key, count
):
    operator = make_operator(operator_name, shape, key)
    x = torch.randn((5, *shape), generator=generator_for(0, "x")).clamp(-1, 1)
    data = Measurements.draw(x, operator, 0, "train")
    method = method_on(name, operator, None, data, f"draws={count}")
    method.build()
    restore = method.restoration(method.restorer)
    batch = data.batch(torch.arange(5))
    draw, one = restore(batch, []), restore(data.batch(torch.tensor([3])), [])
    torch.testing.assert_close(draw.x[3:4], one.x, rtol=0, atol=1e-5)
    assert draw.evaluations == count
    misfit = (operator.A(draw.x, take(data.params, slice(0, 5))) - data.y).abs().max()
    assert (misfit < 1e-4) == (operator.sigma == 0)
    assert method.route_name.endswith("one step" if count == 1 else f"mean of {count}")
    assert "20%" in method.route_name


def test_equivariant_restorations_average_the_group():
    operator = make_operator("inpainting", (1, 4, 4), "sigma=0.1")
    data = Measurements.draw(torch.zeros(2, 1, 4, 4), operator, 0, "train")
    method = method_on("es_then_train", operator, Linear(), data, "draws=16")
    corner = torch.zeros(1, 1, 4, 4)
    corner[..., 0, 0] = 1

    class Corner(Denoiser):
        def forward(self, x, sigma, condition=None):
            return corner.expand(x.shape)

    draw = method.restoration(Corner(nn.Identity(), 0.5, 1))(data.batch(torch.arange(2)), [])
    torch.testing.assert_close(draw.x, torch.full((2, 1, 4, 4), 1 / 16))


def test_an_image_without_noise_among_noisy_ones_is_asked_at_a_level():
    operator = make_operator("denoising", SHAPE, "sigma=0.3")
    y = torch.ones(2, *SHAPE)
    data = Measurements(y, {}, torch.tensor([0.0, 0.3]))
    network = Table(2)
    network.forward = lambda x, sigma, condition=None: network.levels.append(sigma) or x
    method = method_on("r2r_then_train", operator, network, data)
    restored = method.restoration(network)(data.batch(torch.arange(2)), []).x
    assert torch.equal(restored, y), "one evaluation takes y as it is"
    assert network.levels[0].tolist() == pytest.approx([SIGMA_MIN, 0.3])


# -- what is said and refused ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_both_stages_share_the_budget_and_the_row_says_so(name):
    method = build(compose([f"method={name}", "method.restorer_share=0.3"])["method"])
    rounds = method.rounds(100)
    assert [(r.name, r.steps, r.turns, r.begin) for r in rounds] == [
        ("restorer", 30, ("restorer",), "continue"),
        ("prior", 70, ("denoiser",), "scratch"),
    ]
    assert method.planned(rounds) == 100
    operator = make_operator("denoising" if name.startswith("r2r") else "inpainting", (1, 8, 8))
    config = compose([f"method={name}"])
    problem = build(config["training"]).problem(operator, config)
    warnings = {w.code: w.sentence for w in method.warnings(problem)}
    assert "smoother than that of images" in warnings["smooth"]
    assert "30% of the budget" in warnings["smooth"]
    assert ("invariant" in warnings) == (name == "es_then_train")


@pytest.mark.parametrize(
    ("name", "operator", "reason"),
    [
        ("ssdu_then_train", one_mask([1.0, 0.0, 1.0]), "varies between images"),
        ("ssdu_then_train", make_operator("denoising", (1, 8, 8)), "varies between images"),
        ("r2r_then_train", make_operator("inpainting", (1, 8, 8)), "is not the identity"),
        ("r2r_then_train", make_operator("denoising", (1, 8, 8), "sigma=0"), "sigma_y is 0"),
        ("es_then_train", make_operator("blur", (1, 8, 8)), "not a mask"),
        ("moi_then_train", one_mask([1.0, 0.0, 1.0]), "varies between images"),
    ],
)
def test_where_nothing_teaches_what_is_hidden_it_is_refused(name, operator, reason):
    config = compose([f"method={name}"])
    problem = build(config["training"]).problem(operator, config)
    assert reason in build(config["method"]).supports(problem)


def test_a_group_that_shows_too_little_is_refused_with_the_eigenvalue():
    config = compose(["method=es_then_train", "method.group=[flip]"])
    problem = build(config["training"]).problem(one_mask([1.0, 0.0, 0.0, 1.0]), config)
    method = build(config["method"])
    assert "smallest eigenvalue 0.0e+00" in method.supports(problem)
    method.group = ["turn"]
    assert "needs square images; these have 1x4" in method.supports(problem)


def test_a_fixed_mask_hides_nothing_from_a_group_that_shows_it_and_random_ones_may():
    config = compose(["method=es_then_train"])
    method, trainer = build(config["method"]), build(config["training"])
    fixed = one_mask([1.0, 0.0, 0.0, 1.0])
    assert "null_space" in fixed.capabilities
    codes = [w.code for w in method.warnings(trainer.problem(fixed, config))]
    assert codes == ["smooth", "invariant"]
    drawn = make_operator("inpainting", (1, 1, 3), "p=0.5")
    seen = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]).reshape(2, 1, 1, 3)
    drawn = drawn.with_law_of({"mask": seen})
    codes = [w.code for w in method.warnings(trainer.problem(drawn, config))]
    assert codes == ["null", "smooth", "invariant"]


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("ssdu_then_train", "split_ratio=1", r"split_ratio=1; allowed: \(0, 1\)"),
        ("ssdu_then_train", "restorer_share=1", r"restorer_share=1; allowed: \(0, 1\)"),
        ("r2r_then_train", "alpha=0", r"alpha=0; allowed: above 0"),
        ("r2r_then_train", "draws=0", "draws=0; allowed: at least 1"),
        ("moi_then_train", "weight=0", "weight=0; allowed: above 0"),
        ("es_then_train", "group=[]", r"group=\[\]; allowed: one or more of flip, turn, shift"),
        ("es_then_train", "group=[mirror]", "group=.*mirror.*; allowed: .*flip"),
    ],
)
def test_a_value_outside_its_range_is_refused(name, override, message):
    with pytest.raises(UserError, match=message):
        build(compose([f"method={name}", f"method.{override}"])["method"])
