"""One look a method, in every plot and on every page: colour, marker, line. No torch.

Ten colours that stay at least 24 apart in CIELAB for protanopes and deuteranopes and 50 for
everybody else (found by a search, held by a test); twice with other markers and lines makes twenty
looks.

References:
    A Physiologically-based Model for Simulation of Color Vision Deficiency (Machado et al., 2009)
"""

from collections.abc import Iterable
from typing import NamedTuple

COLOURS = (
    "#99989a",
    "#1a4319",
    "#154deb",
    "#c72e55",
    "#af6409",
    "#01d671",
    "#d61db5",
    "#919fff",
    "#532263",
    "#bbc221",
)
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "<", "p", ">")
#: Solid for the first ten looks, dashed for the next, then dotted and dash-dotted.
LINES = ("-", "--", ":", "-.")
#: Places of the methods that come with the package; the others take free ones.
PLACES = (
    "naive",
    "oracle",
    "em",
    "ambient",
    "em_mmps",
    "flowdiff",
    "gsure",
    "ambient_tweedie",
    "sure_score",
    "ambient_gan",
    "observations",
    "oracle_50",
    "oracle_500",
    "masked_loss",
    "denoise_then_train",
    "pinv_then_train",
    "ssdu_then_train",
    "r2r_then_train",
    "es_then_train",
    "moi_then_train",
    "distill",
    "leaky",
    "diffem",
)


class Look(NamedTuple):
    """How a method is drawn."""

    colour: str
    marker: str
    line: str


def look(place: int) -> Look:
    """Return a look; the first forty differ from each other."""
    turn, number = divmod(place, len(COLOURS))
    marker = MARKERS[(number + 5 * turn + turn // 2) % len(MARKERS)]
    return Look(COLOURS[number], marker, LINES[turn % len(LINES)])


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """Return the look of each of these methods, in their order.

    A method of the package always has the same. Others take the places that no method of the
    package has, and then those whose method is absent.
    """
    names = list(dict.fromkeys(methods))
    places = {name: PLACES.index(name) for name in names if name in PLACES}
    others = [name for name in names if name not in places]
    first = max(len(PLACES), 2 * len(COLOURS))
    unclaimed = list(range(len(PLACES), first))
    absent = [p for p in range(len(PLACES)) if p not in places.values()]
    more = range(first, first + len(others))
    free = iter([*unclaimed, *absent, *more])
    places |= {name: next(free) for name in others}
    return {name: look(places[name]) for name in names}
