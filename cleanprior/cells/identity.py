"""What a cell is, as hashes: another training, another evaluation, other measurements. No torch.

The version is no part of it: a release trains nothing again. What changes results has a number.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..config import GROUPS, Config, noise, registry
from ..config.capabilities import LATER, earlier
from ..environment import processes
from ..fingerprint import fingerprint

#: What computes a cell's numbers, and which results it gives. Raise a number when a change of the
#: core changes what the stage computes (another loop, another noise, another default that no
#: configuration holds): its results are then computed again, and those of the stages after it.
STAGES = {"measure": 1, "train": 1, "evaluate": 1}
# What decides a cell's numbers. `training.device` and the like decide only where it runs.
_KEYS = (*GROUPS, "seed", "data_seed")
_EVALUATION = ("sampler", "posterior", "evaluation")
_NO_PART = ("device", "checkpoint_seconds", "snapshots", "tracker", "about", "unless")
# Keys of methods that came after the first records: one that nobody set is no part of a cell.
_UNSET = ("residual", "noise", "invariance", "start")
# Where a data set lies is not what it is.
_PLACE = ("path", "download", "mask")
# Keys that came after the first records: where they say nothing, the data set is what it was.
_LATER = ("key", "mask", "missing", "patch", "photons", "range", "sigma_y", "stride")
# Of which each had these from the first.
_FIRST = {name: ("range",) for name in ("folder", "zip", "huggingface")} | {
    "arrays": ("key", "range")
}
# Data sets whose folders are files of arrays.
_ARRAYS = ("arrays", "measurements", "kspace")


def placeless(data: Mapping[str, Any]) -> Config:
    """Return a data configuration without its place: a moved folder is the same data set.

    Where the files are the user's own (``own_files``) their content takes the place of the path. A
    published data set is known by its name.
    """
    first = _FIRST.get(str(data.get("name")), ())
    is_said = {k: v is not None or k not in _LATER or k in first for k, v in data.items()}
    kept = {k: v for k, v in data.items() if k not in _PLACE and is_said[k]}
    if "own_files" in data.get("capabilities", ()):
        # A folder of arrays may hold pictures, too.
        is_every = data.get("name") in _ARRAYS
        if data.get("path") is not None:
            kept["content"] = fingerprint(data["path"], is_every)
        if data.get("mask") is not None:
            kept["mask"] = fingerprint(data["mask"], True)
        for key in ("maps", "noise"):
            if os.path.isfile(str(data.get(key))):
                kept[key] = fingerprint(data[key])
    return kept


def operator_code(operator: Mapping[str, Any]) -> list[str | None] | None:
    """Return hashes of a stranger's operator: of its code and of the files that its keys name.

    None for an operator of this package, whose changes raise a stage. A stranger's constructor
    draws from the data seed, so that code, keys, files and seed are the operator.
    """
    module = str(operator["_target_"]).rpartition(".")[0]
    if module.split(".")[0] == "cleanprior":
        return None
    files = [v for k, v in sorted(operator.items()) if isinstance(v, str) and os.path.isfile(v)]
    return [registry.module_hash(module), *(fingerprint(v) for v in files)]


@dataclass(frozen=True)
class Identity:
    """The hashes of a cell, 16 hexadecimal digits each, computed once from its configuration.

    Attributes:
        config: A composed configuration.
    """

    config: Config

    @cached_property
    def data(self) -> Config:
        """The data set's configuration without its place; a user's files are read for it."""
        return placeless(self.config["data"])

    @cached_property
    def operator_code(self) -> list[str | None] | None:
        """Hashes of a stranger's operator, see :func:`operator_code`."""
        return operator_code(self.config["operator"])

    @cached_property
    def training(self) -> str:
        """What defines the trained weights: another posterior sampler trains nothing again."""
        return digest([_stages("train"), self.parts(is_training=True)])

    @cached_property
    def evaluation(self) -> str:
        """What defines the cell's numbers."""
        return digest([_stages("evaluate"), self.parts()])

    @cached_property
    def loaded(self) -> str:
        """What defines a user's measurements as they were read: nothing of operator or method.

        The name of their file is told with them.
        """
        name = os.path.basename(str(self.config["data"].get("path")))
        return digest([_stages("measure"), self.data, name])

    def measurements(self, split: str, operator_state: str) -> str:
        """Return what defines the measurements of a split: nothing of the method.

        Arguments:
            split: ``train`` or ``test``.
            operator_state: Hash of the operator as it was built, which counts where the operator is
                a stranger's.
        """
        return digest([_stages("measure"), self.measured(operator_state), split])

    def measured(self, operator_state: str) -> Config:
        """Return the part of the configuration that measurements are drawn by."""
        keys = {"operator": self.config["operator"], "data_seed": self.config["data_seed"]}
        if "truth" in self.config:
            keys["truth"] = self.config["truth"]
        if noise.KEY in self.config:
            keys[noise.KEY] = noise_parts(self.config[noise.KEY])
        if self.operator_code is not None:
            keys["operator_code"] = [self.operator_code, operator_state]
        return {**keys, "data": self.data}

    def parts(self, is_training: bool = False) -> Config:
        """Return the part of the configuration that decides a cell's numbers.

        Arguments:
            is_training: Leave out what only evaluates.
        """
        keys = [k for k in _KEYS if not (is_training and k in _EVALUATION)]
        method = _with_earlier_needs(self.config["method"])
        training = _with_content(self.config["training"])
        named = {**self.config, "method": method, "data": self.data, "training": training}
        found = {k: _strip(named[k]) for k in keys}
        if "truth" in self.config:
            found["truth"] = self.config["truth"]
        if noise.KEY in self.config:
            found[noise.KEY] = noise_parts(self.config[noise.KEY])
        if not is_training:
            found["evaluation"] = with_metrics(found["evaluation"])
        if self.operator_code is not None:
            found["operator_code"] = self.operator_code
        # Each process takes a batch: another one in all, as if one process took several.
        given = found["training"].pop("processes", None)
        together = (given or processes()) * found["training"].pop("accumulate", 1)
        if together > 1:
            found["processes"] = together
        return found


