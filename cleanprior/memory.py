"""How much memory this machine has. No torch."""

import os
from functools import cache

#: Where the system does not say it.
_UNKNOWN = 64 << 30


@cache
def total_bytes() -> int:
    """Return the bytes of this machine's memory: what claims to be larger cannot be read."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return _UNKNOWN
