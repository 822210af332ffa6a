"""What a person calls from Python: parts by their name in the configuration, and training.

Every default is the YAML's: ``cp.method("em", pool=0.25)`` reads ``configs/method/em.yaml`` and
changes one key of it. A name, key or value that does not exist is a
:class:`~cleanprior.errors.UserError` (a ``ValueError``) before any compute.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .cells.costs import spent, training_costs
from .cells.folder import CellFiles
from .cells.generators import load_prior
from .claimed import claim
from .commands.options import live_progress
from .config import Config, build, compose
from .config.checks import check_kind, check_seed
from .config.parts import part
from .data.datasets import CleanData
from .data.measured import MeasuredData, check_split
from .data.measurements import Measurements
from .defaults import check_dense, exact_products
from .diffusion.denoiser import Denoiser
from .diffusion.posterior import PosteriorSampler
from .diffusion.samplers import Sampler
from .errors import UserError
from .evaluation.given import LARGEST
from .evaluation.protocol import Protocol
from .evaluation.saved import Evaluation, Judge
from .files import check_folder
from .notices import tell
from .operators.base import ImageShape, Operator
from .operators.building import build_operator
from .prior import Prior
from .progress import Progress
from .training.method import Method, Problem
from .training.start import begun_from, start_fault
from .training.trainer import Trainer

#: Values of images may leave [-1, 1] by this much.
RANGE = 1.001


def operator(name: str, image_shape: ImageShape, *, seed: int = 0, **changes: Any) -> Operator:
    """Build a forward operator y = A x + noise by its name in ``configs/operator``.

    Arguments:
        name: ``inpainting``, ``denoising``, ``blur``, ...: see ``cleanprior list operators``.
        image_shape: Shape of one image, (channels, height, width).
        seed: Data seed, for an operator that is drawn once itself (angles, a sensing matrix).
        changes: Keys of its YAML, e.g. ``p=0.6, sigma=0.05``.

    Raises:
        UserError: No such operator or key, or a value that it refuses.
    """
    config = compose([f"operator={name}"], {"operator": changes})["operator"]
    found = build_operator(config, _image_shape(image_shape), check_seed(seed))
    found.config = config
    return found


def measure(
    images: Float[Tensor, "n c h w"] | np.ndarray, operator: Operator, seed: int = 0
) -> Measurements:
    """Simulate measurements of clean images, once: operator parameters and noise from one seed.

    Arguments:
        images: (n, c, h, w), values in [-1, 1].
        operator: The forward operator.
        seed: Data seed. The command line's measurements of the same images are the same bytes.

    Raises:
        UserError: Another shape or range, NaN.
    """
    check_kind("operator", operator, Operator)
    x = _images("images", images, operator.image_shape)
    return Measurements.draw(x, operator, check_seed(seed), "train")


def _image_shape(given: Any) -> ImageShape:
    """Return (channels, height, width), checked."""
    found = tuple(given) if isinstance(given, Iterable) else ()
    is_whole = all(isinstance(v, int | np.integer) and v > 0 for v in found)
    if len(found) != 3 or not is_whole:
        raise UserError(f"image_shape={given}; needed: (channels, height, width), whole numbers")
    return int(found[0]), int(found[1]), int(found[2])


def _images(name: str, given: Any, shape: ImageShape, largest: float = RANGE) -> Tensor:
    """Return images in [-1, 1] as float32 on the CPU, checked up to a largest absolute value."""
    x = check_dense(name, torch.as_tensor(given)).detach().cpu()
    if x.dim() != 4 or tuple(x.shape[1:]) != shape or len(x) == 0:
        needed = ", ".join(map(str, shape))
        raise UserError(f"{name} have shape {tuple(x.shape)}; needed: (n, {needed}), n above 0")
    if not x.is_floating_point():
        raise UserError(f"{name} hold {x.dtype}; needed: floats in [-1, 1], e.g. x / 127.5 - 1")
    x = x.float()
    if not torch.isfinite(x).all() or x.abs().max() > largest:
        raise UserError(f"{name} lie in [{x.min():.4g}, {x.max():.4g}]; needed: [-1, 1] and no NaN")
    return x


def dataset(name: str, **changes: Any) -> CleanData | MeasuredData:
    """Load a data set by its name in ``configs/data``, with its ``train`` and ``test`` split.

    Arguments:
        name: ``digits``, ``folder``, ...: see ``cleanprior list datasets``.
        changes: Keys of its YAML, e.g. ``path="images", resolution=32``.

    Raises:
        UserError: No such data set or key, or files that cannot be read.
    """
    found: CleanData | MeasuredData = part("data", name, **changes)
    return found


def method(name: str, **changes: Any) -> Method:
    """Build an installed method with the values of its YAML, some of them changed.

    Arguments:
        name: ``ambient``, ``em``, ...: see ``cleanprior list methods``.
        changes: Keys of its YAML.

    Raises:
        UserError: No such method or key, or a value that it refuses.
    """
    config = compose([f"method={name}"], {"method": changes})["method"]
    found: Method = build(config)
    found.config = config
    return found


#: :func:`train` has a parameter of that name.
method_named = method


def posterior(name: str, **changes: Any) -> PosteriorSampler:
    """Build a sampler of p(x|y) by its name in ``configs/posterior``; ``changes`` are its keys."""
    found: PosteriorSampler = part("posterior", name, **changes)
    return found


def sampler(name: str, **changes: Any) -> Sampler:
    """Build a sampler of p(x) by its name in ``configs/sampler``; ``changes`` are its keys."""
    found: Sampler = part("sampler", name, **changes)
    return found


def load(folder: str | Path, revision: str | None = None) -> Prior:
    """Read a prior from its folder, from that of the cell that trained it, or from the Hub.

    Arguments:
        folder: A folder, or ``user/name`` on the Hugging Face Hub; a folder of that name comes
            first. It may be anybody's, and runs no code.
        revision: Branch, tag or commit on the Hub.

    Raises:
        UserError: There is none, or it is damaged.
    """
    return load_prior(Path(folder), revision)


def evaluate(
    restorer: Prior | Float[Tensor, "..."] | np.ndarray,
    data: CleanData | MeasuredData | str,
    operator: Operator,
    *,
    posterior: PosteriorSampler | str | None = None,
    sampler: Sampler | str | None = None,
    data_seed: int = 0,
    is_point: bool = False,
    cache: str | Path | None = None,
    progress: bool = True,
    **evaluation: Any,
) -> Evaluation:
    """Judge a prior, or anybody's restorations, by the protocol of the benchmarks.

    Arguments:
        restorer: A prior; or restorations of the first held-out measurements in their order, in
            [-1, 1]: (n, c, h, w), or (k, n, c, h, w) for k draws of each.
        data: A data set or its name: clean images, whose measurements are drawn as a benchmark
            draws them, or measurements alone.
        operator: Their operator.
        posterior: The sampler of p(x|y), or its name; None takes the default.
        sampler: The sampler of p(x), or its name; None takes the default.
        data_seed: Data seed of drawn measurements.
        is_point: Whether restorations are point estimates and not draws of p(x|y).
        cache: Folder of feature networks and values of the reference; None keeps nothing.
        progress: Whether progress is shown on stderr.
        evaluation: Keys of ``configs/evaluation``, e.g. ``test_images=100, samples=512``.

    Returns:
        The row that a table would have: ``metrics``, ``missing`` with the reasons, ``lines()``.

    Raises:
        UserError: Images of another shape, or of another number than there are measurements.
    """
    check_kind("operator", operator, Operator)
    protocol: Protocol = part("evaluation", **evaluation)
    images = dataset(data) if isinstance(data, str) else data
    shown = live_progress() if progress else Progress()
    folder = None if cache is None else check_folder("cache", Path(cache))
    judge = Judge(images, operator, check_seed(data_seed), protocol, folder, shown)
    if not isinstance(restorer, Prior):
        x = torch.as_tensor(restorer).detach().cpu()
        shape = operator.image_shape
        flat = _images("restorations", x.flatten(0, 1) if x.dim() == 5 else x, shape, LARGEST)
        return judge.restorations(flat.reshape(-1, *x.shape[-4:]), is_point)
    name, drawn = _named("posterior", posterior)
    return judge.prior(restorer, name, drawn, _named("sampler", sampler)[1])


def _named(group: str, given: Any) -> tuple[str, Any]:
    """Return a part with its name: the part that was given, or the one of that configuration."""
    if given is not None and not isinstance(given, str):
        return type(given).__name__.lower(), given
    config = compose([] if given is None else [f"{group}={given}"])[group]
    return config["name"], build(config)


def train(
    method: str | Method,
    measurements: Measurements,
    operator: Operator,
    *,
    budget: int | None = None,
    seed: int = 0,
    clean: Float[Tensor, "k c h w"] | None = None,
    backbone: str | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
    **training: Any,
) -> Prior:
    """Train a prior on measurements; the same weights as ``cleanprior train`` gives, bit for bit.

    Arguments:
        method: An installed method's name, or one of :func:`method`.
        measurements: What it learns from.
        operator: Their operator.
        budget: Images that the denoiser sees; None takes the YAML's.
        seed: Training seed: weights, batches, diffusion noise.
        clean: The clean images that the method is entitled to, in [-1, 1] and exactly that many
            (``em``: 50); None for a method that needs none.
        backbone: Name in ``configs/backbone``; None takes the default.
        folder: Where checkpoints and the finished prior are kept. An interrupted call goes on from
            there, and a finished one returns the prior at once. None keeps nothing.
        progress: Whether progress is shown on stderr.
        training: Further keys of ``configs/training``, e.g. ``lr=1e-3, device="cpu"``.

    Raises:
        UserError: Measurements that are not the operator's, a method that cannot be trained on
            them, another number of clean images, a folder of another training, divergence.
    """
    check_kind("measurements", measurements, Measurements)
    check_kind("operator", operator, Operator)
    exact_products()
    learner = method_named(method) if isinstance(method, str) else method
    check_kind("method", learner, Method)
    if clean is not None:
        clean = _images("clean images", clean, operator.image_shape)
    config = _config(learner, operator, budget, seed, backbone, training)
    name = config["method"]["name"]
    tell(check_split(measurements, operator))
    operator = operator.with_law_of(measurements.params).with_levels_of(measurements.sigma_y)
    trainer: Trainer = build(config["training"])
    if folder is None and trainer.tracker != "none":
        raise UserError(
            f"tracker={trainer.tracker} writes into the training's folder: give folder="
        )
    problem = trainer.problem(operator, config)
    _check(name, learner, problem, clean, trainer)
    kept = None if folder is None else check_folder("folder", Path(folder))
    if kept is not None:
        claim(kept, config, learner, measurements, operator, clean)
        if (prior_folder := CellFiles(kept).prior).is_dir():
            return Prior.load(prior_folder)
    shown = live_progress() if progress else Progress()
    with shown.live():
        averaged, report = trainer.fit(learner, problem, measurements, seed, kept, clean, shown)
    if report.status != "done":
        raise UserError(f"{name} {report.status}: its loss is not finite; try a smaller lr")
    prior = learner.prior(averaged)
    if prior is None:
        raise UserError(f"{name} returns no prior")
    prior.about = {
        "method": name,
        "operator": config["operator"]["name"],
        "data": "measurements",
        "seed": seed,
        "measurements_sha256": measurements.hash,
        "clean_images": 0 if clean is None else len(clean),
        "costs": spent(report.__dict__, training_costs(report)),
        "config": config,
    }
    if (begun := begun_from(trainer.start)) is not None:
        prior.about["start"] = begun
    if kept is not None and trainer.accelerator.is_main_process:
        prior.save(CellFiles(kept).prior)
    return prior


def _config(
    method: Method,
    operator: Operator,
    budget: int | None,
    seed: int,
    backbone: str | None,
    training: Mapping[str, Any],
) -> Config:
    """Return the composed configuration of a training, as the prior's card remembers it."""
    chosen = ["data=measurements", f"seed={seed}"]
    kept: dict[str, Mapping[str, Any]] = {}
    if method.config is not None:
        chosen.append(f"method={method.config['name']}")
        kept["method"] = method.config
    if backbone is not None:
        chosen.append(f"backbone={backbone}")
    known = operator.config
    if known is not None:
        chosen.append(f"operator={known['name']}")
        kept["operator"] = known
    kept["training"] = training if budget is None else {**training, "budget": budget}
    config = compose(chosen, kept)
    if known is None:
        config["operator"] = {"name": operator.name, "sigma": operator.sigma}
    if method.config is None:
        config["method"] = {"name": method.name, "clean_images": method.clean_images}
    return config


def _check(
    name: str, learner: Method, problem: Problem, clean: Tensor | None, trainer: Trainer
) -> None:
    """Refuse what cannot be trained, before any compute.

    Raises:
        UserError: The reason.
    """
    reason = learner.supports(problem)
    if reason is None and trainer.start is not None:
        reason = start_fault(trainer.start, learner, problem)
    if reason is not None:
        raise UserError(reason)
    wanted, given = learner.clean_images, 0 if clean is None else len(clean)
    if (wanted == "all" and given == 0) or (wanted != "all" and int(wanted) != given):
        raise UserError(f"{name} starts from {wanted} clean images; clean= holds {given}")
    learner.setup(problem, trainer.device)
    if any(isinstance(network, Denoiser) for network in learner.networks().values()):
        return
    raise UserError(
        f"{name} learns no denoiser, so that there is no prior to return; "
        f"`cleanprior bench --methods {name}` evaluates what it learns"
    )
