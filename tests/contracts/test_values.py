"""Values of the command line: the right value, or one line with what was given and is allowed."""

import inspect
import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from hydra.utils import get_object

from cleanprior.config import GROUPS, compose, ranges, registry
from cleanprior.config.signatures import arguments
from cleanprior.config.values import declared, kind_of, read
from cleanprior.errors import UserError

#: Characters that some grammar on the way gives a meaning.
ODD = " é文=()#'&,~;{}[]$\\\"%^:|<>?*!@`x${nothing}${oc.env:HOME} \\' \\\\${a} "
DATA = ["method=naive", "data=folder"]


def value(override, *more):
    """Return the composed value of the key that an override names."""
    method = [] if any(o.startswith("method=") for o in more) else ["method=naive"]
    found = compose([*method, *more, override])
    for part in override.lstrip("+").partition("=")[0].split("."):
        found = found[part]
    return found


@pytest.mark.parametrize("path", [ODD, "2024", "null.", "true", "[1,2]", "{a:1}", "1e3", " ", "-"])
def test_a_path_is_taken_literally(path):
    assert value(f"data.path={path}", "data=folder") == path


def test_every_text_of_every_group_is_taken_literally():
    tried = 0
    for group in GROUPS:
        for name in registry.methods() if group == "method" else registry.options(group):
            card = compose([f"{group}={name}"])[group]
            declared_by = arguments(card["_target_"])
            words = registry.read(group, name).get(ranges.KEY) or {}
            for key, default in card.items():
                kind = kind_of(declared_by.get(key), default)
                if key in ("_target_", "name", *words) or "str" not in kind.types:
                    continue
                if (group, key) == ("training", "start"):  # is looked up at once
                    with pytest.raises(UserError, match=re.escape(f"training.start={ODD}: ")):
                        value(f"{group}.{key}={ODD}")
                    continue
                assert value(f"{group}.{key}={ODD}", f"{group}={name}") == ODD, (group, name, key)
                tried += 1
    assert tried > 50


