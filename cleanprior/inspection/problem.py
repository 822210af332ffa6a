"""Which operator made measurements, and which methods may be trained on them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import capabilities, compose, registry
from ..data.layouts import scanned
from ..data.measured import check_measurements
from ..data.measurements import Measurements
from ..errors import UserError
from ..notices import Notice
from ..operators.base import ImageShape, Operator
from ..operators.building import build_operator
from ..seeding import generator_for
from .gaps import places

#: Times that an operator's advice on its values is taken.
TRIES = 6
#: Pixels up to which directions of an operator without a mask are counted, and images for it.
SMALL, IMAGES = 1024, 512
_ADVICE = re.compile(r"set operator\.(\w+)=([^\s;,]+)")
#: Operators that are tried first; the rest follow by name.
_FIRST = ("box", "inpainting", "mri", "denoising")


@dataclass(frozen=True)
class Guess:
    """An operator that measurements agree with.

    Attributes:
        name: Its configuration.
        values: Keys that differ from the YAML's.
        operator: It, with the law of the file's parameters.
        notices: What should be told of the measurements under it.
        others: Names of operators that would agree, too.
    """

    name: str
    values: dict[str, str]
    operator: Operator
    notices: tuple[Notice, ...] = ()
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Which methods may be trained.

    Attributes:
        able: Names of those that may.
        refused: Reason -> names of those that may not.
    """

    able: list[str]
    refused: dict[str, list[str]] = field(default_factory=dict)


def guess(measured: Measurements, shape: ImageShape) -> tuple[Guess | None, str]:
    """Find the operator that a file's parameters and shapes agree with.

    The operators' own laws judge (:meth:`cleanprior.operators.base.Operator.mismatch`), and what
    they advise is tried.

    Arguments:
        measured: Measurements, y in units of images.
        shape: (channels, height, width) of the images.

    Returns:
        The guess, or None and why there is none.
    """
    found: list[Guess] = []
    reason = ""
    names = [n for n in _FIRST if n in registry.options("operator")]
    names += sorted(set(registry.options("operator")) - set(names))
    for name in names:
        made, why = _tried(name, measured, shape)
        if made is not None:
            found.append(made)
        elif why and not reason:
            reason = f"{name}: {why}"
    if not found:
        held = ", ".join(f"params/{k}" for k in measured.params) or "no parameters"
        return None, reason or f"no installed operator has {held} and y of this shape"
    best = found[0]
    others = tuple(g.name for g in found[1:])
    return Guess(best.name, best.values, best.operator, best.notices, others), ""


def _tried(name: str, measured: Measurements, shape: ImageShape) -> tuple[Guess | None, str]:
    """Build one operator until it agrees with the measurements; return why it does not."""
    sigma = measured.sigma_y.max().item()
    values: dict[str, str] = {"sigma": f"{sigma:.6g}"}
    if measured.y.dim() == 2 and "m" in registry.read("operator", name):
        values["m"] = str(measured.y.shape[1])
    if scanned(measured.y.shape) is not None and "coils" in registry.read("operator", name):
        values["coils"] = str(measured.y.shape[2])
    seen: set[str] = set()
    for _ in range(TRIES):
        try:
            config = compose(
                [f"operator={name}", *(f"operator.{k}={v}" for k, v in values.items())]
            )
            operator = build_operator(config["operator"], shape, config["data_seed"])
            drawn = operator.draw(1, generator_for(0, "inspect"))
        except (UserError, ValueError):
            return None, ""
        if drawn.keys() != measured.params.keys():
            return None, ""
        try:
            notices = check_measurements(measured, operator)
        except UserError:
            return None, ""
        why = operator.mismatch(measured.params) if measured.params else None
        if why is None:
            operator = operator.with_law_of(measured.params).with_levels_of(measured.sigma_y)
            return Guess(name, values, operator, notices), ""
        advice = _ADVICE.search(why)
        if advice is None or why in seen:
            return None, why
        seen.add(why)
        values[advice[1]] = advice[2]
    return None, why or ""


def verdict(found: Guess, sigma: float) -> Verdict:
    """Say which installed methods may be trained; the one decider of capabilities does."""
    facts = capabilities.ProblemFacts(
        found.name, found.operator.capabilities, sigma, "measurements", has_clean=False
    )
    able: list[str] = []
    refused: dict[str, list[str]] = {}
    for name, card in registry.readable("method").items():
        refusal = capabilities.refusal({**card, "name": name}, facts)
        if refusal is None:
            able.append(name)
        else:
            reason = refusal.reason.removeprefix(f"{name} ")
            if refusal.code == capabilities.CLEAN:
                reason = "starts from clean images, and there are none"
            refused.setdefault(reason, []).append(name)
    return Verdict(able, refused)


def unseen(operator: Operator, params: Mapping[str, Tensor]) -> tuple[str, bool]:
    """Name the directions that no measurement ever shows.

    For masks these are entries of y; for other operators the rank of the sum of A^T A over images
    is counted, where the images are small.

    Returns:
        The sentence, empty where every direction is shown, and whether that is known.
    """
    given = dict(params)
    n = len(next(iter(given.values()), ()))
    if "identity" in operator.capabilities:
        return "", True
    if given and (shown := operator.shown(given)) is not None:
        if shown.all():
            return "", True
        hidden = (~shown).numpy()
        return f"{int(hidden.sum())} of {hidden.size} entries: {places(hidden)}", True
    d = operator.image_shape[0] * operator.image_shape[1] * operator.image_shape[2]
    if d > SMALL:
        return f"not counted: images of more than {SMALL} entries", False
    gram = torch.zeros(d, d, dtype=torch.float64)
    for i in range(min(max(n, 1), IMAGES)):
        a = operator.matrix({k: v[i : i + 1] for k, v in given.items()}, 1)[0]
        gram += a.T @ a
    values = torch.linalg.eigvalsh(gram)
    lost = int((values < 1e-9 * values[-1]).sum())
    return (f"{lost} of {d} directions of the images (rank {d - lost})" if lost else ""), True
