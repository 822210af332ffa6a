"""What is installed: methods and commands by entry point, configurations by folder. No torch.

A method's entry point ``name = "package.module:Class"`` in the group ``cleanprior.methods`` makes
it known; its configuration is ``package/configs/method/name.yaml``. Built-in methods use the same
door as a stranger's.
"""

import hashlib
import importlib.util
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError, unknown

METHODS = "cleanprior.methods"
COMMANDS = "cleanprior.commands"


@cache
def installed(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name, sorted."""
    return {e.name: e for e in sorted(entry_points(group=group), key=lambda e: e.name)}


def _folder_of(package: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def config_roots() -> tuple[Path, ...]:
    """Return the folders that hold configuration groups: our own first, then each plug-in's."""
    own = _folder_of("cleanprior.configs")
    if own is None:
        raise UserError("the package cleanprior.configs is missing: install cleanprior again")
    roots = [own]
    for entry in installed(METHODS).values():
        package = entry.value.split(":")[0].split(".")[0]
        if package == "cleanprior":
            continue
        folder = _folder_of(package)
        if folder is not None and (folder / "configs").is_dir():
            roots.append(folder / "configs")
    return tuple(dict.fromkeys(roots))


def options(group: str) -> dict[str, Path]:
    """Return the configurations of a group (``operator``, ``data``, ...): name -> YAML file."""
    found: dict[str, Path] = {}
    for root in config_roots():
        for path in sorted((root / group).glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def methods() -> dict[str, Path]:
    """Return the methods that have both an entry point and a configuration: name -> YAML file."""
    files = options("method")
    return {name: files[name] for name in installed(METHODS) if name in files}


def code_hash(method: str) -> str:
    """Return the hash of the module that a method's entry point names; empty where there is none.

    The module is found and not imported.
    """
    return module_hash(installed(METHODS)[method].value.split(":")[0])


def module_hash(module: str) -> str:
    """Return the hash of a module's source, or of all a package's; empty where there is none."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return ""
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return ""
    digest = hashlib.sha256(Path(spec.origin).read_bytes())
    for folder in spec.submodule_search_locations or ():
        for path in sorted(Path(folder).rglob("*.py")):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def read(group: str, name: str) -> dict[str, Any]:
    """Read one configuration as plain values, without composing it.

    Raises:
        UserError: The group has no such configuration.
    """
    choices = methods() if group == "method" else options(group)
    if name not in choices:
        if group == "method" and name in installed(METHODS):
            raise UserError(
                f"method '{name}' has an entry point but no configuration; "
                f"its package needs configs/method/{name}.yaml"
            )
        raise unknown("data set" if group == "data" else group, name, choices)
    return yaml.safe_load(choices[name].read_text(encoding="utf-8")) or {}
