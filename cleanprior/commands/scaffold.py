"""What ``cleanprior new`` writes: an installable package with one part and its contract tests.

The files are those of ``templates``: ``common`` and then the kind's own, with names filled in. No
torch.
"""

import importlib.util
import keyword
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .. import __version__
from ..config import registry
from ..errors import UserError, unknown
from ..files import check_folder
from ..metric_names import is_built_in

#: What can be written, its group of configurations and the contract that tests it.
KINDS = {
    "method": ("method", "MethodContract"),
    "operator": ("operator", "OperatorContract"),
    "data": ("data", "DataContract"),
    "metric": ("metric", "MetricContract"),
}
WORDS = {"data": "data set"}
LISTS = {"method": "methods", "operator": "operators", "data": "datasets", "metric": "metrics"}
#: A first benchmark of the part.
FIRST = {
    "method": "cleanprior bench --methods __name__",
    "operator": "cleanprior bench --methods em_mmps --operator __name__",
    "data": "cleanprior bench --methods em_mmps --data __name__",
    "metric": "cleanprior bench --methods em_mmps 'evaluation.metrics=[__name__]'",
}
TEMPLATES = Path(__file__).parents[1] / "templates"
#: Ending of a template, so that no tool takes it for a module.
ENDING = ".txt"


def write_package(kind: str, name: str, to: Path | None = None) -> Path:
    """Write a package; it appears whole or not at all.

    Arguments:
        kind: One of :data:`KINDS`.
        name: Name of its configuration.
        to: The package's folder, absent or empty; default: ``cleanprior_NAME`` here.

    Returns:
        The folder.

    Raises:
        UserError: No such kind, a name that cannot be one or is taken, a folder that exists.
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    group, contract = KINDS[kind]
    word = WORDS.get(kind, kind)
    _check_name(kind, name)
    if kind == "metric" and (is_built_in(name) or name.endswith("_point")):
        raise UserError(f"metric '{name}' is there already, in cleanprior; choose another name")
    if name in registry.options(group):
        raise UserError(
            f"{word} '{name}' is there already, in the package "
            f"{registry.package_of(group, name)}; choose another name"
        )
    package = f"cleanprior_{name}"
    folder = Path(package) if to is None else to
    check_folder("--to", folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"'{folder}' exists already; name another folder with --to")
    spec = importlib.util.find_spec(package)
    if spec is not None and spec.origin is not None:  # a folder of that name is no package
        raise UserError(f"a package '{package}' is installed already; choose another name")
    values = {
        "name": name,
        "package": package,
        "kind": kind,
        "group": group,
        "word": word,
        "contract": contract,
        "class": "".join(part[:1].upper() + part[1:] for part in name.split("_")),
        "version": __version__,
        "list": LISTS[kind],
        "try": FIRST[kind].replace("__name__", name),
    }
    try:
        _write(kind, folder, values)
    except OSError as error:
        raise UserError(f"'{folder}' cannot be written: {error.strerror or error}") from error
    return folder


def _check_name(kind: str, name: str) -> None:
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise UserError(f"'{name}' is a word of Python's own; choose another name")
    if not (name.isascii() and name.isidentifier() and name[:1].isalpha()):
        word = {"operator": "an operator", "data": "a data set"}.get(kind, f"a {kind}")
        raise UserError(
            f"'{name}' is no name for {word}: letters, digits and _, and a letter first, e.g. "
            "my_own"
        )


def _write(kind: str, folder: Path, values: dict[str, str]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for part in ("common", kind):
            for path in _files(TEMPLATES / part):
                inside = path.relative_to(TEMPLATES / part).as_posix().removesuffix(ENDING)
                target = staging / _filled(inside, values)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(_filled(path.read_text("utf-8"), values), encoding="utf-8")
        staging.chmod(0o755)  # a temporary folder is its owner's alone
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob(f"*{ENDING}") if path.is_file())


def _filled(text: str, values: dict[str, str]) -> str:
    for key, value in values.items():
        text = text.replace(f"__{key}__", value)
    return text


__all__ = ["KINDS", "write_package"]
