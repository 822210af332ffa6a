"""The package map: nothing on disk is missing from a wheel, every entry point loads."""

import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml

import cleanprior
from cleanprior.config import registry

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
ENTRY_POINTS = PROJECT["project"]["entry-points"]
MOVED = SETUPTOOLS["package-dir"]


def packages_on_disk():
    found = set()
    for package, folder in {"cleanprior": "cleanprior", **MOVED}.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inside = init.parent.relative_to(ROOT / folder).parts
            found.add(".".join([package, *inside]))
    return found


def test_every_package_on_disk_is_listed_and_the_reverse():
    listed = SETUPTOOLS["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == packages_on_disk()


def test_every_folder_of_modules_is_a_package():
    for folder in ("cleanprior", *MOVED.values()):
        for module in (ROOT / folder).rglob("*.py"):
            assert (module.parent / "__init__.py").is_file(), module


def test_every_yaml_is_covered_by_package_data():
    assert SETUPTOOLS["package-data"]["cleanprior.configs"] == ["**/*.yaml"]
    assert (ROOT / "cleanprior" / "py.typed").is_file()
    for path in (ROOT / "configs").rglob("*"):
        assert path.is_dir() or path.suffix in (".yaml", ".py", ".pyc", ".md"), path


@pytest.mark.parametrize("group", sorted(ENTRY_POINTS))
def test_the_installed_entry_points_are_those_written(group):
    installed = {e.name: e.value for e in entry_points(group=group)}
    assert ENTRY_POINTS[group].items() <= installed.items(), "run pip install -e . again"


@pytest.mark.parametrize(
    ("group", "name"), [(g, n) for g, names in ENTRY_POINTS.items() for n in names]
)
def test_every_entry_point_loads(group, name):
    (entry,) = entry_points(group=group, name=name)
    assert callable(entry.load())


def test_every_method_has_both_an_entry_point_and_a_yaml():
    written = {p.stem for p in (ROOT / "configs" / "method").glob("*.yaml")}
    assert written - set(registry.presets()) == set(ENTRY_POINTS["cleanprior.methods"])
    assert set(registry.methods()) >= written


@pytest.mark.parametrize("name", sorted(registry.methods().keys() - registry.presets().keys()))
def test_the_yaml_and_the_entry_point_name_the_same_class(name):
    target = yaml.safe_load(registry.methods()[name].read_text())["_target_"]
    assert target == registry.installed(registry.METHODS)[name].value.replace(":", ".")


def test_the_console_script_is_importable():
    (script,) = entry_points(group="console_scripts", name="cleanprior")
    assert callable(script.load())


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    for key in ("title", "message", "authors"):  # what the format demands
        assert citation[key]
    assert citation["version"] == PROJECT["project"]["version"] == cleanprior.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    assert set(citation["keywords"]) == set(PROJECT["project"]["keywords"])
