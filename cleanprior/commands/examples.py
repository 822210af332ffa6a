"""Examples that end each command's help; a test reads each as the command would."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "bench": (
        "cleanprior bench --methods ambient,em_mmps --operator inpainting operator.p=0.8",
        "cleanprior bench --table em_table1 --scale cpu",
        "cleanprior bench --methods ambient,em --json",
    ),
    "evaluate": (
        "cleanprior evaluate RUN/prior --operator blur --to found.json",
        "cleanprior evaluate FOLDER --data digits --operator inpainting",
    ),
    "inspect": (
        "cleanprior inspect mine.npz --picture mine.png",
        "cleanprior inspect frames data=measurements data.mask=dead.tif",
    ),
    "list": ("cleanprior list methods", "cleanprior list metrics"),
    "measure": ("cleanprior measure data=digits operator=inpainting --to mine.npz",),
    "new": ("cleanprior new method my_own", "cleanprior new metric my_own --to FOLDER"),
    "report": ("cleanprior report runs/tables/NAME",),
    "restore": (
        "cleanprior restore RUN/prior -n 16",
        "cleanprior restore RUN/prior --operator inpainting --measurements mine.npz",
    ),
    "sample": ("cleanprior sample RUN/prior -n 64 --to samples",),
    "snapshots": ("cleanprior snapshots method=em training.snapshots=8 --to best",),
    "speed": ("cleanprior speed trainer posterior", "cleanprior speed --device cuda"),
    "status": ("cleanprior status runs --all",),
    "train": (
        "cleanprior train method=em operator=denoising operator.sigma=0.5",
        "cleanprior train method=em_mmps data=measurements data.path=mine.npz",
        "cleanprior train method=em --quiet training.tracker=tensorboard",
        "cleanprior train method=em_mmps training.start=RUN/prior method.start=prior",
    ),
}


def epilog(command: str) -> str | None:
    """Return the end of a command's help, or None for a command of somebody else's."""
    if command not in EXAMPLES:
        return None
    # \b keeps lines as they are.
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[command])
