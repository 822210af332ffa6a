"""Where Python may find the package: installed, in a clone, in the folder of a clone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("cleanprior", "methods", "benchmarks", "configs")
FILES = ("__init__.py", "pyproject.toml", "README.md", "LICENSE")
WHERE = (
    "import cleanprior, cleanprior.methods.em, cleanprior.benchmarks.cli, cleanprior.configs\n"
    "from cleanprior.config import compose\n"
    "assert compose(['method=em'])['method']['name'] == 'em'\n"
    "print(cleanprior.__version__, cleanprior.methods.em.__file__)"
)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone called ``cleanprior``, as `git clone` leaves it."""
    folder = tmp_path_factory.mktemp("work") / "cleanprior"
    folder.mkdir()
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def installed(clone, tmp_path_factory):
    """A plain installation of it."""
    pytest.importorskip("pip")
    source = tmp_path_factory.mktemp("source") / "cleanprior"
    shutil.copytree(clone, source)  # pip builds where the sources lie
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--disable-pip-version-check", "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def python(folder, first, *arguments):
    """Run Python without the editable installation, ``first`` before the libraries."""
    libraries = [p for p in sys.path if p.endswith("site-packages")]
    path = os.pathsep.join([str(f) for f in first] + libraries)
    env = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)


def test_an_installation_has_every_room(installed, tmp_path):
    out = python(tmp_path, [installed], "-c", WHERE)
    em = installed / "cleanprior" / "methods" / "em" / "__init__.py"
    assert out.stdout.split()[1] == str(em), out.stderr


def test_an_installation_holds_the_licence_and_no_readme(installed):
    (licence,) = installed.glob("cleanprior-*.dist-info/licenses/LICENSE")
    assert licence.read_text() == (ROOT / "LICENSE").read_text()
    metadata = (licence.parents[1] / "METADATA").read_text()
    assert "License-Expression: MIT" in metadata and "License-File: LICENSE" in metadata
    assert not list((installed / "cleanprior").rglob("README.md"))


def test_the_module_runs_in_a_clone_after_a_plain_installation(clone, installed):
    """The clone's package comes first there, and with it the clone's rooms."""
    listed = python(clone, [installed], "-m", "cleanprior", "list", "methods")
    assert listed.returncode == 0 and "em_mmps" in listed.stdout, listed.stderr
    helped = python(clone, [installed], "-m", "cleanprior", "bench", "--help")
    assert helped.returncode == 0 and "--methods" in helped.stdout, helped.stderr
    out = python(clone, [installed], "-c", WHERE)
    assert out.stdout.split()[1] == str(clone / "methods" / "em" / "__init__.py"), out.stderr


def test_a_clone_in_the_current_folder_is_the_package_inside_it(clone):
    out = python(clone.parent, [], "-c", WHERE)
    assert out.stdout.split()[1] == str(clone / "methods" / "em" / "__init__.py"), out.stderr


def test_without_any_installation_one_line_says_so(monkeypatch, capsys):
    from cleanprior import cli
    from cleanprior.config import registry

    monkeypatch.setattr(registry, "installed", lambda group: {})
    assert cli._run() == 2
    told = capsys.readouterr().err
    assert "cleanprior is not installed for this Python" in told and told.count("\n") == 1


SCRIPT = """\
import cleanprior as cp

A = cp.operator("inpainting", (1, 28, 28), p=0.6, sigma=0.05)
y = cp.Measurements.load("mine.npz")
prior = cp.train("em_mmps", y, A, budget=96_000)
x = prior.restore(y[:16], A).x
samples = prior.sample(64)
prior.save("prior")
again = cp.load("prior")
table = cp.bench(["ambient", "em_mmps"], operator="inpainting", seeds=3).table
reveal_type(prior)
reveal_type(x)
reveal_type(again)
reveal_type(table)
"""


def test_a_script_of_a_user_passes_strict_types(installed, tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "script.py").write_text(SCRIPT)
    # What lies on MYPYPATH is checked as the user's own; the package's own run checks it.
    command = ["-m", "mypy", "--strict", "--follow-imports=silent", "--no-incremental"]
    command += ["--disable-error-code=no-any-unimported", "script.py"]
    libraries = [p for p in sys.path if p.endswith("site-packages")]
    env = {**os.environ, "MYPYPATH": str(installed), "PYTHONPATH": os.pathsep.join(libraries)}
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for kind in ("cleanprior.prior.Prior", "torch._tensor.Tensor", "pandas.core.frame.DataFrame"):
        assert f'"{kind}"' in done.stdout, done.stdout
