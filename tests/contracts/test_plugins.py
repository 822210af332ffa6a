"""Packages of strangers: found by one entry point; a broken one costs its own row and one line."""

import os
import subprocess
import sys

import pytest
from cleanprior.benchmarks import description, plan
from plugins import CARD, METHOD, write_plugin

from cleanprior import notices
from cleanprior.cells.code import method_code
from cleanprior.commands import listing
from cleanprior.config import build, compose, registry
from cleanprior.errors import UserError

PARTS = {
    "operator": "_target_: cleanprior.operators.RandomInpainting\np: 0.9\nper_channel: false\n"
    "sigma: 0.0\ncapabilities: [random, mask, further, svd, same_shape, gaussian]\nabout: few\n",
    "data": "_target_: cleanprior.data.digits\nabout: theirs\n",
    "posterior": "defaults: [mmps]\nsteps: 5\nabout: short\n",
    "sampler": "defaults: [multistep]\nsteps: 5\nabout: short\n",
    "evaluation": "defaults: [default]\ndraws: 2\nabout: short\n",
    "backbone": "defaults: [small]\nabout: theirs\n",
    "method": CARD,
    "bench": "data: guest_data\nproblems: [[operator=guest_operator]]\nmethods: [guest_method]\n"
    "about: theirs\n",
}
FILES = {
    "__init__.py": METHOD,
    **{f"configs/{group}/guest_{group}.yaml": text for group, text in PARTS.items()},
}


def listed(capsys, what):
    listing.show(what)
    return capsys.readouterr().out


def test_a_package_brings_configurations_of_every_group(plugin, capsys):
    plugin("guest_package", FILES)
    names = {group: kind for kind, group in listing.KINDS.items()}
    for group in PARTS:
        assert f"guest_{group}" in registry.options(group)
        assert f"guest_{group}" in listed(capsys, names[group])
    assert registry.methods()["guest_method"].name == "guest_method.yaml"
    assert registry.remarks() == []
    chosen = [f"{g}=guest_{g}" for g in PARTS if g != "bench"]
    config = compose(chosen)
    assert (config["operator"]["p"], config["posterior"]["steps"]) == (0.9, 5)
    assert type(build(config["method"])).__name__ == "Shrunk"
    assert config["sampler"]["steps"] == 5
    assert len(method_code(config)) == 16
    made = plan.make_plan(description.bench("guest_bench"))
    (problem,) = made.problems
    assert list(problem.cells) == ["guest_method"]
    assert plan.refusal(problem.cells["guest_method"][0]) is None


