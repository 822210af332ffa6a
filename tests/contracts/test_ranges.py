"""Ranges of keys: the YAML and the constructor refuse the same values, the YAML without torch."""

import math
import subprocess
import sys

import pytest
import yaml

from cleanprior.config import build, compose, compose_one, ranges, registry
from cleanprior.errors import UserError
from cleanprior.operators.building import build_operator

BUILT = ("method", "operator", "posterior", "sampler", "training", "evaluation", "launcher")
SHAPES = {"mri": (2, 8, 8), "mri_multicoil": (2, 8, 8)}


def written():
    for group in BUILT:
        for name, path in registry.options(group).items():
            if "plugins" in str(path):
                continue
            card = yaml.safe_load(path.read_text())
            for key, text in (card.get(ranges.KEY) or {}).items():
                yield group, name, key, text, card[key]


WRITTEN = list(written())
IDS = [f"{group}-{name}-{key}" for group, name, key, _, _ in WRITTEN]


def outside(text, default):
    """Yield values just outside of a range, of the kind that the key holds."""
    allowed = ranges.parse(text)
    if allowed.words:
        yield "no_such_word"
    if (interval := allowed.interval) is None:
        return
    step = 1 if isinstance(default, int) or interval.low >= 1 else 1e-3
    if not math.isinf(interval.low):
        yield type(step)(interval.low) - step if interval.has_low else type(step)(interval.low)
    if not math.isinf(interval.high):
        yield interval.high + 1e-3 if interval.has_high else interval.high


def composed(group, name, *settings):
    if group == "launcher":
        return {group: compose_one(group, name, settings)}
    method = [] if group == "method" else ["method=naive"]
    return compose([*method, f"{group}={name}", *settings])


def construct(group, config):
    if group == "operator":
        return build_operator(config, SHAPES.get(config["name"], (1, 8, 8)), 0)
    return build(config)


@pytest.mark.parametrize(("group", "name", "key", "text", "default"), WRITTEN, ids=IDS)
def test_the_constructor_refuses_what_the_yaml_refuses(group, name, key, text, default):
    for value in outside(text, default):
        with pytest.raises(UserError) as told:
            composed(group, name, f"{group}.{key}={value}")
        assert f"{group}.{key}=" in str(told.value) and "allowed: " in str(told.value)
        config = composed(group, name)[group]
        if key == "rank" or key == "low_rank_iterations":
            config["start"] = "gaussian"
        with pytest.raises(UserError, match=f"{key}=" if group == "launcher" else "."):
            construct(group, {**config, key: value})


@pytest.mark.parametrize(("group", "name", "key", "text", "default"), WRITTEN, ids=IDS)
def test_the_default_and_the_words_of_a_range_are_taken(group, name, key, text, default):
    allowed = ranges.parse(text)
    config = composed(group, name)
    assert ranges.KEY not in str(config), "a range reached a configuration"
    assert config[group][key] in allowed
    for word in allowed.words:
        assert word in allowed


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["operator.p=2"], "operator.p=2; allowed: [0, 1)"),
        (["operator.p=1"], "operator.p=1; allowed: [0, 1)"),
        (["operator.sigma=-1e-9"], "operator.sigma=-1e-09; allowed: at least 0"),
        (["training.lr=0"], "training.lr=0; allowed: above 0"),
        (["posterior.iterations=0"], "posterior.iterations=0; allowed: auto, or a number at least"),
        (["posterior.walk=rw"], "posterior.walk=rw; allowed: exponential, ancestral"),
        (["method=ambient", "method.sampler.steps=1"], "method.sampler.steps=1; allowed: at least"),
        (["operator.ranges.p=3"], "unknown key 'operator.ranges.p'"),
        (["operator.ranges={}"], "unknown key 'operator.ranges'"),
        (["posterior=deepinv", "posterior.options={_target_:os.system}"], "holds no _target_"),
        (["posterior=deepinv", "posterior.options={a:[{_target_:x.y}]}"], "holds no _target_"),
        (["operator._target_=os.system"], "unknown key 'operator._target_'"),
        (["+operator._target_=os.system"], "unknown key 'operator._target_'"),
        (["posterior.options._target_=os.system"], "unknown key 'posterior.options._target_'"),
        (["method=ambient", "method.sampler._target_=os.system"], "unknown key 'method.sampler."),
        (
            ["posterior=deepinv", "posterior.options._target_=os.system"],
            "unknown key 'posterior.options._target_'",
        ),
    ],
)
def test_a_value_is_refused_when_it_is_composed(overrides, message):
    with pytest.raises(UserError) as told:
        compose(overrides)
    assert message in str(told.value)


def test_no_torch_is_loaded_to_refuse_a_value():
    code = (
        "import sys; from cleanprior import cli; "
        "sys.argv = ['cleanprior', 'bench', 'operator.p=2']; code = cli._run(); "
        "assert code == 2 and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "error: operator.p=2; allowed: [0, 1)\n"


@pytest.mark.parametrize("text", ["[0 1)", "above 0", "[1, 2] | [3, 4]", "[a, b]"])
def test_a_range_that_cannot_be_read_is_refused(text):
    with pytest.raises(ValueError):
        ranges.parse(text)


def test_a_part_without_a_name_is_called_by_its_room():
    with pytest.raises(UserError, match=r"^training: budget=10, batch=64"):
        build(compose(["training.budget=10"])["training"])
