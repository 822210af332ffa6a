"""Which method may be trained on which problem, and the reason where it may not.

The YAML of an operator declares capabilities, that of a method declares needs; the classes read
them from there. :func:`refusal` is the one place where they are compared; a method's ``supports``
adds what only numbers can tell. No torch: ``cleanprior list`` and the check of a configuration
answer at once.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from . import nested, ranges
from . import noise as noises

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
    "local_noise": "the noise is Gaussian, its level differs between entries of y",
    "simulated": "the noise is an instrument's, drawn again for other images (noise.as=none)",
    "differentiable": "and what is recorded of an image has a gradient in it",
    "null_space": "directions that no image ever shows",
}


#: What the configuration of a data set may declare.
DATA = {
    "own_files": "the files are the user's: their content, not their place, tells data sets apart",
    "no_clean": "measurements only, no clean image anywhere",
}


#: What any method's results may suffer from, by the code beside its row.
WARNINGS = {
    "floor": "noise-free data; the likelihood uses a noise floor in its place",
    "map": "noise of another kind; taken as Gaussian noise of a variance that each entry of y "
    "tells (noise.as=map)",
    "level": "noise of another kind; taken as Gaussian noise of one level, the root mean variance "
    "(noise.as=level)",
    "anscombe": "counts, brought to Gaussian noise of one level; the prior is one of their roots, "
    "compared after the inverse (noise.as=anscombe)",
    "shift": "the network was trained on incomplete images and is asked for complete ones",
    "leak": "measurements are drawn anew from clean images in each batch or round, on purpose",
    "null": "the operator has directions that no measurement shows; what is drawn there comes from "
    "the method's initialisation, not from y",
}


@dataclass(frozen=True)
class ProblemFacts:
    """What is known of a problem before any tensor exists.

    Attributes:
        operator: The operator's name.
        capabilities: Keys of :data:`CAPABILITIES`.
        sigma_y: Largest noise level of the measurements, in units of x ([-1, 1]); infinity where
            there is noise of a level that is estimated later.
        data: The data set's name.
        has_clean: Whether there is a clean image that a method could be handed.
        noise: The kind of an instrument's noise, or nothing.
    """

    operator: str
    capabilities: frozenset[str]
    sigma_y: float
    data: str = ""
    has_clean: bool = True
    noise: str = ""

    @classmethod
    def of(
        cls,
        operator: Mapping[str, Any],
        data: Mapping[str, Any] | None = None,
        noise: Mapping[str, Any] | None = None,
    ) -> "ProblemFacts":
        """Collect the facts of a configured operator, data set and instrument's noise."""
        data = data or {}
        level = float(operator.get("sigma") or 0)
        if noise is not None:
            level = float(noise["level"]) or math.inf
        return cls(
            operator["name"],
            noises.capabilities_of(operator.get("capabilities") or (), noise),
            level,
            str(data.get("name", "")),
            "no_clean" not in (data.get("capabilities") or ()),
            "" if noise is None else str(noise["kind"]),
        )


@dataclass(frozen=True)
class Need:
    """A condition on the facts and the sentence shown when it does not hold.

    Attributes:
        text: The sentence.
        condition: A capability of the operator, or a test of the facts.
    """

    text: str
    condition: str | Callable[[ProblemFacts], bool]

    def holds(self, facts: ProblemFacts) -> bool:
        """Whether the problem meets this need."""
        if isinstance(self.condition, str):
            return self.condition in facts.capabilities
        return self.condition(facts)


def _is_noisy(facts: ProblemFacts) -> bool:
    return facts.sigma_y > 0


NEEDS: dict[str, Need] = {
    "RANDOM": Need(
        "{method} needs an operator that varies between images: with one fixed {operator} the part "
        "that it hides is never supervised",
        "random",
    ),
    "FURTHER": Need("{method} has no further corruption for {operator}", "further"),
    "NOISE_FREE": Need(
        "{method} cannot use noisy measurements (sigma_y={sigma_y}); set operator.sigma=0{waiver}",
        lambda facts: facts.sigma_y == 0,
    ),
    "LEVEL": Need("{method} divides by sigma_y^2 and sigma_y is 0{waiver}", _is_noisy),
    "NOISY": Need(
        "{method} learns from the noise of y and sigma_y is 0; set operator.sigma above 0",
        _is_noisy,
    ),
    "IDENTITY": Need(
        "{method} is defined only for y = x + Gaussian noise; {operator} is not the identity",
        "identity",
    ),
    "MASK": Need(
        "{method} is defined only for random subsampling; {operator} is not a mask", "mask"
    ),
    "SVD": Need("{method} needs a cheap SVD with one V for all images; {operator} has none", "svd"),
    "COVER": Need(
        "{method} needs every coordinate to be observed in some image; {operator} has directions "
        "that no image ever shows",
        lambda facts: "null_space" not in facts.capabilities,
    ),
    "SHAPE": Need(
        "{method} needs y to have the shape of x; with {operator} it has not", "same_shape"
    ),
    "GAUSS": Need(
        "{method} needs additive Gaussian noise of known sigma; {operator} has another{waiver}",
        "gaussian",
    ),
    "SIMULATE": Need(
        "{method} measures images again as y was measured, and how {operator} does is not known",
        lambda facts: bool(facts.capabilities & {"gaussian", "simulated"}),
    ),
    "GRADIENT": Need(
        "{method} takes gradients through what is recorded of an image, and this noise has none",
        lambda facts: (
            "simulated" not in facts.capabilities or "differentiable" in facts.capabilities
        ),
    ),
    "WHITE": Need(
        "{method} needs one noise level an image, and here it differs between entries of y",
        lambda facts: "local_noise" not in facts.capabilities,
    ),
}
#: Needs that came after the first records; they say who is refused and decide no number.
LATER = ("WHITE", "GRADIENT")
#: Needs in the place of another one, which other methods still have and cells on disk hold.
REPLACED = {"SIMULATE": "GAUSS"}
#: Needs as earlier versions called them; a stranger's YAML and a record may still do.
EARLIER = {"RANDOM": "FIXED", "NOISE_FREE": "NOISE", "LEVEL": "SIGMA0"}
_TODAY = {then: now for now, then in EARLIER.items()}
#: Code of a method that is entitled to clean images where there are none.
CLEAN = "CLEAN"
#: Code of a method that begins with another method, where that one may not be trained.
TEACHER = "TEACHER"


