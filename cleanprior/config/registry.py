"""What is installed: plug-ins by entry point, configurations by folder. No torch.

The entry point ``name = "package"`` in the group ``cleanprior.plugins`` makes a package known:
whatever lies in its ``configs/GROUP/NAME.yaml`` is a configuration like the built-in ones, and a
method needs no more than that. An entry point ``name = "package.module:Class"`` in the group
``cleanprior.methods`` does the same for one method; built-in methods use that door.

What is wrong with a plug-in costs its own configurations and one line (:func:`remarks`).
"""

import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, distributions, entry_points
from pathlib import Path
from typing import Any

from ..errors import UserError, unknown
from . import nested, signatures
from .cards import fault, read_card

PLUGINS = "cleanprior.plugins"
METHODS = "cleanprior.methods"
COMMANDS = "cleanprior.commands"
OWN = "cleanprior"


@dataclass(frozen=True)
class Root:
    """A folder of configuration groups and the package that it belongs to."""

    package: str
    folder: Path


def module_of(entry: EntryPoint) -> str:
    """Return the module that an entry point names."""
    return entry.value.partition(":")[0].strip()


def is_own(entry: EntryPoint) -> bool:
    """Whether an entry point is of this package."""
    return module_of(entry).split(".")[0] == OWN


@cache
def _all_installed(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group, our own first."""
    try:
        found = list(entry_points(group=group))
    except Exception:  # one damaged file of metadata among all installed packages
        found = [e for e in _one_by_one() if e.group == group]
    return tuple(sorted(found, key=lambda e: (not is_own(e), e.name, e.value)))


def _one_by_one() -> Iterator[EntryPoint]:
    for distribution in distributions():
        try:
            yield from distribution.entry_points
        except Exception:
            continue


@cache
def installed(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name, sorted; of two with a name, ours."""
    found: dict[str, EntryPoint] = {}
    for entry in _all_installed(group):
        found.setdefault(entry.name, entry)
    return dict(sorted(found.items()))


def _folder_of(package: str) -> Path | None:
    """Return the folder of a package; nothing of a stranger's is imported for it."""
    if package.split(".")[0] != OWN:
        top, *inside = package.split(".")
        folder = _spec_folder(top)
        return None if folder is None else folder.joinpath(*inside)
    return _spec_folder(package)


def _spec_folder(package: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def _roots() -> tuple[tuple[Root, ...], tuple[str, ...]]:
    """Return the folders of configurations, our own first, and what is wrong with the others."""
    own = _folder_of("cleanprior.configs")
    if own is None:
        raise UserError("the package cleanprior.configs is missing: install cleanprior again")
    roots, remarks = [Root(OWN, own)], []
    packages = [(e, module_of(e)) for e in _all_installed(PLUGINS)]
    packages += [(e, module_of(e).split(".")[0]) for e in _all_installed(METHODS)]
    for entry, package in packages:
        if package == OWN:
            continue
        folder = _folder_of(package)
        if folder is None or not folder.is_dir():
            is_module = signatures.source(package) is not None
            remarks.append(
                f"'{package}' ({entry.name} = {entry.value}) "
                + (
                    "is a module and no package: it can hold no folder configs"
                    if is_module
                    else "cannot be found: install the plug-in again, or uninstall it with pip"
                )
            )
        elif (folder / "configs").is_dir():
            roots.append(Root(package, folder / "configs"))
        elif entry.group == PLUGINS:
            remarks.append(
                f"the plug-in '{package}' brings nothing: it has no folder configs; are its YAML "
                "files package data?"
            )
    return tuple(dict.fromkeys(roots)), tuple(dict.fromkeys(remarks))


def config_roots() -> tuple[Path, ...]:
    """Return the folders that hold configuration groups: our own first, then each plug-in's."""
    return tuple(root.folder for root in _roots()[0])


def _found(group: str) -> dict[str, list[tuple[str, Path]]]:
    """Return all files of a group by name: each with its package, ours first."""
    found: dict[str, list[tuple[str, Path]]] = {}
    for root in _roots()[0]:
        for path in sorted((root.folder / group).glob("*.yaml")):
            found.setdefault(path.stem, []).append((root.package, path))
    return found


def options(group: str) -> dict[str, Path]:
    """Return the configurations of a group (``operator``, ``data``, ...): name -> YAML file."""
    return {name: files[0][1] for name, files in _found(group).items()}


def methods() -> dict[str, Path]:
    """Return the methods: built-in ones that have an entry point, and every plug-in's YAML.

    A preset of a built-in one begins from its YAML and needs no entry point.
    """
    entries = installed(METHODS)
    found = {n: files[0] for n, files in _found("method").items()}
    known = {
        n: path
        for n, (package, path) in found.items()
        if package != OWN or n in entries or _begins_from(path) in entries
    }
    return dict(sorted(known.items()))


def presets() -> dict[str, str]:
    """Return the methods that are another one with other values: name -> that method's name."""
    begun = {name: _begins_from(path) for name, path in methods().items()}
    return {name: base for name, base in begun.items() if base is not None}


@cache
def _begins_from(path: Path) -> str | None:
    """Return the configuration of its group that a file changes values of, or None."""
    try:
        listed = read_card(path).get("defaults")
    except UserError:
        return None
    named = [n for n in listed if n != "_self_"] if isinstance(listed, list) else []
    return str(named[0]) if named else None


def path_of(group: str, name: str) -> Path:
    """Return the file of a configuration."""
    return _found(group)[name][0][1]


def package_of(group: str, name: str) -> str:
    """Return the package that a configuration comes with."""
    return _found(group)[name][0][0]


def clash(group: str, name: str) -> str | None:
    """Return how several packages share a configuration's name, or None."""
    first, *others = [package for package, _ in _found(group).get(name, [(OWN, None)])]
    if not others:
        return None
    if first == OWN:
        return (
            f"{group} '{name}' is the built-in one; that of the package {', '.join(others)} is "
            "hidden by it: give it another name"
        )
    return (
        f"{group} '{name}' comes with several packages ({', '.join([first, *others])}): "
        "uninstall all but one"
    )


def readable(group: str) -> dict[str, dict[str, Any]]:
    """Return the configurations of a group that can be used, as plain values by name."""
    names = methods() if group == "method" else options(group)
    found = {}
    for name in names:
        try:
            found[name] = read(group, name)
        except UserError:
            continue
    return found


def remarks() -> list[str]:
    """Return a line for each plug-in, or part of one, that is not what its author thinks."""
    groups = sorted({p.name for root in _roots()[0] for p in root.folder.iterdir() if p.is_dir()})
    clashes = [clash(group, name) for group in groups for name in _found(group)]
    hidden = [
        f"the entry point {e.name} = {e.value} is hidden by {installed(group)[e.name].value}"
        for group in (METHODS, COMMANDS)
        for e in _all_installed(group)
        if e.value != installed(group)[e.name].value
    ]
    return [*_roots()[1], *(c for c in clashes if c is not None), *hidden]


def module_hash(module: str) -> str:
    """Return the hash of a module's source, or of all a package's; empty where there is none."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # it imports the packages above, which may be anybody's
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
        UserError: The group has no such configuration, or what it says cannot be used.
    """
    choices = methods() if group == "method" else options(group)
    if name not in choices:
        if group == "method" and name in installed(METHODS):
            package = module_of(installed(METHODS)[name]).split(".")[0]
            if _folder_of(package) is None:
                raise UserError(f"method '{name}': its package '{package}' cannot be found")
            raise UserError(
                f"method '{name}' has an entry point but no configuration; "
                f"its package needs configs/method/{name}.yaml"
            )
        raise unknown("data set" if group == "data" else group, name, choices)
    package = package_of(group, name)
    shared = clash(group, name)
    if shared is not None and package != OWN:
        raise UserError(shared)
    try:
        card = nested.expanded(group, _with_defaults(group, name, read_card(choices[name])), read)
        reason = None if package == OWN else fault(group, card)
    except UserError as error:
        raise _unusable(group, name, str(error)) from error
    if reason is not None:
        raise _unusable(group, name, reason)
    return card


def staged(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the method that a name means, and the settings that it stands for.

    ``TEACHER+distill`` is ``method=distill method.teacher=TEACHER`` for every method whose YAML
    begins with another method (:mod:`.nested`); any other name means itself.

    Raises:
        UserError: One of both is no installed method, or the second begins with no other.
    """
    first, joined, second = name.rpartition(nested.JOIN)
    if not joined:
        read("method", name)
        return name, ()
    read("method", first)
    parts = nested.declared(read("method", second))
    if "method" not in parts.values():
        able = [n for n, card in readable("method").items() if nested.declared(card)]
        raise UserError(
            f"method '{name}': '{second}' is no second stage of another method; those that are: "
            f"{', '.join(able) or 'none'}"
        )
    key = next(k for k, group in parts.items() if group == "method")
    return second, (f"method.{key}={first}",)


def _with_defaults(group: str, name: str, card: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with the keys of those of its group that it begins from."""
    listed = card.get("defaults")
    if not isinstance(listed, list):
        return card
    bases = [b for b in listed if isinstance(b, str) and b not in ("_self_", name)]
    merged: dict[str, Any] = {}
    for base in bases:
        merged = _merged(merged, read(group, base))
    return _merged(merged, {k: v for k, v in card.items() if k != "defaults"})


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Return values with others in their places, key by key at any depth, as Hydra does."""
    found = dict(below)
    for key, value in above.items():
        own = found.get(key)
        is_inside = isinstance(own, dict) and isinstance(value, dict)
        found[key] = _merged(dict(own or {}), value) if is_inside else value
    return found


def _unusable(group: str, name: str, reason: str) -> UserError:
    return UserError(f"{group} '{name}' of the package {package_of(group, name)}: {reason}")
