"""Ambient's options: what the authors' code does, reachable by name."""

import pytest
import torch
from cleanprior.methods.ambient.further import flip_together, hidden_share
from torch import nn

from cleanprior.cells.reading import HASH
from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.diffusion.backbones import parameter_count
from cleanprior.diffusion.denoiser import Denoiser
from cleanprior.diffusion.gating import GatedConv, gate_convolutions
from cleanprior.diffusion.samplers import Heun
from cleanprior.errors import UserError
from cleanprior.prior import Prior
from cleanprior.seeding import generator_for

# -- gated convolutions ----------------------------------------------------------------------------


@pytest.mark.parametrize("gate", ["single", "double"])
def test_a_gate_multiplies_the_convolution(gate):
    conv = nn.Conv2d(2, 3, 3, padding=1)
    gated = GatedConv(conv, gate)
    x = torch.randn((4, 2, 5, 5), generator=generator_for(0, "x"))
    for bias, opening in ((-100.0, 0.0), (100.0, 1.0)):
        nn.init.zeros_(gated.gate.weight)
        nn.init.constant_(gated.gate.bias, bias)
        if gate == "double":
            # It can never close, nor open.
            opening = torch.sigmoid(torch.tensor(opening)).item()
        torch.testing.assert_close(gated(x), opening * conv(x))


@pytest.mark.parametrize("gate", ["none", "single", "official_double"])
def test_gates_double_the_convolutions_and_are_saved(ambient_on_digits, tmp_path, gate):
    method, _, _, batch = ambient_on_digits(gate=gate)
    plain = ambient_on_digits()[0].denoiser
    convolutions = [m for m in plain.modules() if isinstance(m, nn.Conv2d)]
    extra = 0 if gate == "none" else sum(parameter_count(c) for c in convolutions)
    assert parameter_count(method.denoiser) == parameter_count(plain) + extra
    kinds = {m.is_double for m in method.denoiser.modules() if isinstance(m, GatedConv)}
    assert kinds == {"none": set(), "single": {False}, "official_double": {True}}[gate]
    assert torch.isfinite(method.loss(batch, generator_for(0, "l"), "denoiser").total)
    prior = method.prior({"denoiser": method.denoiser})
    prior.save(tmp_path / "prior")
    x = torch.randn((2, 1, 8, 8), generator=generator_for(0, "x"))
    assert torch.equal(Prior.load(tmp_path / "prior")(x, 0.5), prior(x, 0.5))


@pytest.mark.parametrize(
    ("kind", "called"), [("split", "split"), ("ambient_official", "scaled_condition")]
)
def test_the_denoiser_has_the_preconditioning_of_the_configuration(ambient_on_digits, kind, called):
    method = ambient_on_digits(preconditioning=kind)[0]
    assert method.denoiser.preconditioning == called
    assert method.denoiser.condition_channels == 1


def test_a_network_without_convolutions_cannot_be_gated():
    with pytest.raises(ValueError, match="gate=single: Linear has no 2-D convolution to gate"):
        gate_convolutions(nn.Linear(2, 2), "single")


# -- the loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"), [("inpainting", (1, 8, 8)), ("compressed_sensing", (1, 4, 4))]
)
def test_the_sum_is_over_entries_and_the_mean_over_images(ambient_on, name, shape):
    overrides = ["m=8"] if name == "compressed_sensing" else []
    totals = {}
    for reduction in ("mean", "sum"):
        method, operator = ambient_on(name, shape, *overrides, reduction=reduction)
        x = 2 * torch.rand((6, *shape), generator=generator_for(0, "x")) - 1
        batch = Measurements.draw(x, operator, 0, "train").batch(torch.arange(6))
        totals[reduction] = method.loss(batch, generator_for(0, "l"), "denoiser").total
    shown = operator.observed(batch.y, batch.params).sum()
    torch.testing.assert_close(totals["sum"], totals["mean"] * shown / 6)


@pytest.mark.parametrize(
    ("name", "shape", "overrides"),
    [
        ("inpainting", (1, 8, 8), ("p=0.5",)),
        ("inpainting", (1, 8, 8), ("p=0.8",)),
        ("box", (1, 8, 8), ("side=3",)),
        ("mri", (2, 16, 16), ("acceleration=4",)),
    ],
)
def test_the_share_that_is_scored_is_that_of_the_closed_form(make_operator, name, shape, overrides):
    operator = make_operator(name, shape, *overrides)
    found = hidden_share(operator, 0.1, generator_for(0, "q"))
    further = operator.further(
        operator.draw(500, generator_for(1, "p")), 0.1, generator_for(1, "f")
    )
    values = operator.supervision(further, 0.1)
    expected = values[values < 1 - 1e-9].mean().item()
    assert found == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("p", "cap", "low", "high"), [(0.5, 50, 10, 12), (0.9, 50, 50, 50)])
