r"""A prior in diffusers: its network as a model, EDM's Euler steps as the scheduler, a pipeline.

.. code-block:: python

    import cleanprior.diffusers

    pipe = cleanprior.diffusers.load("prior")  # a folder, or a name on the Hub
    images = pipe(batch_size=4, num_inference_steps=40, output_type="pt").images  # in [0, 1]

The network is the bare one: :math:`F(c_{in} x_\sigma, \ln \sigma / 4)`. ``EDMEulerScheduler``
scales its input and output as the prior does, so that ``pred_original_sample`` is the prior's own
``prior(x, sigma)``. Once this module is imported, ``DiffusionPipeline.from_pretrained(folder)``
reads a folder of square images, too. A folder may be anybody's: it is read as a prior, within its
limits, and none of its code is run.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError
from .extras import optional
from .hub import fetched
from .prior import Prior

optional("diffusers", "use a prior in diffusers", "hub")

import diffusers  # noqa: E402
from diffusers.configuration_utils import ConfigMixin  # noqa: E402
from diffusers.models.modeling_utils import ModelMixin  # noqa: E402
from diffusers.models.unets.unet_2d import UNet2DOutput  # noqa: E402
from diffusers.utils.torch_utils import randn_tensor  # noqa: E402


class PriorNetwork(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The network of an unconditional prior, called as diffusers calls its ``UNet2DModel``.

    Arguments:
        prior: The prior.

    Raises:
        UserError: Its network is told a mask beside the image.
    """

    config_name = "config.json"

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        if prior.denoiser.condition_channels:
            raise UserError(
                "the prior's network is told a mask beside the image, which diffusers does not "
                "know; use cp.load and its sample and restore"
            )
        channels, height, width = prior.image_shape
        self.register_to_config(
            in_channels=channels,
            out_channels=channels,
            sample_size=height if height == width else (height, width),
            num_class_embeds=None,
            sigma_data=prior.denoiser.sigma_data,
        )
        self._backbone_config, self._about = prior.backbone_config, prior.about
        self.backbone: nn.Module = prior.denoiser.backbone

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Apply the network.

        Arguments:
            sample: Noisy images (b, c, h, w), scaled by the scheduler's ``scale_model_input``.
            timestep: A quarter of ln sigma, as ``EDMEulerScheduler.timesteps`` are; one for all
                images or one for each.
            class_labels: None; there are no classes.
            return_dict: Whether an object with ``sample`` is returned, or a tuple.
        """
        level = torch.as_tensor(timestep, dtype=sample.dtype, device=sample.device).flatten()
        output = self.backbone(sample, level.expand(len(sample)), None)
        return UNet2DOutput(sample=output) if return_dict else (output,)

    @classmethod
    def from_pretrained(  # noqa: D417
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> "PriorNetwork":
        """Read the network of a prior; see :func:`load`.

        Arguments:
            pretrained_model_name_or_path: A prior's folder, or its name on the Hub.
            options: ``torch_dtype`` and ``revision``; what else diffusers hands over has no
                meaning here.
        """
        folder = fetched(pretrained_model_name_or_path, options.get("revision"))
        network = cls(Prior.load(folder))
        dtype = options.get("torch_dtype")
        return network if dtype is None else network.to(dtype)

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write a prior's folder, which :meth:`from_pretrained` reads."""
        from .diffusion.denoiser import Denoiser

        shape = (self.config.in_channels, *_pair(self.config.sample_size))
        denoiser = Denoiser(self.backbone, self.config.sigma_data)
        Prior(denoiser, shape, self._backbone_config, self._about).save(save_directory)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


class PriorPipeline(diffusers.DiffusionPipeline):  # type: ignore[misc]
    """Draws images by the scheduler's steps, of any shape.

    Arguments:
        unet: The network.
        scheduler: EDM's, with the prior's ``sigma_data``.
    """

    def __init__(self, unet: PriorNetwork, scheduler: diffusers.EDMEulerScheduler) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 40,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
    ) -> diffusers.ImagePipelineOutput:
        """Draw images.

        Arguments:
            batch_size: How many.
            num_inference_steps: Noise levels, each a pass of the network.
            generator: Source of randomness, one for all or one for each image.
            output_type: ``pil``, ``np`` (b, h, w, c) or ``pt`` (b, c, h, w), the arrays in [0, 1].
        """
        config = self.unet.config
        shape = (batch_size, config.in_channels, *_pair(config.sample_size))
        device, dtype = self._execution_device, self.unet.dtype
        x = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        x = x * self.scheduler.init_noise_sigma
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.progress_bar(self.scheduler.timesteps):
            output = self.unet(self.scheduler.scale_model_input(x, t), t).sample
            x = self.scheduler.step(output, t, x).prev_sample
        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).float().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return diffusers.ImagePipelineOutput(images=images)


def load(folder: str | Path, revision: str | None = None) -> PriorPipeline:
    """Read a prior as a pipeline of diffusers; it may be anybody's, and runs no code.

    Arguments:
        folder: A prior's folder, or its name on the Hub.
        revision: Branch, tag or commit on the Hub.

    Returns:
        A pipeline with ``unet`` and ``scheduler``.

    Raises:
        UserError: There is none, it is damaged, or its network is told more than the image.
    """
    prior = Prior.load(fetched(folder, revision))
    scheduler = diffusers.EDMEulerScheduler(sigma_data=prior.denoiser.sigma_data)
    return PriorPipeline(PriorNetwork(prior), scheduler)


__all__ = ["PriorNetwork", "PriorPipeline", "load"]
