"""Whose a folder of ``cp.train`` is: that of one training, which goes on there and no other."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from .config import Config
from .config.capabilities import earlier
from .data.measurements import Measurements
from .errors import UserError
from .files import write_text
from .operators.base import Operator
from .operators.building import state_hash
from .outside import read_json
from .starts import start_hash
from .training.method import Method

#: Beside a prior that is kept: what it was trained on.
KEY = "training.json"


def claim(
    folder: Path,
    config: Config,
    learner: Method,
    measurements: Measurements,
    operator: Operator,
    clean: Tensor | None,
) -> None:
    """Mark a folder as that of one training, or check that it is.

    Raises:
        UserError: It belongs to another training, or holds other files.
    """
    training = {k: v for k, v in config["training"].items() if k not in ("tracker", "processes")}
    if (start := start_hash(training.pop("start", None))) is not None:
        training["start"] = start
    values = {**asdict(learner), "needs": earlier(learner.needs)}
    described = {
        "config": {k: config[k] for k in ("operator", "backbone", "seed")} | {"training": training},
        "method": [type(learner).__module__, type(learner).__qualname__, repr(values)],
        "measurements": measurements.hash,
        "operator": state_hash(operator),
        "clean": None if clean is None else _digest(clean),
    }
    text = json.dumps(described, sort_keys=True, default=str)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = folder / KEY
    if not path.is_file():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"'{folder}' holds other files; name a new or an empty folder")
        write_text(path, json.dumps({"key": key, "config": config}, indent=1, default=str))
        return
    try:
        found = read_json(path)["key"]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"'{path}' is damaged; name another folder") from error
    if found != key:
        raise UserError(
            f"'{folder}' is that of another training (method, measurements, operator, seed or a "
            "value differs); name another folder"
        )


def _digest(x: Tensor) -> str:
    return hashlib.sha256(x.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
