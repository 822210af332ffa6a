"""Clean data sets (for simulation and evaluation only) and the measurements drawn from them."""

from .datasets import CleanData, digits, fashion_mnist, image_folder
from .measurements import Batch, Images, Measurements, TrainingSet

__all__ = [
    "Batch",
    "CleanData",
    "Images",
    "Measurements",
    "TrainingSet",
    "digits",
    "fashion_mnist",
    "image_folder",
]
