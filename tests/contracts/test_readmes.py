"""What the READMEs say can be done: links lead somewhere, code runs, commands and keys exist."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import typer
from cleanprior.benchmarks.launchers import split

import cleanprior as cp
from cleanprior.cli import build_app
from cleanprior.config import GROUPS, compose, compose_one
from cleanprior.data import write_splits
from cleanprior.errors import UserError

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / f for f in ("README.md", "CHANGELOG.md", ".github/CONTRIBUTING.md")),
    *(ROOT / f / "README.md" for f in ("cleanprior", "methods", "benchmarks", "configs", "tests")),
]
IDS = [str(p.relative_to(ROOT)) for p in PAGES]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SMALL = {"batch": 8, "warmup": 1, "ema": 0.5, "device": "cpu", "precision": "fp32"}
TINY = {"evaluation.test_images": 4, "evaluation.draws": 2, "evaluation.samples": 50}
TINY |= {"evaluation.sampling_seeds": [0], "posterior.steps": 2, "sampler.steps": 2}


def anchors(path):
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def dead(text, folder):
    """Return the links of a text that lead nowhere."""
    found = []
    for link in LINK.findall(text):
        file, _, anchor = link.partition("#")
        target = folder / file if file else None
        if link.startswith("http"):
            continue
        if (
            target is not None
            and not target.exists()
            or anchor
            and target is not None
            and anchor not in anchors(target)
        ):
            found.append(link)
    return found


def commands(text):
    """Yield the command lines of ``cleanprior`` in a text's blocks, without comments."""
    for language, body in BLOCK.findall(text):
        for line in body.splitlines() if language != "python" else ():
            for part in line.split("#")[0].split("&&"):
                words = part.split()
                if words and words[0].endswith("cleanprior"):
                    yield " ".join(words[1:])


def refused(line):
    """Return why a command line is none, or None."""
    group = typer.main.get_command(build_app())
    name, *arguments = shlex.split(line)
    if name not in group.commands:
        return f"no command {name}"
    command = group.commands[name]
    try:
        context = command.make_context(name, list(arguments), resilient_parsing=False)
        given = context.params
    except Exception as error:
        return str(error)
    try:
        settings, overrides = split(given.get("overrides") or [])
        compose_one("launcher", given.get("launcher") or "local", settings)
    except UserError as error:
        return str(error)
    # What is read when it is composed is not at hand: a file, a prior to begin from.
    overrides = [o for o in overrides if "PATH" not in o and "training.start=" not in o]
    for key in ("operator", "data"):
        if isinstance(given.get(key), str):
            overrides.append(f"{key}={given[key]}")
    if not any(o.startswith("method=") for o in overrides):
        overrides.append(f"method={(given.get('methods') or 'naive').split(',')[0]}")
    if "my_own" in overrides[-1]:
        return None
    try:
        compose(overrides)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_every_link_and_picture_is_there(path):
    assert not dead(path.read_text(), path.parent)


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_every_command_exists_with_its_options_and_keys(path):
    assert not {line: why for line in commands(path.read_text()) if (why := refused(line))}


def test_the_checks_find_what_is_wrong():
    assert dead("[x](nowhere.md) [y](README.md#no-such-heading)", ROOT) == [
        "nowhere.md",
        "README.md#no-such-heading",
    ]
    lines = ["benhc", "bench --metods em", "train operator.q=1", "bench --methods emm"]
    for line in (*lines, "bench --launcher slrm", "bench --launcher slurm launcher.cores=2"):
        assert refused(line), line


def test_the_readme_is_short_and_every_group_is_described():
    assert len((ROOT / "README.md").read_text().split()) <= 1000
    text = (ROOT / "configs" / "README.md").read_text()
    for group in (*GROUPS, "launcher"):
        assert f"| `{group}` |" in text
        for path in (ROOT / "configs" / group).glob("*.yaml"):
            assert group == "method" or f"`{path.stem}`" in text, path


@pytest.mark.parametrize("path", PAGES, ids=IDS)
def test_python_in_a_readme_runs(path, tmp_path, monkeypatch):
    blocks = [body for language, body in BLOCK.findall(path.read_text()) if language == "python"]
    if not blocks:
        return
    monkeypatch.chdir(tmp_path)
    train, bench, restore = cp.train, cp.bench, cp.Prior.restore

    def short_train(method, y, A, budget=None, **given):
        return train(method, y, A, budget=16, progress=False, **{**SMALL, **given})

    def short_bench(methods, **given):
        training = {f"training.{k}": v for k, v in {**SMALL, "budget": 16}.items()}
        overrides = {**training, **TINY}
        given |= {"seeds": 1, "references": False, "progress": False, "overrides": overrides}
        return bench(methods[:1], **given)

    def short_restore(prior, y, A, posterior=None, seed=0):
        return restore(prior, y[:2], A, cp.posterior(posterior or "mmps", steps=2), seed)

    monkeypatch.setattr("cleanprior.api.train", short_train)
    monkeypatch.setattr("cleanprior.benchmarks.api.bench", short_bench)
    monkeypatch.setattr(cp.Prior, "restore", short_restore)
    monkeypatch.setattr(cp.Prior, "sample", lambda prior, n, **k: torch.zeros(n, 1, 8, 8))
    A = cp.operator("inpainting", (1, 28, 28), p=0.6, sigma=0.05)
    write_splits(tmp_path / "mine.npz", cp.measure(torch.rand(20, 1, 28, 28) * 2 - 1, A))
    space: dict[str, object] = {"__name__": "readme"}
    for body in blocks:
        exec(compile(body, str(path), "exec"), space)
