"""A method with a leak: each batch has other measurements, all by the law of the operator."""

import pytest
import torch

from cleanprior.config import build, compose, registry
from cleanprior.data import Batch, Images, Measurements
from cleanprior.errors import UserError
from cleanprior.progress import Progress
from cleanprior.seeding import generator_for
from cleanprior.training import Loss, Session
from cleanprior.training.checkpoint import Store

N = 400


@pytest.fixture
def started(make_operator, make_problem, tmp_path):
    """``started("naive", "inpainting", "p=0.3")``: a leaky method in its first round."""

    def start(of, operator, *keys):
        shape = (1, 8, 8)
        method = build(compose([f"method={of}+leaky"])["method"])
        made = make_operator(operator, shape, *keys)
        method.setup(make_problem(made), torch.device("cpu"))
        x = 0.5 * torch.randn(N, *shape, generator=generator_for(0, "x")).clamp(-1, 1)
        measured = Measurements.draw(x, made, 0, "train")
        averaged = method.networks()
        session = Session(measured, x, averaged, torch.device("cpu"), Store(None), Progress(), 0)
        return method, session, x

    return start


def seen(method, found, index, number):
    """Return the batch that the loss of the other method is given."""
    given = []
    method.of.loss = lambda batch, generator, turn: given.append(batch) or Loss(torch.zeros(()))
    method.loss(found.batch(index), generator_for(number, "loss"), "denoiser")
    return given[0]


@pytest.mark.parametrize(
    ("of", "operator", "keys"),
    [("naive", "denoising", ("sigma=0.5",)), ("ambient", "inpainting", ("p=0.3",))],
)
def test_each_batch_is_measured_anew_by_the_law_of_the_operator(started, of, operator, keys):
    method, session, x = started(of, operator, *keys)
    (round,) = method.rounds(10)
    found = method.begin_round(0, round, session)
    assert isinstance(found, Images)
    index = torch.arange(N)
    first, again = (seen(method, found, index, number) for number in (1, 2))
    assert isinstance(first, Batch) and first.images is None, "the method is not told the images"
    assert not torch.equal(first.y, again.y) and not torch.equal(first.y, session.measurements.y)
    torch.testing.assert_close(first.y, seen(method, found, index, 1).y, rtol=0, atol=0)
    if operator == "denoising":
        spread = (first.y - x).std().item()
        assert spread == pytest.approx(0.5, abs=4 * 0.5 / (2 * x.numel()) ** 0.5)
    else:
        shown = first.params["mask"]
        assert torch.equal(first.y, shown * x) and not torch.equal(shown, again.params["mask"])
        assert shown.mean().item() == pytest.approx(0.7, abs=4 * 0.5 / shown.numel() ** 0.5)


def test_a_method_with_rounds_gets_other_measurements_in_each(started):
    method, session, _ = started("em_mmps", "inpainting")
    asked = []
    method.of.begin_round = lambda number, round, session: asked.append(session) or "restored"
    for number in (0, 1, 0):
        assert method.begin_round(number, method.rounds(100)[number], session) == "restored"
    a, b, again = (s.measurements for s in asked)
    assert not torch.equal(a.y, b.y) and torch.equal(a.y, again.y), "a resumed round has its own"
    assert all(s.clean is None for s in asked)
    batch = session.measurements.batch(torch.arange(4))
    assert seen(method, session.measurements, torch.arange(4), 0).y.equal(batch.y)


LEARNERS = [n for n, c in registry.readable("method").items() if not c["clean_images"]]


@pytest.mark.parametrize("second", ["leaky", "distill"])
@pytest.mark.parametrize("name", LEARNERS)
def test_whatever_method_is_inside_the_plan_is_the_budget(name, second):
    try:
        method = build(compose([f"method={name}+{second}"])["method"])
    except UserError as error:
        assert "learns no denoiser" in str(error) or "begins with another one" in str(error)
        return
    inner = build(compose([f"method={name}"])["method"])
    assert inner.planned(inner.rounds(100)) == 100 == method.planned(method.rounds(100))


@pytest.mark.parametrize(
    ("of", "reason"),
    [
        ("oracle", "handed all clean images; allowed: a method that is handed none"),
        ("observations", "learns no denoiser that could leak"),
    ],
)
def test_a_method_that_has_no_leak_to_show_is_refused(of, reason):
    with pytest.raises(UserError, match=reason):
        build(compose([f"method={of}+leaky"])["method"])


def test_the_row_says_what_it_is(started):
    method, _, _ = started("ambient", "inpainting")
    warnings = {w.code: w.sentence for w in method.warnings(method.problem)}
    assert "on purpose" in warnings["leak"] and method.clean_images == "all"
    own = {w.code for w in method.of.warnings(method.problem)}
    assert own <= set(warnings)