def test_the_automatic_weight_is_one_over_that_share_up_to_its_cap(
    ambient_on_digits, p, cap, low, high
):
    method, _, _, batch = ambient_on_digits(p=p, hidden_weight="auto", hidden_weight_cap=cap)
    assert low <= method.weight_of_hidden <= high
    fixed = ambient_on_digits(p=p, hidden_weight=method.weight_of_hidden)[0]
    losses = [m.loss(batch, generator_for(0, "l"), "denoiser") for m in (method, fixed)]
    torch.testing.assert_close(losses[0].total, losses[1].total)
    lower = ambient_on_digits(p=p, hidden_weight=4.0)[0]
    loss = lower.loss(batch, generator_for(0, "l"), "denoiser")
    ratio = losses[0].parts["erased"] / loss.parts["erased"]
    assert ratio.item() == pytest.approx(method.weight_of_hidden / 4)


# -- the further corruption ------------------------------------------------------------------------


def test_fixed_further_masks_erase_the_share_delta_and_differ_between_images(ambient_on_digits):
    method, _, _, batch = ambient_on_digits(p=0.1, delta=0.3, resample_further="false")
    seen, kept = batch.params["mask"], method._further(batch, generator_for(0, "a"))["mask"]
    erased = (seen - kept).flatten(1)
    assert (kept <= seen).all()
    # About 900 seen pixels: four standard errors.
    assert (erased.sum() / seen.sum()).item() == pytest.approx(0.3, abs=0.065)
    together = seen[0] * seen[1] == 1
    assert not torch.equal(kept[0][together], kept[1][together])


def test_samples_go_through_further_corruption_of_the_same_delta(ambient_on_digits, monkeypatch):
    method, *_ = ambient_on_digits(delta=0.3)
    operator = method.problem.operator
    asked, further = [], operator.further
    monkeypatch.setattr(
        operator, "further", lambda p, delta, g: asked.append(delta) or further(p, delta, g)
    )
    sample_of(method)
    assert asked == [0.3]


def test_one_step_restoration_asks_at_its_own_level(ambient_on_digits):
    method, _, _, batch = ambient_on_digits(one_step_sigma=0.07)
    model, asked = Loud(), []
    model.register_forward_pre_hook(lambda m, inputs: asked.append(inputs))
    (route,) = method.routes({"denoiser": model})
    route.restore(batch, [])
    ((u, level, condition),) = asked
    assert torch.equal(u, batch.y)
    torch.testing.assert_close(level, torch.full((16,), 0.07))
    assert torch.equal(condition, batch.params["mask"])


# -- the joint flip --------------------------------------------------------------------------------


class Knowing(Denoiser):
    """Returns the clean image, or its mirror image, whichever its condition belongs to."""

    def __init__(self, x, masks):
        super().__init__(nn.Identity(), 0.5, 1, "split")
        self.x, self.masks, self.mirrored = x, masks, None

    def forward(self, x, sigma, condition=None):
        as_is = (condition <= self.masks).flatten(1).all(1)
        mirrored = (condition <= self.masks.flip(-1)).flatten(1).all(1)
        assert (as_is ^ mirrored).all()
        self.mirrored = mirrored
        return torch.where(mirrored[:, None, None, None], self.x.flip(-1), self.x)


@pytest.mark.parametrize("augment", ["none", "joint_flip"])
def test_a_flip_takes_image_mask_and_further_mask_along(ambient_on_digits, augment):
    method, _, x, batch = ambient_on_digits(augment=augment)
    method.denoiser = Knowing(x, batch.params["mask"])
    total = method.loss(batch, generator_for(0, "l"), "denoiser").total
    assert total == 0
    count = int(method.denoiser.mirrored.sum())
    assert (3 <= count <= 13) if augment == "joint_flip" else count == 0


def test_a_flip_reveals_nothing_that_was_hidden():
    """The share of an image's pixels that any of its views shows stays 1 - p."""
    mask = (torch.rand((50, 1, 8, 8), generator=generator_for(0, "m")) < 0.4).float()
    y = mask * torch.randn((50, 1, 8, 8), generator=generator_for(0, "y"))
    seen = torch.zeros_like(mask)
    for k in range(10):
        image, params, further = flip_together(
            y, {"mask": mask}, {"mask": mask}, generator_for(k, "f")
        )
        assert torch.equal(params["mask"], further["mask"])
        mirrored = (image != y).flatten(1).any(1)[:, None, None, None]
        back = torch.where(mirrored, params["mask"].flip(-1), params["mask"])
        seen = torch.maximum(seen, back)
        assert torch.equal(torch.where(mirrored, image.flip(-1), image), y)
    assert torch.equal(seen, mask)


