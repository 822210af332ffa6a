"""Which ending is which format, and which library reads it. No library is imported here."""

import importlib
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        name: Its name in sentences.
        module: The module of this package that reads and writes it.
        suffixes: Endings in lower case.
        library: What is imported to read it.
        extra: Which extra of this package installs the library; empty where it is always there.
    """

    name: str
    module: str
    suffixes: tuple[str, ...]
    library: str
    extra: str = "instruments"

    def functions(self) -> Any:
        """Return the module that reads and writes this format."""
        return importlib.import_module(f".{self.module}", __package__)


FORMATS = (
    Format("TIFF", "tiff", (".tif", ".tiff"), "tifffile"),
    Format("FITS", "fits", (".fits", ".fit", ".fts"), "astropy.io.fits"),
    Format("NIfTI", "nifti", (".nii", ".nii.gz"), "nibabel"),
    Format("DICOM", "dicom", (".dcm", ".dicom"), "pydicom"),
    Format(
        "picture",
        "picture",
        (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm"),
        "PIL.Image",
        "",
    ),
)


def suffix_of(path: PurePath) -> str:
    """Return the ending of a file in lower case, with what was compressed: ``.nii.gz``."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


def format_of(path: PurePath) -> Format | None:
    """Return the format of an instrument's file by its ending, or None."""
    suffix = suffix_of(path)
    return next((f for f in FORMATS if suffix in f.suffixes), None)
