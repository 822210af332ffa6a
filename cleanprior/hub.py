"""Priors on the Hugging Face Hub: a folder is pushed, a name is fetched. No torch.

A folder of this machine comes before a name on the Hub. ``HF_HUB_OFFLINE=1`` reads the cache alone.
"""

import re
from pathlib import Path
from typing import Any

from .errors import UserError
from .extras import optional
from .prior_files import CARD, WEIGHTS

#: ``user/name``, as the Hub spells it.
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
#: What a diffusers network needs beside, for a start of a fine-tuning.
DIFFUSERS = ("*config.json", "*model_index.json", "*diffusion_pytorch_model.safetensors")


def is_hub_name(text: str | Path) -> bool:
    """Whether a text could be a name on the Hub, and is no path of this machine."""
    given = str(text)
    return _NAME.fullmatch(given) is not None and not Path(given).exists()


def fetched(given: str | Path, revision: str | None = None, is_start: bool = False) -> Path:
    """Return the folder of a prior: the one that was given, or what the Hub has by that name.

    Arguments:
        given: A folder, or ``user/name``.
        revision: Branch, tag or commit on the Hub; None takes its main branch.
        is_start: Whether a network of diffusers is wanted, too.

    Raises:
        UserError: No such name or revision, no connection and nothing in the cache, a revision of
            a folder on this machine.
    """
    if not is_hub_name(given):
        if revision is not None:
            raise UserError(f"revision={revision}: '{given}' is a folder, not a name on the Hub")
        return Path(given)
    name = str(given)
    hub = _hub(f"load '{name}' from the Hub (there is no folder '{name}')")
    patterns = [CARD, WEIGHTS, *(DIFFUSERS if is_start else ())]
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError, RuntimeError) as error:
        where = name if revision is None else f"{name}, revision {revision},"
        raise UserError(
            f"'{where}' is no folder and was not loaded from the Hub: {_line(error)}"
        ) from error


def push(folder: Path, name: str, message: str, options: dict[str, Any]) -> str:
    """Upload a prior's folder; return its address.

    Arguments:
        folder: The folder.
        name: ``user/name``; it is made where there is none.
        message: Of the commit.
        options: ``private``, ``revision``, ``token``; None where they are not given.

    Raises:
        UserError: A name that the Hub cannot have, no permission, no connection.
    """
    if _NAME.fullmatch(name) is None:
        raise UserError(f"'{name}' is no name on the Hub; write user/name")
    hub = _hub("push a prior to the Hub")
    revision = options.get("revision")
    try:
        api = hub.HfApi(token=options.get("token"))
        api.create_repo(name, private=options.get("private"), exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=name, folder_path=str(folder), commit_message=message, revision=revision
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"'{name}' was not pushed to the Hub: {_line(error)}") from error
    return str(done)


def _hub(purpose: str) -> Any:
    return optional("huggingface_hub", purpose, "hub")


def _line(error: Exception) -> str:
    """Return the first sentence of the library's message, which has several lines."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[0].split())[:300] if lines else type(error).__name__
