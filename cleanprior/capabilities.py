"""Which method may be trained on which operator, and the reason where it may not.

An operator declares capabilities, a method declares needs (its YAML and its constructor hold the
same list; a test compares them). This module compares the two. It imports no torch, so that
``cleanprior list`` and the check of a configuration answer at once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

CAPABILITIES = {
    "random": "parameters differ between images",
    "fixed": "one operator for all images",
    "mask": "A keeps or hides single pixels",
    "identity": "A is the identity",
    "further": "can be corrupted further (A-tilde)",
    "svd": "cheap singular value decomposition, one V for all images",
    "same_shape": "y has the shape of x",
    "fourier": "y lies in the Fourier domain of x, not on its pixels",
    "gaussian": "the noise is additive, Gaussian and of known level",
    "null_space": "directions that no image ever shows",
}


#: What the configuration of a data set may declare.
DATA = {
    "own_files": "the files are the user's: their content, not their place, tells data sets apart",
    "no_clean": "measurements only, no clean image anywhere",
}


@dataclass(frozen=True)
class Facts:
    """What a method may know of a problem before any tensor exists.

    Attributes:
        operator: The operator's name.
        capabilities: Keys of :data:`CAPABILITIES`.
        sigma_y: Largest noise level of the measurements, in units of x ([-1, 1]).
        has_floor: Whether the method replaces a zero noise level by a floor.
    """

    operator: str
    capabilities: frozenset[str]
    sigma_y: float
    has_floor: bool = False


@dataclass(frozen=True)
class Need:
    """A condition on the facts and the sentence shown when it does not hold."""

    text: str
    capability: str | None = None

    def holds(self, facts: Facts) -> bool:
        """Whether the problem meets this need."""
        return self.capability in facts.capabilities


class _NoiseFree(Need):
    def holds(self, facts: Facts) -> bool:
        return facts.sigma_y == 0


class _NoisyOrFloor(Need):
    def holds(self, facts: Facts) -> bool:
        return facts.sigma_y > 0 or facts.has_floor


class _NoNullSpace(Need):
    def holds(self, facts: Facts) -> bool:
        return "null_space" not in facts.capabilities


class _Noisy(Need):
    def holds(self, facts: Facts) -> bool:
        return facts.sigma_y > 0


NEEDS: dict[str, Need] = {
    "FIXED": Need(
        "{method} needs an operator that varies between images: with one fixed {operator} the part "
        "that it hides is never supervised",
        "random",
    ),
    "FURTHER": Need("{method} has no further corruption for {operator}", "further"),
    "NOISE": _NoiseFree(
        "{method} cannot use noisy measurements (sigma_y={sigma_y}); set operator.sigma=0"
    ),
    "SIGMA0": _NoisyOrFloor(
        "{method} divides by sigma_y^2 and sigma_y is 0; set method.sigma_floor above 0"
    ),
    "NOISY": _Noisy(
        "{method} learns from the noise of y and sigma_y is 0; set operator.sigma above 0"
    ),
    "IDENTITY": Need(
        "{method} is defined only for y = x + Gaussian noise; {operator} is not the identity",
        "identity",
    ),
    "MASK": Need(
        "{method} is defined only for random subsampling; {operator} is not a mask", "mask"
    ),
    "SVD": Need("{method} needs a cheap SVD with one V for all images; {operator} has none", "svd"),
    "COVER": _NoNullSpace(
        "{method} needs every coordinate to be observed in some image; {operator} has directions "
        "that no image ever shows"
    ),
    "SHAPE": Need(
        "{method} needs y to have the shape of x; with {operator} it has not", "same_shape"
    ),
    "GAUSS": Need(
        "{method} needs additive Gaussian noise of known sigma; {operator} has another", "gaussian"
    ),
}


def facts_of(
    operator: str, capabilities: Iterable[str], sigma_y: float, sigma_floor: float = 0.0
) -> Facts:
    """Collect the facts of one operator under one method's noise floor."""
    return Facts(operator, frozenset(capabilities), float(sigma_y), sigma_floor > 0)


def entitlement(method: Mapping[str, Any], data: Mapping[str, Any]) -> str | None:
    """Return why a method cannot be handed its clean images, or None.

    Arguments:
        method: Its configuration.
        data: The configuration of the data set; :data:`DATA` says what it may declare.
    """
    wanted = method.get("clean_images", 0)
    if wanted in (0, "0") or "no_clean" not in data.get("capabilities", ()):
        return None
    return f"{method['name']} starts from clean images ({wanted}), and data={data['name']} has none"


def rule(need: str) -> str:
    """Return the sentence of a need for any method and operator."""
    return NEEDS[need].text.format(method="the method", operator="operator", sigma_y="above 0")


def required(method: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the needs of a method's configuration that apply in its ``operator_mode``.

    A mode other than ``refuse`` takes measurements of any operator for noisy images.
    """
    needs = tuple(method.get("needs", ()))
    if method.get("operator_mode", "refuse") == "refuse":
        return needs
    return tuple(n for n in needs if n not in ("IDENTITY", "NOISY"))


def refusal(method: str, needs: Iterable[str], facts: Facts) -> str | None:
    """Return why ``method`` may not be trained on the problem, or None.

    Arguments:
        method: The method's name, for the sentence.
        needs: Keys of :data:`NEEDS`, checked in order.
        facts: The problem.

    Raises:
        ValueError: A need that does not exist.
    """
    for key in needs:
        if key not in NEEDS:
            raise ValueError(f"unknown need '{key}' of {method}; allowed: {', '.join(NEEDS)}")
        if not NEEDS[key].holds(facts):
            return NEEDS[key].text.format(
                method=method, operator=facts.operator, sigma_y=f"{facts.sigma_y:g}"
            )
    return None


def unmet(
    name: str, method: Mapping[str, Any], operator: str, described: Mapping[str, Any]
) -> tuple[str, str] | tuple[None, None]:
    """Return the first need that an operator does not meet, as its code and sentence.

    Arguments:
        name: The method's name, for the sentence.
        method: Its configuration.
        operator: The operator's name.
        described: Its configuration.
    """
    floor = float(method.get("sigma_floor") or 0)
    facts = facts_of(operator, described.get("capabilities", ()), described.get("sigma", 0), floor)
    for need in required(method):
        reason = refusal(name, [need], facts)
        if reason is not None:
            return need, reason
    return None, None


def warning(needs: Iterable[str], facts: Facts) -> str:
    """Return the warning code printed beside a row that is run all the same, or an empty string."""
    codes = []
    if "null_space" in facts.capabilities:
        codes.append("null")
    if facts.sigma_y == 0 and facts.has_floor:
        codes.append("floor")
    return "+".join(codes)
