"""Look at k-space of scanners: what ``data=kspace`` makes of it, and what may be trained on it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import build, compose
from ..data.kspace import files_of, is_scan
from ..data.measured import MeasuredData
from ..errors import UserError
from ..operators.building import build_operator
from .advice import Inspection, commands, judge
from .gaps import law_of
from .problem import Guess


def holds_scans(path: Path) -> bool:
    """Whether a file, or the first of a folder, says of itself that it holds k-space."""
    try:
        return is_scan(files_of(path)[0])
    except UserError:
        return False


def inspect_scans(path: Path, config: Mapping[str, Any], given: Sequence[str]) -> Inspection:
    """Look at k-space as ``data=kspace`` reads it.

    Arguments:
        path: The file or folder.
        config: The group ``data`` of a composed configuration.
        given: What the user gave, whose keys of the data set stand in the command, too.

    Raises:
        UserError: It cannot be read as k-space.
    """
    data: MeasuredData = build({**config, "path": str(path)})
    measured = data.train
    found = Inspection()
    _, _, coils, rows, columns = measured.y.shape
    text = f"{len(measured)} slices of {rows}x{columns}, {coils} coils"
    found.say("y", f"{text}, {len(data.test)} held out; each slice is divided by its scale")
    for notice in data.notices[:-1]:  # the last one is the operator
        found.say("y", notice.text)
    found.say("missing", f"in k-space: {law_of(measured.params['mask'].numpy())}")
    low, high = measured.sigma_y.min().item(), measured.sigma_y.max().item()
    level = f"{high:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    found.say("noise", f"sigma_y = {level} in units of images, real and imaginary parts each")
    assert data.law is not None, "data=kspace knows its operator"
    law = {k: str(v) for k, v in data.law.items()}
    name = law.pop("name")
    whole = compose([f"operator={name}", *(f"operator.{k}={v}" for k, v in law.items())])
    operator = build_operator(whole["operator"], data.image_shape, whole["data_seed"])
    able = judge(found, measured, Guess(name, law, operator.with_law_of(measured.params)))
    keys = dict(g.removeprefix("data.").split("=", 1) for g in given if g.startswith("data."))
    found.commands = commands("kspace", {"path": str(path), **keys}, name, law, able)
    return found