BAD = {
    "syntax": ("operator", "p: [1\n", "not YAML"),
    "no keys": ("operator", "- 1\n", "not a YAML of keys"),
    "no bytes of a text": ("operator", None, "cannot be read"),
    "no target": ("operator", "sigma: 0.1\n", "_target_ is None"),
    "wrong type": (
        "operator",
        "_target_: cleanprior.operators.RandomInpainting\np: [1]\nper_channel: false\nsigma: 0\n",
        r"p is \[1\]; its argument is a float",
    ),
    "no noise level": ("operator", "_target_: a.B\nsigma: much\n", "sigma is 'much'"),
    "unknown capability": (
        "operator",
        "_target_: a.B\ncapabilities: [maks]\n",
        "unknown capability 'maks'.*Did you mean 'mask'",
    ),
    "capabilities are no list": ("data", "_target_: a.B\ncapabilities: mask\n", "list of words"),
    "unknown need": ("method", "_target_: a.B\nneeds: [NOSE]\n", "unknown need 'NOSE'"),
    "what waives no need": (
        "method",
        "_target_: a.B\nneeds: [MASK]\nunless:\n  MASK: mode=[0\n",
        "unless.MASK is 'mode=\\[0'",
    ),
    "no count": ("method", "_target_: a.B\nclean_images: many\n", "clean_images is 'many'"),
    "gone": ("method", "_target_: not_there.B\n", "cannot be imported: ModuleNotFoundError"),
    "no class": ("method", "_target_: {package}.Nobody\n", "has no attribute 'Nobody'"),
    "no name": ("method", "_target_: nowhere\n", "_target_ is 'nowhere'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_configuration_that_cannot_be_used_costs_its_own_row(plugin, capsys, case):
    group, text, message = BAD[case]
    files = {"__init__.py": METHOD, f"configs/{group}/broken.yaml": text or ""}
    package = f"broken_{case.replace(' ', '_')}"
    site = plugin(package, files | {"configs/method/healthy.yaml": CARD})
    if text is None:
        (site / package / "configs/operator/broken.yaml").write_bytes(b"about: \xff\n")
    kind = next(kind for kind, g in listing.KINDS.items() if g == group)
    shown = " ".join(listed(capsys, kind).split())
    assert "broken" in shown and "cannot be used" in shown
    assert "healthy" in listed(capsys, "methods")
    with pytest.raises(UserError, match=message) as told:
        build(
            compose([f"{group}=broken"])[group],
            **({"image_shape": (1, 8, 8)} if group == "operator" else {}),
        )
    assert "\n" not in str(told.value)
    made = plan.make_plan(description.bench("default"), ["healthy", "naive"])
    assert list(made.problems[0].cells) == ["observations", "healthy", "naive", "oracle"]


CODE = {
    "NameError": "class Mine(Mehtod):\n    pass\n",
    "ImportError": "from cleanprior.training import Metohd\n\nclass Mine: pass\n",
    "ModuleNotFoundError": "import not_there_at_all\n\nclass Mine: pass\n",
    "SyntaxError": "class Mine(:\n",
    "RuntimeError": "raise RuntimeError('no licence')\n\nclass Mine: pass\n",
    "AttributeError": "class Other: pass\n",
}


@pytest.mark.parametrize("kind", CODE)
@pytest.mark.parametrize("where", ["__init__.py", "inside.py"])
def test_code_that_cannot_be_imported_is_a_row_with_its_reason(plugin, capsys, kind, where):
    package = f"broken_{kind.lower()}_{where.strip('_').partition('.')[0]}"
    card = "_target_: {package}.Mine\nneeds: []\n"
    files = {where: CODE[kind], "configs/method/broken.yaml": card}
    if where != "__init__.py":
        files["__init__.py"] = "from .inside import Mine\n"
    plugin(package, files)
    told = "ImportError" if (kind, where) == ("AttributeError", "inside.py") else kind
    shown = " ".join(listed(capsys, "methods").split())
    assert f"cannot be used: '{package}.Mine' cannot be imported: {told}" in shown
    with pytest.raises(UserError, match=told) as refused:
        build(compose(["method=broken"])["method"])
    assert "\n" not in str(refused.value)


SOUND = """
from __future__ import annotations

import typing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
try:
    import tomllib
except ImportError:
    tomllib = None
TABLE = {k: v for k, v in zip("ab", range(2))}
with open(__file__) as file:
    first, *others = file
del file


class Base:
    one: Sequence[int] = (1,)
    two = one


class Mine(Base):
    @property
    def later(self) -> Unknown:
        return nobody_binds_this
"""


def test_sound_code_is_not_imported(plugin, capsys):
    plugin(
        "sound_package",
        {
            "__init__.py": SOUND,
            "configs/method/sound.yaml": "_target_: sound_package.Mine\nabout: all is well\n",
        },
    )
    assert "all is well" in listed(capsys, "methods")
    assert "sound_package" not in sys.modules


def test_a_constructor_may_raise_what_it_likes(plugin):
    code = "class Mine:\n    def __init__(self):\n        assert False, 'never'\n"
    plugin("angry", {"__init__.py": code, "configs/method/angry.yaml": "_target_: angry.Mine\n"})
    with pytest.raises(UserError, match="angry: AssertionError: never"):
        build(compose(["method=angry"])["method"])


def test_a_package_that_is_gone_or_brings_nothing_is_one_line(plugin, capsys):
    plugin("gone", {"__init__.py": ""}, "[cleanprior.plugins]\nx = went_away\n")
    plugin("empty", {"__init__.py": ""})
    plugin("entry", {"__init__.py": ""}, "[cleanprior.methods]\nlost = lost_package:Lost\n")
    shown = listed(capsys, "operators")
    assert "careful: 'went_away' (x = went_away) cannot be found: install the plug-in" in shown
    assert "careful: the plug-in 'empty' brings nothing" in shown
    assert "inpainting" in shown
    with pytest.raises(UserError, match="method 'lost': its package 'lost_package' cannot be"):
        compose(["method=lost"])


def test_a_built_in_configuration_stays_and_the_hidden_one_is_told(plugin, capsys, caplog):
    plugin("shadow", {"__init__.py": METHOD, "configs/method/naive.yaml": CARD})
    line = "method 'naive' is the built-in one; that of the package shadow is hidden"
    assert line in " ".join(listed(capsys, "methods").split()), (
        "over two lines where 80 columns are"
    )
    notices._told.clear()
    assert compose(["method=naive"])["method"]["_target_"].endswith(".Naive")
    assert line in caplog.text


def test_an_entry_point_cannot_take_a_built_in_name(plugin):
    plugin("thief", {"__init__.py": METHOD}, "[cleanprior.methods]\nem = thief:Shrunk\n")
    assert registry.installed(registry.METHODS)["em"].value == "cleanprior.methods.em:EM"
    assert any("em = thief:Shrunk is hidden" in line for line in registry.remarks())


def test_two_plug_ins_with_one_name_are_both_refused(plugin, capsys):
    for package in ("first_one", "second_one"):
        plugin(package, {"__init__.py": METHOD, "configs/method/same.yaml": CARD})
    message = r"method 'same' comes with several packages \(first_one, second_one\)"
    with pytest.raises(UserError, match=message):
        compose(["method=same"])
    assert "comes with several packages" in " ".join(listed(capsys, "methods").split())


def test_damaged_metadata_of_one_package_hides_no_other(plugin):
    plugin("damaged", {"__init__.py": ""}, "[cleanprior.plugins]\nno equals sign\n")
    plugin("whole", {"__init__.py": METHOD, "configs/method/whole.yaml": CARD})
    assert {"whole", "em"} <= set(registry.methods())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: digits\nmethods: [naive]\n", "lacks problems"),
        ("data: digits\nmethods: naive\nproblems: [[operator=blur]]\n", "methods is 'naive'"),
        ("data: digits\nmethods: [naive]\nproblems: [operator=blur]\n", "must list overrides"),
        ("data: digits\nmethods: [naive]\nproblems: [[1]]\n", "must list overrides"),
        ("methods: [\n", "not YAML"),
    ],
)
def test_a_bench_that_is_none_is_refused(plugin, text, message):
    plugin("benches", {"__init__.py": "", "configs/bench/mine.yaml": text})
    with pytest.raises(UserError, match=message):
        description.bench("mine")


