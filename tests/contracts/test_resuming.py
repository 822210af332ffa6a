"""An interrupted training goes on and ends with the same bits; damage is told by name."""

from collections import Counter

import pytest
import torch
from trained import STEPS, assert_same, fit, make_trainer, over_learners, weights

from cleanprior.errors import UserError
from cleanprior.training.checkpoint import Store, read_tensors, write_tensors


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
def test_resumed_is_uninterrupted_bit_for_bit(setting, trained, tmp_path, name):
    def arm(method, attempt):
        calls, loss = Counter(), method.loss

        def interrupted(*arguments):
            calls["loss"] += 1
            if calls["loss"] == 7:
                raise Interrupted
            return loss(*arguments)

        method.loss = interrupted

    *_, report, expected = trained(name)
    networks, resumed, attempts = run_with_interruptions(lambda: setting(name), tmp_path, arm)
    assert attempts >= 3
    assert_same(weights(networks), expected)
    assert (resumed.steps, resumed.images) == (report.steps, report.images)
    assert resumed.costs == report.costs
    assert (resumed.passes, resumed.pass_flops) == (report.passes, report.pass_flops)
    assert resumed.log == report.log
    assert [h["loss"] for h in resumed.history] == [h["loss"] for h in report.history]


@pytest.mark.parametrize("name", ["em", "em_mmps"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_resumed_at_the_end_of_a_round_is_uninterrupted(
    setting, trained, tmp_path, monkeypatch, name, moment
):
    """A stop around the moment in which a round's E-step results are removed."""
    *_, report, expected = trained(name)
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
    assert_same(weights(networks), expected)
    assert resumed.costs == report.costs
    assert resumed.passes == report.passes


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
