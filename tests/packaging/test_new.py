"""``cleanprior new``: packages that install, keep their promises and stand in a bench."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cleanprior.commands import scaffold
from cleanprior.errors import UserError

ROOT = Path(__file__).parents[2]
KINDS = sorted(scaffold.KINDS)
TINY = [
    "training.budget=160",
    "evaluation.test_images=4",
    "evaluation.draws=2",
    "evaluation.samples=50",
    "evaluation.sampling_seeds=[0]",
    "posterior.steps=3",
    "sampler.steps=3",
]


def run(*command, cwd, **variables):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    env |= {"OMP_NUM_THREADS": "1", "COLUMNS": "80", **variables}
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """One new package of each kind."""
    folder = tmp_path_factory.mktemp("new")
    return {
        kind: scaffold.write_package(kind, f"my_{kind}", folder / f"my_{kind}") for kind in KINDS
    }


@pytest.fixture(scope="module")
def python(written, tmp_path_factory):
    """The interpreter of an environment with their wheels and this project's, and no network."""
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("environment")
    made = run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    if made.returncode != 0:
        pytest.skip(f"no environment can be made here: {made.stderr.strip()}")
    source = folder / "source"
    hidden = shutil.ignore_patterns(".*", "__pycache__", "build", "runs", "tests", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=hidden)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    quiet = ["-q", "--no-deps", "--no-index"]
    built = run(
        *pip, "wheel", *quiet, "--no-build-isolation", "-w", folder / "wheels",
        source, *written.values(), cwd=folder,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    libraries = [p for p in sys.path if p.endswith("site-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries) + "\n")
    wheels = sorted((folder / "wheels").glob("*.whl"))
    assert len(wheels) == len(written) + 1
    done = run(*pip, "install", *quiet, "--target", site, *wheels, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "venv" / "bin" / "python"


def test_new_packages_are_listed(python, tmp_path):
    code = "from cleanprior.commands.listing import show\nfor k in %r: show(k)"
    whats = list(scaffold.LISTS.values())
    listed = run(python, "-c", code % whats, cwd=tmp_path)
    for kind in KINDS:
        assert listed.returncode == 0, listed.stderr
        assert f"my_{kind}" in listed.stdout
        assert "careful" not in listed.stdout and "cannot be used" not in listed.stdout
        assert max(map(len, listed.stdout.splitlines())) <= 80


def test_their_contract_tests_pass(python, written, tmp_path):
    files = sorted(path for folder in written.values() for path in folder.glob("tests/*.py"))
    assert len(files) == len(written)
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-c", os.devnull]
    done = run(python, "-m", "pytest", *options, *files, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_they_stand_in_a_bench(python, tmp_path):
    parts = ["--methods", "my_method", "--operator", "my_operator", "--data", "my_data"]
    parts += ["--no-references", "evaluation.metrics=[my_metric]", *TINY]
    done = run(python, "-m", "cleanprior", "bench", *parts, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("my_method")]
    assert "failed" not in row
    (table,) = tmp_path.glob("runs/tables/*/table.md")
    assert "| my_metric | my_metric point |" in " ".join(table.read_text().split())


def test_the_command_writes_from_an_installation_and_refuses_what_is_there(python, tmp_path):
    new = [python, "-m", "cleanprior", "new", "method"]
    assert run(*new, "another", cwd=tmp_path).returncode == 0
    assert (tmp_path / "cleanprior_another" / "pyproject.toml").is_file()
    for name, told in (("my_method", "is there already"), ("another", "exists already")):
        refused = run(*new, name, cwd=tmp_path)
        assert refused.returncode == 2
        assert told in refused.stderr and refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("method", "my-own", "no name for a method"),
        ("method", "2nd", "no name for a method"),
        ("operator", "_hidden", "no name for an operator"),
        ("operator", "", "no name"),
        ("operator", "a/b", "no name"),
        ("data", "für", "no name"),
        ("data", "class", "a word of Python's own"),
        ("data", "match", "a word of Python's own"),
        ("method", "em", "method 'em' is there already, in the package cleanprior"),
        ("data", "digits", "data set 'digits' is there already"),
        ("metric", "psnr", "metric 'psnr' is there already"),
        ("metric", "fd_mine", "there already"),
        ("metod", "mine", "unknown kind 'metod'.*Did you mean 'method'"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused_and_nothing_written(tmp_path, kind, name, message):
    with pytest.raises(UserError, match=message):
        scaffold.write_package(kind, name, tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years")
    (tmp_path / "file").write_text("a file")
    for folder, message in (("full", "exists already"), ("file", "is not a folder")):
        with pytest.raises(UserError, match=message):
            scaffold.write_package("method", "mine", tmp_path / folder)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full", "thesis.tex"]
    (tmp_path / "empty").mkdir()
    made = scaffold.write_package("method", "mine", tmp_path / "empty")
    assert (made / "cleanprior_mine" / "__init__.py").is_file()


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scaffold.os, "replace", refuse)
    with pytest.raises(UserError, match="cannot be written: No space left"):
        scaffold.write_package("method", "mine", tmp_path / "mine")
    assert list(tmp_path.iterdir()) == []


def test_the_command_loads_no_torch(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from cleanprior import cli\nfrom cleanprior.commands import scaffold\n"
        "scaffold.write_package('method', 'mine', Path('mine'))\nprint('torch' in sys.modules)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "False"
