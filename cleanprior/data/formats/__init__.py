"""Files of instruments: TIFF, FITS, NIfTI, DICOM and pictures, read and written by their libraries.

One module a format, imported when such a file is met, with the functions

* ``read(path, library, stack)``: name of each array -> how to read it as :class:`Frames`;
* ``write(path, values, form, like, library)``: write numbers of the type and order that a
  :class:`Form` says, with the header of the file ``like`` where there is one.

What a header claims is compared with the size of the file before anything is read.
"""

from .frames import Form, Frames, to_stored
from .registry import FORMATS, Format, format_of, suffix_of

__all__ = ["FORMATS", "Form", "Format", "Frames", "format_of", "suffix_of", "to_stored"]