def _with_earlier_needs(method: Mapping[str, Any]) -> Config:
    """Return a method's values with the needs by their first names, of what it begins with too."""
    found = {
        k: _with_earlier_needs(v) if isinstance(v, Mapping) and "needs" in v else v
        for k, v in method.items()
    }
    return {**found, "needs": earlier(method["needs"])} if "needs" in method else found


def with_metrics(evaluation: Mapping[str, Any]) -> Config:
    """Return an evaluation in which each further metric stands with its keys and its code's hash.

    None is no part of it: a record of before there were such metrics is the same.
    """
    kept = {k: v for k, v in evaluation.items() if k != "metrics"}
    found = {}
    for name in evaluation.get("metrics") or ():
        card = registry.read("metric", name)
        module = str(card["_target_"]).rpartition(".")[0]
        found[name] = [_strip(card), registry.module_hash(module)]
    return {**kept, "metrics": found} if found else kept


def _with_content(training: Mapping[str, Any]) -> Config:
    """Return the configuration of a training with its start's content in the place of its name."""
    if training.get("start") is None:
        return dict(training)
    from ..starts import start_hash  # which reads priors, and they know of records

    return {**training, "start": start_hash(training["start"])}


def noise_parts(given: Mapping[str, Any]) -> Config:
    """Return what an instrument's noise is, with a hash of a stranger's code."""
    module = str(given["_target_"]).rpartition(".")[0]
    own = module.split(".")[0] == "cleanprior"
    return {**_strip(given), **({} if own else {"code": registry.module_hash(module)})}


def _strip(node: Any) -> Any:
    """Return values without those that decide no number."""
    if isinstance(node, Mapping):
        kept = {k: v for k, v in sorted(node.items()) if k not in _NO_PART}
        if isinstance(needs := kept.get("needs"), list):
            kept["needs"] = [need for need in needs if need not in LATER]
        return {k: _strip(v) for k, v in kept.items() if not (k in _UNSET and v is None)}
    return node


def _stages(last: str) -> list[int]:
    """Return the numbers of the stages up to one."""
    names = list(STAGES)
    return [STAGES[name] for name in names[: names.index(last) + 1]]


def digest(parts: Any) -> str:
    """Return the hash of plain values, 16 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def training_identity(config: Mapping[str, Any]) -> str:
    """Return what defines a training beside its measurements: a checkpoint belongs to it."""
    keys = [k for k in _KEYS if k not in (*_EVALUATION, "data")]
    found = {k: _strip(config[k]) for k in keys}
    found["training"] = _with_content(found["training"])
    if noise.KEY in config:
        found[noise.KEY] = noise_parts(config[noise.KEY])
    # How many train together decides the steps, which a checkpoint knows.
    found["training"].pop("processes", None)
    return digest(found)