@pytest.mark.parametrize("text", ["~", "~/a b", "~/=x"])
def test_the_home_folder_is_expanded_in_paths_alone(text):
    assert value(f"data.path={text}", "data=folder") == os.path.expanduser(text)
    assert value(f"data.column={text}", "data=huggingface") == text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.budget=1e3", 1000),
        ("training.budget=12_800", 12800),
        ("training.batch=32.0", 32),
        ("training.batch= 32 ", 32),
        ("training.lr=1", 1.0),
        ("training.lr=.5", 0.5),
        ("training.lr=1E-4", 1e-4),
        ("operator.p=0", 0.0),
        ("operator.per_channel=True", True),
        ("operator.per_channel=yes", True),
        ("operator.per_channel=off", False),
        ("operator.per_channel=0", False),
        ("seed=1e2", 100),
        ("seed=0", 0),
        ("evaluation.features=inception", "inception"),
        ("evaluation.features=[inception, auto]", ["inception", "auto"]),
        ("backbone.hid_channels=[8,16.0]", [8, 16]),
        ("sampler.steps=+18", 18),
    ],
)
def test_a_value_is_read_as_what_its_key_holds(override, expected):
    found = value(override)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("override", "group", "expected"),
    [
        ("data.limit=null", "data=folder", None),
        ("data.limit=1e2", "data=folder", 100),
        ("data.animal=null", "data=afhq", None),
        ("data.range=[0, 4095]", "data=arrays", [0.0, 4095.0]),
        ("data.image_shape=[1,8,8]", "data=measurements", [1, 8, 8]),
        ("method.hidden_weight=auto", "method=ambient", "auto"),
        ("method.hidden_weight=8", "method=ambient", 8.0),
        ("method.clean_images=10", "method=oracle", 10),
        ("method.posterior.steps=8", "method=em", 8),
        ("method.sampler.steps=8", "method=ambient", 8),
        ("posterior.options={scale: 0.3}", "posterior=deepinv", {"scale": 0.3}),
        (
            "posterior.options={scale:0.3,a:[1,b]}",
            "posterior=deepinv",
            {"scale": 0.3, "a": [1, "b"]},
        ),
        ("+posterior.options.eta=0", "posterior=deepinv", 0),
        ("posterior.options.name=a=b", "posterior=deepinv", "a=b"),
    ],
)
def test_an_annotation_tells_where_the_default_does_not(override, group, expected):
    found = value(override, group)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.budget=abc", "training.budget=abc; allowed: a whole number"),
        ("training.budget=", "training.budget= has no value; allowed: a whole number"),
        ("training.budget=1.5", "training.budget=1.5; allowed: a whole number"),
        ("training.budget=null", "training.budget=null; allowed: a whole number"),
        ("training.budget=[64]", "training.budget=[64]; allowed: a whole number"),
        ("training.budget={a:1}", "training.budget={a:1}; allowed: a whole number"),
        ("training.budget=true", "training.budget=true; allowed: a whole number"),
        ("training.budget=1e400", "training.budget=1e400; allowed: a whole number"),
        ("training.budget=99999999999999999999", "allowed: a whole number"),
        ("training.budget=${training.batch}", "allowed: a whole number"),
        ("training.lr=nan", "training.lr=nan; allowed: a finite number"),
        ("training.lr=-inf", "training.lr=-inf; allowed: a finite number"),
        ("training.lr=1e999", "training.lr=1e999; allowed: a finite number"),
        ("training.lr=0x10", "training.lr=0x10; allowed: a finite number"),
        ("training.lr=1,5", "training.lr=1,5; allowed: a finite number"),
        ("training.lr=no", "training.lr=no; allowed: a finite number"),
        ("operator.p=1/2", "operator.p=1/2; allowed: a finite number. Did you mean 0.5?"),
        ("operator.p=1/0", "operator.p=1/0; allowed: a finite number"),
        ("operator.per_channel=maybe", "operator.per_channel=maybe; allowed: true or false"),
        ("operator.per_channel=2", "operator.per_channel=2; allowed: true or false"),
        ("seed=abc", "seed=abc; allowed: a whole number from 0"),
        ("seed=-1", "seed=-1; allowed: a whole number from 0"),
        ("seed=1.5", "seed=1.5; allowed: a whole number from 0"),
        ("data_seed=-3", "data_seed=-3; allowed: a whole number from 0"),
        ("evaluation.seed=-1", "evaluation.seed=-1; allowed: a whole number from 0"),
        ("backbone.hid_channels=8", "Did you mean [8]?"),
        ("backbone.hid_channels=[8", "backbone.hid_channels=[8; allowed: a list"),
        ("backbone.hid_channels=[8,x]", "backbone.hid_channels=[8,x]; allowed: a list"),
        ("backbone.hid_channels=[8,,16]", "allowed: a list"),
        ("training.device=", "training.device= has no value; allowed: a word"),
        ("=3", "'=3' is not an override; write key=value"),
        ("~data=digits", "'~data=digits' is not an override; write key=value"),
        ("training=", "unknown training ''"),
        ("data.name=x", "unknown key 'data.name'"),
        ("hydra.run.dir=x", "unknown key 'hydra.run.dir'"),
        ("seed.x=1", "unknown key 'seed.x'"),
        ("method.a.b.c=1", "unknown key 'method.a.b.c'"),
    ],
)
def test_another_value_is_one_line(override, message):
    with pytest.raises(UserError) as caught:
        compose(["method=naive", override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_part_with_keys_of_its_own_names_them():
    with pytest.raises(
        UserError, match="'method.posterior' has keys of its own; set one of them: s"
    ):
        compose(["method=em", "method.posterior=dps"])


def test_a_group_that_is_given_twice_is_refused():
    with pytest.raises(UserError, match="operator is given twice: blur, box; give one"):
        compose(["method=naive", "operator=blur", "operator=box"])
    assert compose(["operator=box", "operator=box"])["operator"]["name"] == "box"


def test_the_later_of_two_values_counts():
    assert value("operator.p=0.25", "operator.p=0.75") == 0.25


def test_another_spelling_of_a_default_is_no_other_cell():
    plain = compose(["method=naive"])
    same = ["training.budget=96e3", "operator.p=.50", "operator.sigma=0", "sampler.sigma_max=10"]
    assert json.dumps(compose(["method=naive", *same])) == json.dumps(plain)


def test_a_remembered_value_is_data():
    """What stands in a prior's card is never resolved, and has the type of its key."""
    kept = {"data": {"name": "folder", "path": "${oc.env:HOME} a=b", "limit": None, "labels": True}}
    found = compose([*DATA], kept)["data"]
    assert found["path"] == "${oc.env:HOME} a=b" and found["labels"] is True
    assert compose([*DATA, "data.path=b"], kept)["data"]["path"] == "b"
    with pytest.raises(UserError, match=r"data.resolution=\[1\]; allowed: a whole number"):
        compose(DATA, {"data": {"resolution": "[1]"}})
    with pytest.raises(UserError, match="unknown key 'data.gone'"):
        compose(DATA, {"data": {"gone": 1}})


def test_somebodys_own_hydra_stays_as_it_is(tmp_path):
    code = (
        "import hydra\n"
        "from hydra.core.global_hydra import GlobalHydra\n"
        "@hydra.main(version_base=None)\n"
        "def main(config):\n"
        "    mine = GlobalHydra.instance().hydra\n"
        "    from cleanprior.config import compose\n"
        "    compose(['method=naive', 'data=folder', 'data.path=a=b'])\n"
        "    assert mine is not None and GlobalHydra.instance().hydra is mine\n"
        "    print('composed', hydra.core.hydra_config.HydraConfig.get().job.name)\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, "hydra.run.dir=.", "hydra.output_subdir=null"]
    out = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert "composed" in out.stdout, out.stderr


@pytest.mark.parametrize(
    ("annotation", "types"),
    [
        ("int", {"int"}),
        ("float | str", {"float", "str"}),
        ("Optional[Sequence[float]]", {"list", "null"}),
        ("Union[int, None]", {"int", "null"}),
        ("Literal['a', 'b']", {"str"}),
        ("'int | None'", {"int", "null"}),
        ("Mapping[str, Any]", {"dict"}),
        ("collections.abc.Sequence[str]", {"list"}),
        ("PosteriorSampler", set()),
        ("not a type", set()),
    ],
)
def test_what_an_annotation_allows(annotation, types):
    assert declared(annotation).types == types


def test_what_nobody_declared_may_be_anything():
    assert read("a.b", "x=1", kind_of(None, None)) == "x=1"
    assert read("a.b", "[1, x]", kind_of(None, None)) == [1, "x"]


EVERY = [(g, n) for g in GROUPS for n in registry.options(g)]


@pytest.mark.parametrize(("group", "name"), EVERY)
def test_the_source_says_what_the_object_says(group, name):
    """The annotations read without an import are those of the constructor."""
    target = yaml.safe_load(registry.options(group)[name].read_text(encoding="utf-8")).get(
        "_target_"
    )
    if target is None:
        return
    said = {k: p.annotation for k, p in inspect.signature(get_object(target)).parameters.items()}
    found = arguments(target)
    assert found.keys() >= said.keys()
    for key, annotation in said.items():
        if isinstance(annotation, type) and annotation in (int, float, str, bool):
            assert found[key] == annotation.__name__, (target, key)
