"""What is said of a user's measurements, the methods for them, and the commands to run."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from ..data.measurements import Measurements
from .problem import Guess, unseen, verdict

#: Methods that are named in the command for a table, best known first.
_BENCH = ("em_mmps", "flowdiff", "ambient", "ambient_tweedie", "masked_loss", "naive")


@dataclass
class Inspection:
    """What was found.

    Attributes:
        sections: Heading -> sentences, in order.
        commands: What to run.
        y: Measurements in units of images, (n, c, h, w), for pictures; None where they are none.
    """

    sections: dict[str, list[str]] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    y: NDArray[Any] | None = None

    def say(self, heading: str, text: str) -> None:
        """Add a sentence below a heading."""
        self.sections.setdefault(heading, []).append(text)


def judge(found: Inspection, measured: Measurements, made: Guess) -> list[str]:
    """Tell the operator, what it hides and which methods may be trained; return their names."""
    values = " ".join(f"operator.{k}={v}" for k, v in made.values.items())
    fixed = "one fixed operator" if "fixed" in made.operator.capabilities else "varying"
    kind = f" ({fixed})" if measured.params else ""
    found.say("operator", f"{made.name}{kind}: {values}")
    if made.others:
        listed = ", ".join(made.others)
        found.say("operator", f"numbers alone do not tell it from: {listed}")
    for notice in made.notices:
        found.say("operator", f"{'careful: ' if notice.is_warning else ''}{notice.text}")
    hidden, is_known = unseen(made.operator, measured.params)
    found.say("never shown", hidden or "nothing: every direction is in some measurement")
    if hidden and is_known:
        found.say("never shown", "what is drawn there comes from the method, not from y (null)")
    judged = verdict(made, measured.sigma_y.max().item())
    found.say("methods", "may be trained: " + (", ".join(judged.able) or "none"))
    for reason, names in judged.refused.items():
        found.say("methods", f"not {', '.join(names)}: {reason}")
    return judged.able


def commands(
    data: str,
    keys: Mapping[str, str],
    operator: str,
    values: Mapping[str, str],
    able: Sequence[str],
) -> list[str]:
    """Return what to run: one training, and a table of several methods.

    Arguments:
        data: The data set's name.
        keys: Its keys.
        operator: The operator's name.
        values: Its keys.
        able: Methods that may be trained.
    """
    given = [f"data.{k}={v}" for k, v in keys.items()]
    given += [f"operator.{k}={v}" for k, v in values.items()]
    words = [shlex.quote(word) for word in given]
    chosen = [m for m in _BENCH if m in able] or list(able)[:3]
    if not chosen:
        return []
    train = [f"method={chosen[0]}", f"data={data}", f"operator={operator}"]
    bench = ["--methods", ",".join(chosen[:4]), "--data", data, "--operator", operator]
    return [
        " ".join(["cleanprior", "train", *train, *words]),
        " ".join(["cleanprior", "bench", *bench, *words, "--dry-run"]),
    ]
