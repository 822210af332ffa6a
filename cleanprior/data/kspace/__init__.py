"""K-space of scanners as measurements: files, the steps between them and y, coil maps.

``scans`` reads files, ``steps`` and ``maps`` are functions of arrays that anybody may call, and
``loading`` puts them together for ``data=kspace``.
"""

from .loading import files_of, kspace
from .scans import Scan, is_scan, read_scan

__all__ = ["Scan", "files_of", "is_scan", "kspace", "read_scan"]
