"""The Prior: what a user takes home. A denoiser in a folder, loadable without any method's code."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn

from . import __version__
from .cells.reading import HASH
from .config.checks import check_kind, check_seed
from .config.parts import part
from .data.measured import check_shapes
from .data.measurements import Batch, Measurements
from .defaults import check_dense, plain_tensors
from .diffusion.backbones import build_backbone, parameter_count
from .diffusion.denoiser import Denoise, Denoiser
from .diffusion.limits import at_most, check_finite, check_weight_shapes, shapes_of, without_memory
from .diffusion.posterior import Draw, PosteriorSampler, draw_in_chunks
from .diffusion.samplers import Sampler
from .diffusion.windows import Windows
from .errors import UserError
from .files import replace_folder, staging_path, sweep
from .hub import push
from .model_card import licence_of
from .operators.base import ImageShape, Operator
from .operators.levels import is_white
from .operators.likelihood import Likelihood
from .prior_files import (
    CARD,
    WEIGHTS,
    PriorCard,
    card_hash,
    check_complete,
    check_replaceable,
    check_weights,
    descriptions,
    read_card,
)
from .seeding import generator_for, scoped_rng


class Prior(nn.Module):
    """A generative prior of images in [-1, 1].

    It is itself a deepinv denoiser: ``prior(x, sigma)`` returns E[x | x + sigma n].

    Arguments:
        denoiser: The denoiser, in eval mode with averaged weights.
        image_shape: Shape of one image, (channels, height, width).
        backbone_config: Configuration that built the backbone.
        about: Where the prior comes from: method, data, operator, hash of the measurements, ...
    """

    def __init__(
        self,
        denoiser: Denoiser,
        image_shape: ImageShape,
        backbone_config: dict[str, Any],
        about: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.image_shape: ImageShape = (image_shape[0], image_shape[1], image_shape[2])
        self.backbone_config = backbone_config
        self.about = about or {}

    @property
    def parameters_count(self) -> int:
        """Number of weights."""
        return parameter_count(self.denoiser)

    def _device(self) -> torch.device:
        """Return where the network lies.

        Raises:
            UserError: On torch's meta device, where weights have a shape and no numbers.
        """
        return check_dense("the prior's weights", next(self.parameters())).device

    def forward(self, x: Tensor, sigma: Tensor | float, *_: Any) -> Float[Tensor, "b c h w"]:
        """Denoise images (b, c, h, w) of noise level ``sigma`` (a number, or one an image).

        What has no noise is returned as it is.

        Raises:
            UserError: Images of other channels, of whole or complex numbers or on another device; a
                level below 0 or NaN, where it is no tensor on a GPU, which nobody waits for.
        """
        weights = next(self.parameters())
        dtype = weights.dtype
        channels = self.image_shape[0]
        if x.dim() != 4 or x.shape[1] != channels:
            raise UserError(f"x has shape {tuple(x.shape)}; needed: (b, {channels}, h, w)")
        if not x.is_floating_point():
            kind = str(x.dtype).removeprefix("torch.")
            raise UserError(f"x is {kind}; needed: floating-point images, complex ones in channels")
        if x.device != weights.device:
            told = f"x lies on {x.device} and the prior on {weights.device}"
            raise UserError(f"{told}; move one of them with .to")
        given = torch.as_tensor(sigma)
        if given.device.type == "cpu" and not bool((given >= 0).all()):
            raise UserError(f"sigma={sigma}; allowed: noise levels from 0")
        level = given.to(x.device, dtype).flatten().expand(len(x))
        is_clean = level == 0
        denoised = self.denoiser(x.to(dtype), level.masked_fill(is_clean, 1.0)).to(x.dtype)
        return torch.where(is_clean[:, None, None, None], x, denoised)

    def deepinv(self, range: Sequence[float] = (0, 1)) -> nn.Module:
        """Return the prior as a deepinv denoiser of images in a range, sigma in the same units.

        deepinv's own images lie in [0, 1]. The prior itself takes images in [-1, 1], with which
        some of its samplers (``DiffPIR``) fail quietly.

        Arguments:
            range: Values of black and white.

        Raises:
            UserError: No two numbers, the lower one first.
        """
        from .diffusion.ranged import ranged

        return ranged(self, range)

    @plain_tensors()
    def sample(
        self,
        n: int,
        sampler: Sampler | str | None = None,
        seed: int = 0,
        chunk: int = 256,
        first: int = 0,
    ) -> Float[Tensor, "n c h w"]:
        """Draw ``n`` images; image i depends on ``seed`` and its number only.

        Arguments:
            n: How many.
            sampler: The sampler of p(x), or its name in ``configs/sampler``; None takes the
                default.
            seed: Evaluation seed.
            chunk: Images at a time.
            first: Number of the first image.
        """
        if n < 1:
            raise UserError(f"n={n}; allowed: at least 1 image")
        check_seed(seed)
        walk: Sampler = _part("sampler", sampler)
        device = self._device()
        images = []
        for start in range(first, first + n, chunk):
            numbers = range(start, min(start + chunk, first + n))
            noise = torch.stack(
                [
                    torch.randn(self.image_shape, generator=generator_for(seed, "sample", image=i))
                    for i in numbers
                ]
            )
            generator = generator_for(seed, "sampler", chunk=start)
            images.append(walk(self, noise.to(device), generator).cpu())
        return torch.cat(images)

    @plain_tensors()
    def restore(
        self,
        measurements: Measurements | Batch,
        operator: Operator,
        posterior: PosteriorSampler | str | None = None,
        seed: int = 0,
        chunk: int = 256,
        advance: Callable[[int], None] = lambda n: None,
    ) -> Draw:
        """Draw one image from p(x|y) for each measurement.

        Whatever device the prior is on: what is handed in and the result lie on the CPU, and the
        operator of the caller is not moved.

        Image i depends on its measurement, ``seed`` and i only, not on ``chunk``. Images may be
        larger than the prior's where A keeps or hides single pixels: then the denoiser is that of
        overlapping :class:`~cleanprior.diffusion.windows.Windows`.

        Arguments:
            measurements: What to restore.
            operator: Their operator.
            posterior: The sampler of p(x|y), or its name in ``configs/posterior``; None takes the
                default.
            seed: Evaluation seed.
            chunk: Images at a time.
            advance: Told how many images are done, after each chunk.

        Raises:
            UserError: Measurements that are not the operator's, an operator of images of another
                shape, an unknown name, noise levels that the sampler does not take.
        """
        check_kind("operator", operator, Operator)
        check_seed(seed)
        denoise = self._denoise(operator)
        check_shapes(measurements, operator)
        device = self._device()
        generators = image_generators(seed, range(len(measurements)))
        sampler = _part("posterior", posterior)
        sampler.check_noise(is_white(measurements.sigma_y))
        draw = draw_in_chunks(
            sampler,
            denoise,
            Likelihood.of(operator, measurements).to(device),
            generators,
            chunk,
            advance,
        )
        return Draw(draw.x.cpu(), draw.evaluations, draw.backwards)

    def _denoise(self, operator: Operator) -> Denoise:
        """Return the denoiser of an operator's images, which may be larger than the prior's.

        Raises:
            UserError: They have another shape.
        """
        if operator.image_shape == self.image_shape:
            return self
        if operator.capabilities & {"mask", "identity"} and "fourier" not in operator.capabilities:
            return Windows(self, self.image_shape, operator.image_shape)
        raise UserError(
            f"the measurements are of images {operator.image_shape}; the prior makes "
            f"{self.image_shape}"
        )

    def save(self, folder: str | Path) -> None:
        """Write the prior's folder, which appears whole or not at all.

        It holds ``prior.yaml`` and ``weights.safetensors``; ``README.md``, a card for readers and
        the Hub; and for an unconditional prior of square images what makes it a pipeline of
        diffusers (:mod:`cleanprior.diffusers`).

        Raises:
            UserError: The disk refuses the write, or something else than a prior stands there; it
                is intact.
        """
        self._device()
        folder = Path(folder)
        check_replaceable(folder)
        card = PriorCard(
            self.image_shape,
            self.denoiser.sigma_data,
            self.denoiser.condition_channels,
            self.denoiser.preconditioning,
            self.backbone_config,
            "",
            json.loads(json.dumps(self.about)),
        )
        values = card.values(__version__)
        staging = staging_path(folder)
        try:
            staging.mkdir(parents=True)
            sweep(folder.parent)
            weights = staging / WEIGHTS
            state = {
                k: v.detach().cpu().contiguous() for k, v in self.denoiser.state_dict().items()
            }
            save_file(state, weights)
            values["weights_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
            values[HASH] = card_hash(values)
            (staging / CARD).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
            for name, text in descriptions(card, __version__).items():
                (staging / name).parent.mkdir(exist_ok=True)
                (staging / name).write_text(text, encoding="utf-8")
            replace_folder(staging, folder)
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot write the prior to '{folder}': {error}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        license: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        message: str = "A prior of cleanprior",
    ) -> str:
        """Upload the prior's folder to the Hugging Face Hub; ``cp.load(name)`` reads it there.

        Arguments:
            name: ``user/name``; it is made where there is none.
            private: Whether a new one is private; None is the account's own choice.
            license: In the Hub's spelling, e.g. ``cc-by-4.0``; None keeps ``about["license"]``,
                and a card that names none asks for it.
            revision: Branch; None is the main one.
            token: Of the account; None takes the one that ``hf auth login`` has kept.
            message: Of the commit.

        Returns:
            The address of the commit.

        Raises:
            UserError: A name or a licence that the Hub cannot have, no permission, no connection,
                ``huggingface_hub`` is not installed.
        """
        if license is not None:
            if licence_of({"license": license}) != license:
                raise UserError(f"license={license!r}; write it as the Hub does, e.g. cc-by-4.0")
            self.about = {**self.about, "license": license}
        with TemporaryDirectory() as place:
            folder = Path(place) / "home"
            self.save(folder)
            options = {"private": private, "revision": revision, "token": token}
            return push(folder, name, message, options)

    @classmethod
    @plain_tensors()
    def load(cls, folder: str | Path) -> "Prior":
        """Read a prior from a folder; it may be anybody's, and runs no code.

        Raises:
            UserError: The folder or one of its files is missing, damaged, or of a newer format, or
                names a network that is not installed.
        """
        folder = Path(folder)
        check_complete(folder)
        card = read_card(folder)
        check_weights(folder, card.weights_sha256)
        try:
            denoiser = _load_denoiser(card, folder / WEIGHTS)
        except OSError as error:
            raise UserError(f"'{folder}' cannot be read: {error}") from error
        except UserError as error:
            raise UserError(f"'{folder}' is damaged: {error}") from error
        except (LookupError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
            raise UserError(f"'{folder}' is damaged: {type(error).__name__}: {error}") from error
        return cls(denoiser, card.image_shape, card.backbone, card.about)


def _load_denoiser(card: PriorCard, path: Path) -> Denoiser:
    """Build the network of a card and read its weights, where the one is that of the other."""
    shapes = shapes_of(path)
    largest = sum(map(math.prod, shapes.values()))
    with at_most(largest), without_memory(), scoped_rng(0):
        check_weight_shapes(_build(card), shapes)
    with at_most(largest), scoped_rng(0):
        denoiser = _build(card)
    tensors = load_file(path)
    check_finite(tensors)
    denoiser.load_state_dict(tensors)
    return denoiser


def _build(card: PriorCard) -> Denoiser:
    channels = card.image_shape[0]
    backbone = build_backbone(card.backbone, channels, channels, card.condition_channels)
    return Denoiser(backbone, card.sigma_data, card.condition_channels, card.preconditioning)


def _part(group: str, given: Any) -> Any:
    """Return a sampler as it was given, or the one of that name."""
    return part(group, given) if given is None or isinstance(given, str) else given


def image_generators(seed: int, numbers: Sequence[int], role: str = "restore") -> list[Generator]:
    """Return one generator an image, named by the image's number."""
    return [generator_for(seed, role, image=i) for i in numbers]