def test_a_flip_is_refused_where_there_is_no_mask_of_pixels(make_operator, make_problem):
    method = build(compose(["method=ambient", "method.augment=joint_flip"])["method"])
    assert method.supports(make_problem(make_operator("inpainting", (1, 8, 8)))) is None
    reason = method.supports(make_problem(make_operator("mri", (2, 8, 8))))
    assert "has no mask of pixels; set method.augment=none" in reason


# -- the samplers ----------------------------------------------------------------------------------


class Loud(Denoiser):
    """Returns images far outside [-1, 1], different for each mask."""

    def __init__(self):
        super().__init__(nn.Identity(), 0.5, 1, "split")
        self.anchor = nn.Parameter(torch.ones(1))

    def forward(self, x, sigma, condition=None):
        return 3 * self.anchor * torch.tanh(x) + condition


def sample_of(method, number=0):
    method.sampler = Heun(3, 0.5, 2.0, 7.0)
    ways = [w for w in method.routes({"denoiser": Loud()}) if w.sample]
    return ways[number].samples_by, ways[number].sample(4, generator_for(0, "s"))


@pytest.mark.parametrize("number", [0, 1])
def test_the_static_clip_keeps_samples_in_range(ambient_on_digits, number):
    for clip in ("none", "static"):
        method = ambient_on_digits(clip=clip, guidance_weight=0.1)[0]
        _, x = sample_of(method, number)
        assert (x.abs().max() <= 1) == (clip == "static")


def test_the_official_norm_of_guidance_is_a_weight(ambient_on_digits):
    """Half the sum over 64 pixels and 2 further masks, in place of the mean over both."""
    keys = {"guidance_masks": 3}
    official = ambient_on_digits(guidance_weight=0.01, guidance_norm="official", **keys)[0]
    mean = ambient_on_digits(guidance_weight=0.01 * 64, **keys)[0]
    small = ambient_on_digits(guidance_weight=0.01, **keys)[0]
    _, x = sample_of(official, 1)
    torch.testing.assert_close(x, sample_of(mean, 1)[1])
    assert (x - sample_of(small, 1)[1]).abs().max() > 1e-3


def test_averaging_over_masks_is_a_row_of_its_own(ambient_on_digits):
    plain = ambient_on_digits(guidance_masks=3)[0]
    assert len([w for w in plain.routes({"denoiser": Loud()}) if w.sample]) == 1
    averaged = ambient_on_digits(guidance_masks=3, average_masks="true")[0]
    name, x = sample_of(averaged, 1)
    assert name == "mean of 3 masks"
    assert torch.isfinite(x).all()
    steps = [
        ambient_on_digits(guidance_masks=3, guidance_weight=1e-9, average_masks=flag)[0]
        for flag in ("true", "false")
    ]
    mean, first = (sample_of(method, 1)[1] for method in steps)
    torch.testing.assert_close(mean, x)
    assert (first - x).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("identifiability=maybe", "identifiability='maybe'; allowed: refuse, warn, off"),
        ("guidance_masks=0", "guidance_masks=0; allowed: at least 1"),
        ("guidance_weight=-1", "guidance_weight=-1.*allowed: at least 0"),
        ("gate=double", "gate='double'; allowed: none, single, official_double"),
        ("reduction=max", "reduction='max'; allowed: mean, sum"),
        ("augment=before_mask", "augment='before_mask'; allowed: none, joint_flip"),
        ("clip=dynamic", "clip='dynamic'; allowed: none, static"),
        ("guidance_norm=sum", "guidance_norm='sum'; allowed: mean, official"),
        ("hidden_weight=0", "hidden_weight=0; allowed: auto, or a number above 0"),
        ("hidden_weight=much", "hidden_weight=much; allowed: auto, or a number above 0"),
        ("hidden_weight_cap=0.5", "hidden_weight_cap=0.5; allowed: at least 1"),
    ],
)
def test_options_outside_their_range_are_refused(override, message):
    with pytest.raises(UserError, match=message):
        build(compose(["method=ambient", f"method.{override}"])["method"])


def test_a_prior_with_the_words_of_an_earlier_version_is_the_same(ambient_on_digits, tmp_path):
    method = ambient_on_digits(gate="official_double", preconditioning="ambient_official")[0]
    prior = method.prior({"denoiser": method.denoiser})
    prior.save(tmp_path / "prior")
    card = tmp_path / "prior" / "prior.yaml"
    text = card.read_text()
    for today, before in (("scaled_condition", "ambient_official"), ("double", "official_double")):
        assert text.count(f": {today}\n") == 1
        text = text.replace(f": {today}\n", f": {before}\n")
    # An earlier version wrote no hash of the card.
    kept = [line for line in text.splitlines() if not line.startswith(f"{HASH}:")]
    assert len(kept) == len(text.splitlines()) - 1
    card.write_text("\n".join(kept) + "\n")
    x = torch.randn((2, 1, 8, 8), generator=generator_for(0, "x"))
    assert torch.equal(Prior.load(tmp_path / "prior")(x, 0.5), prior(x, 0.5))
