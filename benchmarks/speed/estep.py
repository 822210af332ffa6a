"""What the E-steps of expectation-maximisation take of a training."""

import pandas as pd

from cleanprior.config import build, compose
from cleanprior.data import Measurements, digits
from cleanprior.operators.building import build_operator
from cleanprior.training.trainer import Trainer

from .timing import Bench, Section

#: Methods, and the share of the shipped budget that is trained here.
METHODS, SHARE = ("em", "em_mmps"), 0.1


def estep(bench: Bench) -> Section:
    """Train shortly, and say which phase took what."""
    lines = []
    for name in METHODS:
        config = compose([f"method={name}", f"training.device={bench.device.type}"])
        config["training"]["budget"] = int(SHARE * config["training"]["budget"])
        data = digits()
        operator = build_operator(config["operator"], data.image_shape, 0)
        trainer: Trainer = build(config["training"])
        method = build(config["method"])
        measured = Measurements.draw(data.train, operator, 0, "train")
        count = method.clean_images
        clean = None if count == 0 else data.train[:count]
        _, report = trainer.fit(
            method, trainer.problem(operator, config), measured, 0, None, clean, bench.progress
        )
        took = report.seconds if bench.device.type == "cuda" else report.cpu_seconds
        whole = sum(took.values())
        lines += [
            {"method": name, "phase": phase, "s": seconds, "share": seconds / whole}
            for phase, seconds in took.items()
        ]
    note = (
        f"{SHARE:.0%} of the budget, all rounds: an E-step restores every image whatever the "
        "budget, so that its share of a whole training is smaller"
    )
    return Section("estep", "Phases of a training", pd.DataFrame(lines), [note])
