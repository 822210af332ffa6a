"""Clean images cannot reach a method that is not entitled to them."""

import gc
import types

import pytest
import torch
from trained import (
    IMAGES,
    LEARNERS,
    METHODS,
    assert_same,
    fit,
    weights,
)

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
