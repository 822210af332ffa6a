"""LPIPS: the perceptual distance of the ``lpips`` package, where its weights are on this machine.

The package ships the calibrated linear layers; AlexNet itself comes by download (233 MB). Without
it there is no value, only the reason: another network would be another metric.
"""

import warnings

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...seeding import scoped_rng
from .networks import hub_file, to_rgb

ALEXNET = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
#: AlexNet's third convolution has no input pixel left below this side.
SMALLEST = 31


class Lpips:
    """Learned perceptual image patch similarity, AlexNet, version 0.1; lower is better.

    Arguments:
        network: An ``lpips.LPIPS``; called with two batches in [-1, 1].

    References:
        The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018),
        arXiv:1801.03924
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, is_downloading: bool) -> "Lpips":
        """Read the weights from torch's hub folder.

        Arguments:
            is_downloading: Fetch AlexNet's weights where they are absent.

        Raises:
            Unavailable: The weights are absent or cannot be fetched.
        """
        path = hub_file(ALEXNET, "LPIPS", "233 MB", is_downloading)
        import lpips

        with warnings.catch_warnings(), scoped_rng(0):
            # torchvision's `pretrained=`, which the package still says.
            warnings.simplefilter("ignore", UserWarning)
            network = lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)
        weights = torch.load(path, map_location="cpu", weights_only=True)
        # The package cuts AlexNet's convolutions into slices; a layer keeps its number.
        layers = {k: layer for cut in network.net.children() for k, layer in cut.named_children()}
        for number, layer in layers.items():
            prefix = f"features.{number}."
            state = {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
            layer.load_state_dict(state)
        return cls(network)

    @torch.no_grad()
    def __call__(
        self, x: Float[Tensor, "n c h w"], truth: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, " n"]:
        """Return the distance of each image, clipped to [-1, 1]; grey images as equal channels."""
        pairs = zip(x.split(64), truth.split(64), strict=True)
        values = [self.network(to_rgb(a), to_rgb(b)).flatten() for a, b in pairs]
        return torch.cat(values).double()


def refusal(image_shape: tuple[int, ...]) -> str | None:
    """Return why LPIPS has no value for images of this shape, or None."""
    if image_shape[0] not in (1, 3):
        return f"LPIPS compares grey or RGB images; these have {image_shape[0]} channels"
    if min(image_shape[1:]) < SMALLEST:
        height, width = image_shape[1:]
        return f"LPIPS's network needs {SMALLEST} pixels a side; images have {height}x{width}"
    return None
