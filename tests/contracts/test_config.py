"""Configurations: each composes and builds, mistakes get the nearest spelling, hashes are names."""

import inspect
import subprocess
import sys

import pytest
from hydra.utils import get_class, get_object

from cleanprior.cells import Identity
from cleanprior.config import (
    DESCRIPTIONS,
    GROUPS,
    build,
    compose,
    compose_one,
    hydra_files,
    registry,
)
from cleanprior.config.cards import read_card
from cleanprior.errors import UserError

SHAPE = (1, 8, 8)
EVERY = [
    (group, name)
    for group in GROUPS
    for name in (registry.methods() if group == "method" else registry.options(group))
]


def arguments_of(group, name):
    """What the software itself hands to the constructor."""
    if group == "operator":
        return {"image_shape": (2 if name.startswith("mri") else 3, 16, 16)}
    if group == "backbone":
        return {"in_channels": 1, "out_channels": 1, "cond_channels": 1}
    return {}


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_each_yaml_composes(group, name):
    overrides = [f"{group}={name}"] if group == "method" else ["method=naive", f"{group}={name}"]
    config = compose(overrides)
    assert config[group]["name"] == name
    assert set(GROUPS) <= set(config)


def test_a_file_that_begins_from_no_other_composes_to_what_it_holds():
    for group, name in [*EVERY[::5], ("method", "em_official"), ("evaluation", "large")]:
        alone = hydra_files.alone(group, name)
        assert alone == hydra_files.by_hydra(f"{group}/{name}")[group], (group, name)


@pytest.mark.parametrize(
    ("text", "card"),
    [("a: {b:1}\n", {"a": {"b:1": None}}), ("a: [1, x]\n", {"a": [1, "x"]}), ("", {})],
)
def test_a_card_is_what_pyyaml_reads(tmp_path, text, card):
    path = tmp_path / "card.yaml"
    path.write_text(text)
    assert read_card(path) == card


@pytest.mark.parametrize("text", ["a: [1\n", "[" * 5_000, "a" * 20_000 + ": [", "b: {c: d: e}\n"])
def test_a_card_that_is_no_yaml_is_told_in_one_line(tmp_path, text):
    path = tmp_path / "card.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="it is not"):
        read_card(path)


@pytest.mark.parametrize(("group", "name"), [(g, n) for g, n in EVERY if g != "data"])
def test_each_yaml_builds(group, name):
    overrides = [f"{group}={name}"] if group == "method" else ["method=naive", f"{group}={name}"]
    if group == "training":
        overrides.append("training.device=cpu")
    part = compose(overrides)[group]
    made = build(part, **arguments_of(group, name))
    assert type(made) is get_class(part["_target_"])


LAUNCHERS = [("launcher", name) for name in registry.options("launcher")]


@pytest.mark.parametrize(("group", "name"), EVERY + LAUNCHERS)
def test_each_yaml_has_a_key_for_every_argument(group, name):
    overrides = [f"{group}={name}"] if group == "method" else ["method=naive", f"{group}={name}"]
    card = compose_one(group, name) if group == "launcher" else compose(overrides)[group]
    target = get_object(card["_target_"])
    parameters = inspect.signature(target).parameters
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    keys = set(card) - {"_target_", "name", *DESCRIPTIONS}
    assert keys == set(parameters) - set(arguments_of(group, name))


