"""Installed packages of strangers: files and metadata in a folder on Python's path."""

import pytest

from cleanprior import metric_names
from cleanprior.config import hydra_files, registry

METHOD = '''
from dataclasses import dataclass

from cleanprior.diffusion.denoiser import denoising_loss
from cleanprior.training import Loss, Method


@dataclass(kw_only=True)
class Shrunk(Method):
    """Fit measurements that are shrunk."""

    factor: float = 0.5

    def build(self):
        self.denoiser = self.problem.denoiser()

    def networks(self):
        return {"denoiser": self.denoiser}

    def loss(self, batch, generator, turn):
        u = self.factor * self.problem.operator.lift(batch.y, batch.params)
        return Loss(denoising_loss(self.denoiser, u, generator))

    def prior(self, averaged):
        return self.make_prior(averaged["denoiser"])
'''
CARD = "_target_: {package}.Shrunk\nneeds: []\nclean_images: 0\nfactor: 0.5\nabout: a guest\n"


def write_plugin(site, package, files, entry_points=None):
    """Write a package as pip would leave it.

    Arguments:
        site: A folder on Python's path.
        package: Its name.
        files: Texts by path inside the package; ``{package}`` stands for its name.
        entry_points: Text of its metadata; default: the package in ``cleanprior.plugins``.
    """
    info = site / f"{package}-0.1.dist-info"
    info.mkdir(parents=True)
    for name, text in files.items():
        path = site / package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{package}", package))
    told = entry_points or f"[cleanprior.plugins]\n{package} = {package}\n"
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(told)


def forget():
    """Let the registry look again at what is installed."""
    for known in (registry._all_installed, registry.installed, registry._roots):
        known.cache_clear()
    hydra_files.by_hydra.cache_clear()
    metric_names.further.cache_clear()


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """``plugin("mine", {"__init__.py": ...})``: an installed package, for one test."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def make(package, files, entry_points=None):
        write_plugin(site, package, files, entry_points)
        forget()
        return site

    yield make
    monkeypatch.undo()
    forget()
