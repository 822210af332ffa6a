r"""Complex images made of magnitudes: each is given a smooth phase, drawn once. A simulation.

.. math:: x = m\, e^{i \varphi}, \qquad
    \varphi(u, v) = \pi b\, \frac{\sum_{i+j \le 3} a_{ij} u^i v^j}{\max |\ldots|}

with m the picture in [0, 1], u and v from -1 to 1, and normal coefficients. Scanners' images have
such a phase of their own; the one here is nobody's.
"""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UserError
from ..notices import Notice
from ..seeding import generator_for
from .datasets import CleanData
from .image_files import image_folder, image_zip

#: Powers of the polynomial, each up to their sum.
ORDER = 3


def smooth_phase(
    x: Float[Tensor, "n 1 h w"], largest: float, seed: int
) -> Float[Tensor, "n 1 h w"]:
    """Draw the phase of each image, in radians, by the seed and the image's content.

    Arguments:
        x: Images; equal ones have one phase, so that a copy stays a copy.
        largest: Largest phase in units of pi, at least 0.
        seed: Another seed, other phases.
    """
    height, width = x.shape[2:]
    rows = torch.linspace(-1, 1, height)[:, None]
    columns = torch.linspace(-1, 1, width)[None]
    powers = [(i, j) for i in range(ORDER + 1) for j in range(ORDER + 1 - i)]
    basis = torch.stack([rows**i * columns**j for i, j in powers])
    found = torch.empty(len(x), 1, height, width)
    for place, image in enumerate(x):
        content = hashlib.sha256(image.numpy().tobytes()).hexdigest()
        drawn = torch.randn(len(powers), generator=generator_for(seed, "phase", image=content))
        phase = (drawn[:, None, None] * basis).sum(0)
        found[place, 0] = math.pi * largest * phase / phase.abs().max()
    return found


def complex_images(
    path: str | None,
    resolution: int,
    phase: float,
    phase_seed: int,
    test_share: float,
    limit: int | None,
    range: Sequence[float] | None = None,
) -> CleanData:
    """Load grey pictures of a folder or a zip archive as complex images, real and imaginary part.

    Their magnitude is in [0, 1], so that both parts are in [-1, 1]. The split is the one of
    ``data=folder`` and ``data=zip``.

    Arguments:
        path: The folder, or a ``.zip``.
        resolution: Side of the images in pixels.
        phase: Largest phase in units of pi, from 0 (real images) to 1.
        phase_seed: Seed of the phases; they do not depend on the data seed.
        test_share: Share of images held out, where the pictures ship no test split.
        limit: Load that many training images, or None for all.
        range: The two pixel values that become magnitudes 0 and 1, or None for those of the type.

    Raises:
        UserError: As ``data=folder``, or a phase outside its range.
    """
    if path is None:
        raise UserError("data=complex_images needs data.path=FOLDER or FILE.zip with the pictures")
    if not 0 <= phase <= 1:
        raise UserError(f"phase={phase}; allowed: 0 to 1, in units of pi")
    if Path(path).suffix.lower() == ".zip":
        grey = image_zip(path, resolution, 1, test_share, limit, False, range)
    else:
        grey = image_folder(path, resolution, 1, test_share, limit, False, range)
    text = f"{grey.name}: magnitudes with a simulated smooth phase of at most {phase:g} pi"
    train, test = (_with_phase(x, phase, phase_seed) for x in (grey.train, grey.test))
    return CleanData(grey.name, train, test, notices=(Notice(text),))


def _with_phase(x: Tensor, phase: float, seed: int) -> Tensor:
    magnitude, angle = (x + 1) / 2, smooth_phase(x, phase, seed)
    return torch.cat([magnitude * angle.cos(), magnitude * angle.sin()], 1)


__all__ = ["complex_images", "smooth_phase"]