def test_the_command_line_goes_on_and_loads_no_torch(tmp_path):
    """A broken command, a broken method and a sound one: exit codes, one line each."""
    write_plugin(
        tmp_path,
        "strange",
        {
            "__init__.py": METHOD,
            "bad.py": CODE["NameError"],
            "configs/method/sound.yaml": CARD,
            "configs/method/bad.yaml": "_target_: strange.bad.Mine\n",
        },
        "[cleanprior.plugins]\ns = strange\n"
        "[cleanprior.commands]\nodd = strange.bad:Mine\ntrain = strange:Shrunk\n",
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "80"}

    def run(*arguments):
        command = [sys.executable, "-m", "cleanprior", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env)

    shown = run("list", "methods")
    assert shown.returncode == 0 and "a guest" in shown.stdout
    assert "NameError" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    for arguments in (("odd",), ("bench", "--methods", "naive,bad", "--no-references")):
        refused = run(*arguments)
        assert refused.returncode == 2, refused.stderr
        assert "NameError" in refused.stderr and refused.stderr.count("\n") == 1
    assert not (tmp_path / "runs" / "cells").exists()
    assert "train" in run("train", "--help").stdout


@pytest.mark.parametrize("what", [*listing.KINDS, listing.METRICS])
def test_every_list_fits_80_columns_and_says_what_each_entry_is(capsys, monkeypatch, what):
    monkeypatch.setenv("COLUMNS", "80")
    lines = listed(capsys, what).splitlines()
    assert max(map(len, lines)) <= 80
    end = next((i for i, line in enumerate(lines) if not line), len(lines))
    entries = [line for line in lines[2:end] if not line.startswith(" ")]
    assert entries and all(len(line.split()) > 1 for line in entries)
