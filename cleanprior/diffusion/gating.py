r"""Gated convolutions: each convolution has a second one that decides how much of it passes.

.. math:: h(x) = (W x + b) \odot g(V x + c)

with g the sigmoid (``single``), or the sigmoid of the sigmoid (``double``): that one lies between
0.5 and 0.731 and can never close. Every convolution has two sets of weights, so a purely
convolutional network has twice the parameters.

References:
    Free-Form Image Inpainting with Gated Convolution (Yu et al., 2019), section 3.1,
    arXiv:1806.03589
"""

import copy

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..config.checks import check_choice

GATES = ("none", "single", "double")


class GatedConv(nn.Module):
    """A convolution times its gate.

    Arguments:
        conv: The convolution; its weights stay.
        gate: ``single`` or ``double``; its own convolution gets fresh weights from
            torch's global generator.
    """

    def __init__(self, conv: nn.Conv2d, gate: str) -> None:
        super().__init__()
        self.conv = conv
        self.gate = copy.deepcopy(conv)
        self.gate.reset_parameters()
        self.is_double = gate == "double"

    @override
    def forward(self, x: Tensor) -> Tensor:
        opening = torch.sigmoid(self.gate(x))
        return self.conv(x) * (torch.sigmoid(opening) if self.is_double else opening)


def gate_convolutions(network: nn.Module, gate: str) -> nn.Module:
    """Replace every 2-D convolution inside a network by a gated one, in place.

    Arguments:
        network: Any network whose convolutions are ``nn.Conv2d``, azula's U-Net for one.
        gate: ``none`` (leave it alone), ``single`` or ``double``.

    Returns:
        The same network.

    Raises:
        ValueError: ``gate`` is not allowed, or there is no convolution to gate.
    """
    check_choice("gate", gate, GATES)
    if gate == "none":
        return network
    found = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Conv2d)
    ]
    if not found:
        raise ValueError(f"gate={gate}: {type(network).__name__} has no 2-D convolution to gate")
    for parent, name, child in found:
        setattr(parent, name, GatedConv(child, gate))
    return network
