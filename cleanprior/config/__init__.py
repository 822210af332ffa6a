"""Configurations: what is installed, composed from YAML, checked and built. No torch."""

from .building import DESCRIPTIONS, build, construct
from .composition import GROUPS, compose, compose_one, recompose
from .hydra_files import Config

__all__ = [
    "DESCRIPTIONS",
    "GROUPS",
    "Config",
    "build",
    "compose",
    "compose_one",
    "construct",
    "recompose",
]
