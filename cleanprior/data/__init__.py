"""Clean data sets (for simulation and evaluation only) and measurements, drawn or a user's own."""

from .array_files import arrays
from .datasets import CleanData, digits
from .downloads import celeba, cifar10, fashion_mnist, mnist
from .hub import huggingface
from .image_files import afhq, image_folder, image_zip
from .loading import measured_file
from .measured import MeasuredData, write_splits
from .measurements import Batch, Images, Measurements, TrainingSet
from .phases import complex_images

__all__ = [
    "Batch",
    "CleanData",
    "Images",
    "MeasuredData",
    "Measurements",
    "TrainingSet",
    "afhq",
    "arrays",
    "celeba",
    "cifar10",
    "complex_images",
    "digits",
    "fashion_mnist",
    "huggingface",
    "image_folder",
    "image_zip",
    "measured_file",
    "mnist",
    "write_splits",
]
