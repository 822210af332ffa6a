"""An interrupted training goes on and ends with the same bits; damage is told by name."""

import os
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


def flip(content):
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


def of_another(tmp_path, setting):
    """The checkpoint of the same method, other seed: the same names and shapes."""
    fit(setting("naive"), seed=1, folder=tmp_path / "other")
    return (tmp_path / "other" / "checkpoint.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("cut", "is damaged"),
        ("flipped", "its content has another hash"),
        ("emptied", "is damaged"),
        ("another training's", "belongs to something else"),
        ("another method's", "belongs to something else"),
        ("another build's", "holds other networks"),
        ("a pipe", "is a named pipe"),
    ],
)
@pytest.mark.timeout(60)
def test_a_checkpoint_that_is_not_this_trainings_is_not_used(
    setting, tmp_path, capsys, caplog, kind, told
):
    expected, _ = fit(setting("naive"), folder=tmp_path / "a")
    file = tmp_path / "a" / "checkpoint.safetensors"
    content = file.read_bytes()
    if kind == "cut":
        file.write_bytes(content[:100])
    elif kind == "flipped":
        file.write_bytes(flip(content))
    elif kind == "emptied":
        file.write_bytes(b"")
    elif kind == "another training's":
        file.write_bytes(of_another(tmp_path, setting))
    elif kind == "another method's":
        fit(setting("oracle"), folder=tmp_path / "b")
        file.write_bytes((tmp_path / "b" / "checkpoint.safetensors").read_bytes())
    elif kind == "another build's":
        tensors, meta = read_tensors(file)
        write_tensors(file, {k: v for k, v in tensors.items() if "average" in k}, meta)
    else:
        file.unlink()
        os.mkfifo(file)
    stale = tmp_path / "a" / "round" / "stale.safetensors"
    write_tensors(stale, {"x": torch.ones(1)}, {})
    again, report = fit(setting("naive"), folder=tmp_path / "a")
    assert_same(weights(again), weights(expected))
    assert report.steps == {"denoiser": STEPS} and not stale.exists()
    (line,) = [r.getMessage() for r in caplog.records if "begins again" in r.getMessage()]
    assert told in line and "\n" not in line


def test_a_checkpoint_of_version_0_1_0_has_no_hash_and_is_taken_up(setting, tmp_path):
    expected, _ = fit(setting("naive"), folder=tmp_path)
    file = tmp_path / "checkpoint.safetensors"
    tensors, meta = read_tensors(file)
    del meta["of"]
    write_tensors(file, tensors, meta, is_hashed=False)
    built = setting("naive")
    built[0].loss = lambda *_: pytest.fail("trained again")
    again, _ = fit(built, folder=tmp_path)
    assert_same(weights(again), weights(expected))


@pytest.mark.parametrize("kind", ["flipped", "cut", "another training's", "no header"])
def test_a_result_that_is_not_this_trainings_is_computed_again(tmp_path, caplog, kind):
    computed = []

    def compute():
        computed.append(1)
        return {"x": torch.arange(4.0)}, {"evaluations": 2.0}

    store = Store(tmp_path, owner="a")
    expected = store.once("k", compute)
    file = tmp_path / "k.safetensors"
    if kind == "another training's":
        Store(tmp_path / "b", owner="b").once("k", lambda: ({"x": torch.zeros(4)}, {}))
        file.write_bytes((tmp_path / "b" / "k.safetensors").read_bytes())
    elif kind == "no header":
        write_tensors(file, {"x": torch.zeros(4)}, {})
    else:
        content = file.read_bytes()
        file.write_bytes(flip(content) if kind == "flipped" else content[:50])
    found = store.once("k", compute)
    assert found[0]["x"].tolist() == expected[0]["x"].tolist() and found[1] == expected[1]
    assert len(computed) == 2 and "computed again" in caplog.text
    store.once("k", compute)
    assert len(computed) == 2


@pytest.mark.parametrize("name", ["em", "em_mmps"])
def test_what_rounds_keep_is_not_used_damaged(setting, trained, tmp_path, caplog, name):
    """Nobody can compute it where it is read: the training begins again, with the same end."""
    *_, expected = trained(name)
    built = setting(name)
    begin = built[0].begin_round

    def interrupted(number, *others):
        if number == 2:
            raise Interrupted
        return begin(number, *others)

    built[0].begin_round = interrupted
    with pytest.raises(Interrupted):
        fit(built, folder=tmp_path)
    kept = list((tmp_path / "round" / "kept").glob("*.safetensors"))
    assert kept
    for file in kept:
        file.write_bytes(flip(file.read_bytes()))
    again, _ = fit(setting(name), folder=tmp_path)
    assert_same(weights(again), expected)
    assert "begins again" in caplog.text


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
