"""Libraries that are not installed with the package. No torch."""

import importlib
from typing import Any

from .errors import UserError


def optional(library: str, purpose: str, extra: str = "data") -> Any:
    """Import a library that is not installed with the package.

    Arguments:
        library: The module.
        purpose: What it is needed for, as the end of a sentence.
        extra: Which extra of this package installs it.

    Raises:
        UserError: It is missing; the message says how to install it.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise UserError(
            f"'{library.partition('.')[0]}' is needed to {purpose} and is not installed; "
            f"pip install 'cleanprior[{extra}]'"
        ) from error
