"""Noise as instruments make it: ``noise.kind=poisson noise.gain=0.01 noise.as=map``. No torch.

A kind is a YAML of ``configs/noise``; it takes the place of the operator's own Gaussian noise,
``operator.sigma``. ``as`` says what methods are told of it. No key, no difference: such a
configuration is what it was without them.

=============  =====================================================================
``noise.as``   methods are told
=============  =====================================================================
``none``       nothing: those that need Gaussian noise are refused; those that measure images
               again do what the instrument does
``map``        Gaussian noise, a variance for each entry of y, estimated from y
``level``      Gaussian noise of one level for all, the root mean variance
``anscombe``   counts brought to Gaussian noise of one level; images with them
=============  =====================================================================

What a kind is, as its YAML says under ``capabilities``:

==================  ================================================================
``light``           of a signal that is not negative
``counts``          of photons, so that ``anscombe`` applies
``differentiable``  what is recorded of an image has a gradient in it
``one_level``       no entry of y tells its own variance: ``map`` is refused
``pixels``          of a y that is an image; two channels are a complex one, and none
``colours``         of images of one or three channels
==================  ================================================================
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import UserError
from . import ranges, registry

KEY = "noise"
#: What methods may be told.
APPROXIMATIONS = ("map", "level", "anscombe")
#: Keys of any kind, with their defaults: the level is 0 where it is estimated.
_SHARED: dict[str, Any] = {"as": "none", "level": 0.0}
_RANGES = {"as": f"none | {' | '.join(APPROXIMATIONS)}", "level": "[0, inf)"}


def tree(settings: Iterable[tuple[str, str]], kept: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return all keys that the noise may have; None where nobody gives one.

    Arguments:
        settings: Keys and texts of all groups, in their order.
        kept: What a file remembers of the noise; empty for none.

    Raises:
        UserError: Keys without a kind, or an unknown kind.
    """
    given = [(key, text) for key, text in settings if key == KEY or key.startswith(f"{KEY}.")]
    if not given and not kept:
        return None
    kinds = [text for key, text in given if key == f"{KEY}.kind"]
    kind = kinds[-1] if kinds else kept.get("kind")
    if kind is None:
        allowed = ", ".join(registry.options(KEY))
        raise UserError(f"{given[0][0]}: say which noise, noise.kind=KIND; allowed: {allowed}")
    card = copy.deepcopy(registry.read(KEY, str(kind)))
    card = {k: v for k, v in card.items() if k not in ("about", "capabilities")}
    shared = {"kind": kind, **_SHARED}
    return {**card, **shared, ranges.KEY: {**card.get(ranges.KEY, {}), **_RANGES}}


def of_kind(kept: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return what is remembered of a noise of this kind; nothing of another's."""
    return dict(kept) if kept.get("kind") == kind else {}


def check(config: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Check that an instrument with this noise could measure so.

    Arguments:
        config: A composed configuration.
        keys: What somebody gave: a file may remember the level of any noise.

    Raises:
        UserError: A level of the operator, too; light or pixels in the Fourier domain; a map
            where there is none; Anscombe's root of what are no counts or of mixed pixels; a level
            that nobody is told.
    """
    noise, operator = config[KEY], config["operator"]
    kind, able = noise["kind"], set(operator.get("capabilities") or ())
    of_kind = abilities(kind)
    said = f"noise.kind={kind}"
    if operator.get("sigma"):
        raise UserError(
            f"operator.sigma={operator['sigma']:g}: {said} takes the place of the operator's own "
            "noise; leave operator.sigma out"
        )
    if "light" in of_kind and "fourier" in able:
        raise UserError(
            f"{said} is noise of a signal that is not negative; {operator['name']} measures in the "
            "Fourier domain: use operator.sigma"
        )
    if "pixels" in of_kind and "fourier" in able:
        raise UserError(
            f"{said} changes pixels of an image; {operator['name']} measures in the Fourier "
            "domain: use operator.sigma"
        )
    if noise["as"] == "map" and "one_level" in of_kind:
        raise UserError(
            f"noise.as=map: with {said} no entry of y tells its own variance; use level, or none"
        )
    if noise["as"] == "anscombe" and "counts" not in of_kind:
        others = " or ".join(approximations(kind))
        raise UserError(f"noise.as=anscombe is for counted photons, and {said}: use {others}")
    if noise["as"] == "anscombe" and not able & {"mask", "identity"}:
        raise UserError(
            f"noise.as=anscombe takes roots of y, and {operator['name']} mixes pixels: use map or "
            "level"
        )
    if f"{KEY}.level" in keys and noise["as"] != "level":
        raise UserError(f"noise.level={noise['level']:g} is that of noise.as=level")


def capabilities_of(able: Iterable[str], noise: Mapping[str, Any] | None) -> frozenset[str]:
    """Return an operator's capabilities as methods know it."""
    found = frozenset(able)
    if noise is None or noise["as"] in ("level", "anscombe"):
        return found
    if noise["as"] == "map":
        return found | {"local_noise"}
    return found - {"gaussian"} | {"simulated"} | abilities(noise["kind"]) & {"differentiable"}


def abilities(kind: str) -> frozenset[str]:
    """Return what a kind of noise is: the capabilities of its YAML."""
    return frozenset(registry.read(KEY, kind).get("capabilities") or ())


def approximations(kind: str) -> list[str]:
    """Return what methods may be told of a kind of noise."""
    of_kind = abilities(kind)
    refused = {"map"} if "one_level" in of_kind else set()
    if "counts" not in of_kind:
        refused.add("anscombe")
    return [name for name in APPROXIMATIONS if name not in refused]


def label(noise: Mapping[str, Any]) -> list[str]:
    """Return the words that name the noise in a table."""
    hidden = ("_target_", "kind", "as", "level")
    card = registry.read(KEY, noise["kind"])
    values = [f"{k}={v}" for k, v in noise.items() if k not in hidden and card.get(k) != v]
    level = [f"level={noise['level']:g}"] if noise["level"] else []
    told = [f"as {noise['as']}"] if noise["as"] != "none" else []
    return [noise["kind"], *values, *told, *level]


__all__ = [
    "APPROXIMATIONS",
    "KEY",
    "abilities",
    "approximations",
    "capabilities_of",
    "check",
    "label",
    "of_kind",
    "tree",
]
