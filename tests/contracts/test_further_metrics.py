"""Metrics that plug-ins add: in records, tables and identities, and what one that fails costs."""

import sys

import pytest
import torch
from cleanprior.benchmarks.plan import _problem
from cleanprior.benchmarks.tables.columns import all_columns
from plugins import forget, write_plugin

import cleanprior as cp
from cleanprior.cells.identity import Identity
from cleanprior.config import build, compose
from cleanprior.errors import UserError
from cleanprior.evaluation.metrics.further import check_names, further_metrics
from cleanprior.evaluation.restorations import RestorationJudge
from cleanprior.metric_names import describe, in_order
from cleanprior.operators.likelihood import Likelihood
from cleanprior.testing.metrics import check_metric

CODE = """
class Worst:
    def __init__(self, factor):
        self.factor = factor
    def __call__(self, restored, truth):
        return self.factor * (restored - truth).abs().flatten(1).amax(1)
class Broken(Worst):
    def __call__(self, restored, truth):
        raise OSError("no weights")
class Mean(Worst):
    def __call__(self, restored, truth):
        return (restored - truth).abs().mean()
"""
CARD = "_target_: {package}.%s\nfactor: 2.0\nabout: the worst pixel\n"
NAMES = ("worst", "broken", "mean")


@pytest.fixture
def guest(tmp_path, monkeypatch):
    files = {f"configs/metric/{n}.yaml": CARD % n.title() for n in NAMES}
    write_plugin(tmp_path, "guest_metrics", {"__init__.py": CODE, **files})
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    yield tmp_path / "guest_metrics"
    monkeypatch.undo()
    sys.modules.pop("guest_metrics", None)
    forget()


def judged(names, x):
    A = cp.operator("denoising", (1, 8, 8), sigma=0.5)
    truth = cp.dataset("digits").test[:4]
    batch = cp.measure(truth, A).batch(torch.arange(4))
    likelihood = Likelihood.of(A, batch)
    judge = RestorationJudge(likelihood, truth, False, False, 0, further=further_metrics(names))
    return truth, judge(truth + x, False)


def test_a_metric_has_one_value_an_image_of_draws_and_of_their_mean(guest):
    noise = torch.randn(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    _, found = judged(["worst"], noise)
    expected = 2 * noise.abs().flatten(2).amax(2)
    torch.testing.assert_close(
        torch.tensor(found.per_image["worst"]), expected[0], atol=1e-4, rtol=0
    )
    assert found.metrics["worst"] == pytest.approx(expected[0].mean().item(), rel=1e-5)
    mean = 2 * noise.mean(0).abs().flatten(1).amax(1).mean().item()
    assert found.metrics["worst_point"] == pytest.approx(mean, rel=1e-5)
    assert in_order(["worst_point", "psnr", "worst"]) == ["psnr", "worst", "worst_point"]
    assert describe("worst") == "the worst pixel; of one draw from p(x|y)"


def test_one_that_fails_is_a_dash_with_its_reason(guest):
    _, found = judged(["broken", "mean", "worst"], torch.zeros(2, 4, 1, 8, 8))
    assert found.missing["broken"] == "broken raised OSError: no weights"
    assert found.missing["mean"] == "mean returned shape (); needed: (4,)"
    assert found.metrics["worst"] == 0 and "psnr" in found.metrics


def test_the_contract_tells_a_metric_that_breaks_it():
    def of_the_batch(x, truth):
        return (x - truth).abs().flatten(1).mean(1) / (x - truth).abs().mean().clamp_min(1e-9)

    with pytest.raises(AssertionError, match="depends on its batch"):
        check_metric("mine", of_the_batch, (1, 8, 8))
    with pytest.raises(AssertionError, match="changes the restorations"):
        check_metric("mine", lambda x, t: x.sub_(t).abs().flatten(1).mean(1), (1, 8, 8))


def test_it_is_a_column_of_the_table_before_the_costs(guest):
    headings = [c.heading for c in all_columns()]
    assert headings.index("proximal FD") < headings.index("worst") < headings.index("train FLOP")
    assert "worst point" in headings


def test_no_further_metric_changes_no_identity_and_one_counts_with_its_code(guest):
    plain = compose(["method=naive"])
    kept = {k: v for k, v in plain["evaluation"].items() if k != "metrics"}
    older = {**plain, "evaluation": kept}
    assert Identity(plain).evaluation == Identity(older).evaluation == "392bed097358cd95"
    assert _problem({"naive": [plain]}, None).key == _problem({"naive": [older]}, None).key
    chosen = compose(["method=naive", "evaluation.metrics=[worst]"])
    before = Identity(chosen).evaluation
    assert before != Identity(plain).evaluation
    assert Identity(chosen).training == Identity(plain).training
    (guest / "__init__.py").write_text(CODE.replace("amax(1)", "amax(1) + 1"))
    assert Identity(chosen).evaluation != before


@pytest.mark.parametrize(
    ("names", "message"),
    [(["wrst"], "Did you mean 'worst'"), (["worst", "worst"], "different names")],
)
def test_a_name_that_is_none_is_refused(guest, names, message):
    with pytest.raises(UserError, match=message):
        build(compose(["method=naive"], {"evaluation": {"metrics": names}})["evaluation"])


def test_a_built_in_name_is_refused():
    with pytest.raises(ValueError, match="built-in"):
        check_names(["psnr"])