def _instead(need: str, kind: str) -> str:
    """Return what to set where the noise is an instrument's, as the end of a sentence."""
    if need == "WHITE":
        return "; take noise.as=level"
    if need not in ("GAUSS", "GRADIENT"):
        return ""
    *others, last = noises.approximations(kind)
    allowed = f"{', '.join(others)} or {last}" if others else last
    return f"; take an approximation, noise.as={allowed}"


@dataclass(frozen=True)
class Refusal:
    """Why a method may not be trained on a problem.

    Attributes:
        code: A key of :data:`NEEDS`, :data:`CLEAN` or :data:`TEACHER`.
        reason: A sentence.
    """

    code: str
    reason: str


def earlier(needs: Iterable[str]) -> list[str]:
    """Return needs by their first names, by which cells are known on disk."""
    former = EARLIER | REPLACED
    return [former.get(need, need) for need in needs if need not in LATER]


def rule(need: str) -> str:
    """Return the sentence of a need for any method and operator."""
    if need == TEACHER:
        return by_teacher("the method", "the reason of that one").reason
    words = {"method": "the method", "operator": "operator", "sigma_y": "above 0", "waiver": ""}
    return NEEDS[need].text.format(**words)


def by_teacher(name: str, reason: str) -> Refusal:
    """Return the refusal of a method that begins with another one, by that one's reason."""
    return Refusal(TEACHER, f"{name} begins with another method, which is refused: {reason}")


def required(method: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the needs of a configured method that apply with its values.

    Its ``unless`` names what waives a need: ``IDENTITY: operator_mode=ignore``, ``LEVEL:
    "sigma_floor=(0, inf)"``; a value that lies in the range of its key.

    Raises:
        ValueError: A need that does not exist.
    """
    waived = {_TODAY.get(k, k): text for k, text in (method.get("unless") or {}).items()}
    found = []
    for given in method.get("needs") or ():
        need = _TODAY.get(given, given)
        if need not in NEEDS:
            name = method.get("name", "a method")
            raise ValueError(f"unknown need '{given}' of {name}; allowed: {', '.join(NEEDS)}")
        if need not in waived or not _lies_in(method, waived[need]):
            found.append(need)
    return tuple(found)


def _lies_in(method: Mapping[str, Any], condition: str) -> bool:
    key, _, text = condition.partition("=")
    value = method.get(key.strip())
    return value is not None and value in ranges.parse(text.strip())


def refusal(method: Mapping[str, Any], facts: ProblemFacts) -> Refusal | None:
    """Return why a method may not be trained on a problem, or None: the one decider.

    Arguments:
        method: Its configuration, or its values: ``name``, ``needs``, ``unless``, ``clean_images``,
            and the configuration of a method that it begins with.
        facts: The problem.

    Raises:
        ValueError: A need that does not exist.
    """
    name, wanted = method["name"], method.get("clean_images", 0)
    if wanted not in (0, "0") and not facts.has_clean:
        reason = f"{name} starts from clean images ({wanted}), and data={facts.data} has none"
        return Refusal(CLEAN, reason)
    first = nested.first_stage(method)
    if first is not None and (inner := refusal({"name": name, **first}, facts)) is not None:
        return by_teacher(name, inner.reason)
    for key in required(method):
        if not NEEDS[key].holds(facts):
            level = f"{facts.sigma_y:g}" if facts.sigma_y < math.inf else f"of {facts.noise}"
            words = {"method": name, "operator": facts.operator, "sigma_y": level}
            text = NEEDS[key].text.format(**words, waiver=_waiver(method, key))
            return Refusal(key, text + (_instead(key, facts.noise) if facts.noise else ""))
    return None


def _waiver(method: Mapping[str, Any], need: str) -> str:
    """Return what to set so that a need is waived, as the end of a sentence."""
    text = (method.get("unless") or {}).get(need)
    if text is None:
        return ""
    key, _, allowed = str(text).partition("=")
    return f"; set method.{key.strip()} {ranges.parse(allowed.strip())}"


def refused(config: Mapping[str, Any]) -> Refusal | None:
    """Return why a composed configuration cannot be trained, or None."""
    facts = ProblemFacts.of(config["operator"], config["data"], config.get(noises.KEY))
    return refusal(config["method"], facts)
