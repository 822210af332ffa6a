r"""FlowDiff: a conditional flow proposes clean images, a diffusion prior judges and learns them."""

from .method import FlowDiff

__all__ = ["FlowDiff"]