@pytest.mark.parametrize("name", sorted(registry.methods()))
def test_a_method_has_the_needs_and_the_entitlement_of_its_yaml(name):
    """They are written there alone: the class has none of its own."""
    part = compose([f"method={name}"])["method"]
    method = build(part)
    assert list(part["needs"]) == list(method.needs)
    assert part.get("unless", {}) == method.unless
    assert part["clean_images"] == method.clean_images
    assert inspect.signature(type(method)).parameters["needs"].default == ()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("operator.q=0.3", r"unknown key 'operator\.q'; allowed here: .*\bp\b.*sigma"),
        (
            "operator.sigmaa=0.3",
            r"unknown key 'operator\.sigmaa'.*Did you mean 'operator\.sigma'\?",
        ),
        ("training.budgt=64", r"unknown key 'training\.budgt'.*Did you mean 'training\.budget'\?"),
        ("operater=blur", r"unknown key 'operater'.*Did you mean 'operator'\?"),
        ("sead=1", r"unknown key 'sead'.*Did you mean 'seed'\?"),
        (
            "operator=inpaiting",
            r"unknown operator 'inpaiting'; installed: .*Did you mean 'inpainting'\?",
        ),
        ("method=niave", r"unknown method 'niave'; installed: .*Did you mean 'naive'\?"),
        ("data=digit", r"unknown data set 'digit'; installed: .*Did you mean 'digits'\?"),
        ("posterior=mmp", r"unknown posterior 'mmp'.*Did you mean 'mmps'\?"),
        (
            "operator.p",
            r"'operator\.p' is not an override; write key=value, e\.g\. operator\.p=0\.3",
        ),
    ],
)
def test_a_mistake_is_refused_with_the_nearest_spelling(override, message):
    with pytest.raises(UserError, match=message):
        compose(["method=naive", override])


@pytest.mark.parametrize("override", ["operator.p=[1", "operator.p={", "operator.p=${nothing}"])
def test_a_value_that_cannot_be_read_is_refused(override):
    with pytest.raises(UserError, match="allowed: a finite number"):
        compose(["method=naive", override])


def test_an_override_reaches_the_object():
    config = compose(["method=naive", "operator.p=0.25", "operator.sigma=0.125"])
    operator = build(config["operator"], image_shape=SHAPE)
    assert (operator.p, operator.sigma, operator.image_shape) == (0.25, 0.125, SHAPE)


def test_a_constructors_refusal_names_the_configuration():
    config = compose(["method=naive", "operator=blur", "operator.kernel_size=4"])["operator"]
    with pytest.raises(UserError, match=r"^blur: .*odd numbers"):
        build(config, image_shape=SHAPE)


def test_an_argument_of_the_software_reaches_the_constructor_as_it_is():
    """A tuple stays a tuple and is not turned into a list on its way."""
    operator = build(compose(["method=naive"])["operator"], image_shape=SHAPE)
    assert operator.image_shape == SHAPE


def test_levels_that_do_not_descend_are_refused():
    config = compose(["method=naive", "sampler.sigma_max=0.001"])
    with pytest.raises(UserError, match="needed: 0 < min < max"):
        build(config["sampler"])


def test_the_identity_ignores_where_a_cell_runs():
    base = Identity(compose(["method=naive"])).evaluation
    assert len(base) == 16
    for where in ("training.device=cpu", "training.checkpoint_seconds=1"):
        assert Identity(compose(["method=naive", where])).evaluation == base


def test_the_identity_changes_with_everything_that_decides_numbers():
    overrides = [
        [],
        ["seed=1"],
        ["data_seed=1"],
        ["operator.p=0.6"],
        ["operator.sigma=0.1"],
        ["operator=denoising"],
        ["training.budget=640"],
        ["training.lr=0.01"],
        ["training.precision=bf16"],
        ["backbone=medium"],
        ["posterior=dps"],
        ["sampler.steps=9"],
    ]
    hashes = [Identity(compose(["method=naive", *o])).evaluation for o in overrides]
    hashes.append(Identity(compose(["method=oracle"])).evaluation)
    assert len(set(hashes)) == len(hashes)


def test_the_identity_does_not_depend_on_the_order_of_overrides_or_the_process():
    overrides = ["method=naive", "operator.p=0.3", "seed=2"]
    code = (
        "from cleanprior.cells import Identity\nfrom cleanprior.config import compose\n"
        f"print(Identity(compose({overrides[::-1]!r})).evaluation)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == Identity(compose(overrides)).evaluation


@pytest.mark.parametrize("work", ["pass", "registry.methods(); registry.read('method', 'naive')"])
def test_the_registry_and_the_capability_check_import_no_torch(work):
    code = (
        "import sys\n"
        "from cleanprior.config import capabilities, registry\n"
        f"{work}\n"
        "print('torch' in sys.modules, 'hydra' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


def test_composing_imports_no_torch():
    code = (
        "import sys\n"
        "from cleanprior.cells import Identity\nfrom cleanprior.config import compose\n"
        "Identity(compose(['method=naive'])).evaluation\n"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"
