"""Names, values, requests and texts of strangers: nothing takes them for its own language."""

import io
import json
from itertools import pairwise

import pytest
from hostile import (
    assert_refused,
    nested,
)
from rich.console import Console

from cleanprior.data import hub
from cleanprior.errors import UserError
from cleanprior.progress import Progress

CALL = "os.mkdir"


# -- names and values of the command line, requests ------------------------------------------------

BOMB = f"""[&a [{",".join("x" * 10)}],{
    ",".join(f"&{b} [{','.join([f'*{a}'] * 10)}]" for a, b in pairwise("abcdefghij"))
}]"""
LINES = {
    "a bench outside of its folder": (["bench", "--bench", "../../x"], "unknown bench '../../x'"),
    "a table outside of its folder": (["bench", "--table", "../x"], "unknown table '../x'"),
    "data outside of their folder": (["train", "data=../../x"], "'../../x'"),
    "an operator by its path": (["train", "operator=/etc/passwd"], "'/etc/passwd'"),
    "a method that is a reference": (["train", "method=${oc.env:HOME}"], "unknown method"),
    "what a part calls": (
        ["train", f"operator._target_={CALL}"],
        "unknown key 'operator._target_'",
    ),
    "a value that calls": (
        ["train", "method=em", "method.posterior={_target_: os.mkdir, path: CANARY}"],
        "'method.posterior' has keys of its own",
    ),
    "a reference for a number": (
        ["train", "operator.p=${oc.env:HOME}"],
        "operator.p=${oc.env:HOME}",
    ),
    "a reference for a path": (
        ["train", "data=folder", "data.path=${oc.env:HOME}"],
        "'${oc.env:HOME}' is not a folder",
    ),
    "a group of Hydra's": (["train", "hydra.run.dir=CANARY"], "unknown key 'hydra.run.dir'"),
    "a deletion": (["train", "~method"], "is not an override"),
    "a list that repeats itself 10^9 times": (
        ["train", f"method.scales={BOMB}"],
        "allowed: a list",
    ),
    "keys that hold such a list": (
        ["train", "posterior=deepinv", f"posterior.options={{a: {BOMB}}}"],
        "allowed: keys with values",
    ),
    "keys that hold themselves": (
        ["train", "posterior=deepinv", "posterior.options={a: &a {b: *a}}"],
        "allowed: keys with values",
    ),
    "lists within lists": (["train", f"method.scales={nested(20_000)}"], "allowed: a list"),
    "a list that calls": (
        ["train", "method.scales=!!python/object/apply:os.mkdir [CANARY]"],
        "allowed: a list",
    ),
    "a name of 100,000 letters": (["train", f"method={'x' * 100_000}"], "unknown method 'xxx"),
    "a key of 100,000 letters": (["train", f"{'x' * 100_000}=1"], "unknown key 'xxx"),
    "a folder that no disk has": (["speed", "startup", "--out", "/proc/none"], "--out /proc/none"),
    "escapes of a terminal": (["train", "method=\x1b[31mred\x07"], r"\x1b[31mred\x07"),
    "lines within a name": (["train", "method=a\nerror: b"], "unknown method 'a error: b'"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", LINES)
def test_names_and_values(run, canary, tmp_path, name):
    arguments, message = LINES[name]
    result = run(*(a.replace("CANARY", str(canary)) for a in arguments))
    assert_refused(result, message, canary)
    assert "\x1b" not in result[1] and not list((tmp_path / "work").iterdir())


ASKED = {
    "bench": "default",
    "table": None,
    "scale": "cpu",
    "methods": None,
    "operators": None,
    "data": None,
    "seeds": None,
    "overrides": [],
    "with_references": True,
}
REQUESTS = {
    "a bench outside of its folder": (json.dumps(ASKED | {"bench": "../../x"}), "unknown bench"),
    "a value that calls": (
        json.dumps(ASKED | {"overrides": [f"training.budget={{_target_: {CALL}}}"]}),
        "training.budget={_target_: os.mkdir}",
    ),
    "what a part calls": (
        json.dumps(ASKED | {"overrides": [f"backbone._target_={CALL}"]}),
        "unknown key",
    ),
    "a number for a bench": (json.dumps(ASKED | {"bench": 3}), ""),
    "methods that are numbers": (json.dumps(ASKED | {"methods": [3]}), ""),
    "operators that are keys": (json.dumps(ASKED | {"operators": [{"a": 1}]}), ""),
    "a key too many": (json.dumps(ASKED | {"__class__": "x"}), "is damaged"),
    "lists within lists": (nested(100_000), "is damaged"),
    "a number of 10,000 digits": ("1" * 10_000, "is damaged"),
    "2 MB": (json.dumps(ASKED | {"data": "x" * (2 << 20)}), "holds no request.json"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", REQUESTS)
def test_a_strangers_request(run, canary, tmp_path, name):
    text, message = REQUESTS[name]
    folder = tmp_path / "runs" / "tables" / "x"
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(text)
    assert_refused(run("report", folder), message, canary)
    assert [p.name for p in folder.iterdir()] == ["request.json"]


# -- texts that something else would read as its own language --------------------------------------


def test_brackets_are_no_markup_of_a_console():
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=120)
    with Progress(console).live() as progress, progress.task("train · [/x]", 3) as task:
        task.advance(1, note="[/bold] [red]")
        progress.say("naive failed: [/x] [link=file:///etc/passwd]")
        assert progress.bars is not None
        progress.bars.refresh()
    assert "train · [/x]" in shown.getvalue() and "[/bold] [red]" in shown.getvalue()
    assert "[link=file:///etc/passwd]" in shown.getvalue()


@pytest.mark.parametrize(("version", "given"), [("2.14.0", 1), ("3.6.0", 1), ("4.0.0", 0)])
def test_a_repository_runs_no_script(monkeypatch, version, given):
    asked = []

    class Library:
        __version__ = version

        @staticmethod
        def load_dataset(*arguments, **options):
            asked.append(options)
            raise ValueError("it holds a script")

    monkeypatch.setattr(hub, "optional", lambda *_: Library)
    with pytest.raises(UserError, match="it holds a script"):
        hub.huggingface("a/b", None, "train", None, None, None, 8, 1, 0.1, None)
    assert asked == [{"trust_remote_code": False}] * given or (not given and asked == [{}])
