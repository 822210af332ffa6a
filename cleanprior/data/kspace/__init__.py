"""K-space of scanners as measurements: files, the steps between them and y, coil maps.

``scans`` reads files, ``steps`` and ``maps`` are functions of arrays that anybody may call, and
``loading`` puts them together for ``data=kspace``.
"""

from .loading import kspace
from .scans import Scan, read_scan

__all__ = ["Scan", "kspace", "read_scan"]
