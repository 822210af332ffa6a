"""Configurations: composed by Hydra from YAML, checked before any compute. No torch."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import UserError, did_you_mean, unknown
from ..notices import Notice, tell
from . import hydra_files, nested, noise, ranges, registry, truth
from .building import DESCRIPTIONS
from .hydra_files import Config
from .signatures import arguments
from .values import Kind, conform, declared, kind_of, read

GROUPS = (
    "data",
    "operator",
    "method",
    "backbone",
    "training",
    "sampler",
    "posterior",
    "evaluation",
)
# What a part calls and what its keys may hold is said by its YAML alone.
_FIXED = {"_target_", "unless", ranges.KEY, nested.KEY}
# Stands for a value that somebody gave while Hydra's files are composed and resolved.
_LITERAL = "\0"
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def compose(
    overrides: Sequence[str] = (), kept: Mapping[str, Mapping[str, Any]] | None = None
) -> Config:
    """Compose the configuration of one cell.

    A value is read as what its key holds (its YAML's default, the annotation of the argument), and
    otherwise taken literally: a path may hold any character. Hydra composes the groups; it never
    reads a value.

    Arguments:
        overrides: ``group=name`` and ``key=value``, as on the command line. Of two values of a key
            the later one counts.
        kept: Values by group that a file remembers, e.g. a prior's; overrides come after them.

    Returns:
        Plain nested dictionaries; each group also holds its chosen name under ``name``. With
        ``truth`` where what measures is not what is believed (:mod:`.truth`), and ``noise`` where
        it is not the operator's own (:mod:`.noise`).

    Raises:
        UserError: An override that is not ``key=value``, an unknown option, key or value, a group
            that is given twice.
    """
    groups, settings = _split(overrides)
    tree = copy.deepcopy(hydra_files.composed(groups))
    kept, names = dict(kept or {}), {}
    for group in GROUPS:
        settings, names[group] = nested.put(tree, group, settings, kept, hydra_files.one)
    if truth.is_given((key for key, _ in settings), kept):
        tree[truth.KEY] = truth.tree(tree["operator"])
    if (instrument := noise.tree(settings, kept.get(noise.KEY, {}))) is not None:
        tree[noise.KEY] = instrument
        kept[noise.KEY] = noise.of_kind(kept.get(noise.KEY, {}), instrument["kind"])
        if "sigma" in tree["operator"]:
            tree["operator"]["sigma"] = 0.0
    defaults: dict[str, Any] = {}
    literals: list[Any] = []

    def put(key: str, given: Any, convert: Callable[[str, Any, Kind, Any], Any]) -> None:
        parent, last, annotation = _place(tree, key)
        default = defaults.setdefault(key, parent.get(last))
        literals.append(_converted(key, given, convert, annotation, default))
        parent[last] = f"{_LITERAL}{len(literals) - 1}"

    for group, values in kept.items():
        for key, value in _plain(values, tree, tree.get(group)):
            put(f"{group}.{key}", value, conform)
    for key, text in settings:
        put(key, text, read)
    config: Config = _filled(hydra_files.resolved(tree), literals)
    for group in GROUPS:
        config[group]["name"] = groups[group]
        for key, name in names[group].items():
            config[group][key]["name"] = name
    if config["training"].get("start") is not None and "backbone" not in (kept or {}):
        from ..starts import UNET2D, settle

        is_chosen = any(o.lstrip("+").startswith("backbone") for o in overrides)
        values = registry.read("backbone", UNET2D)
        settle(config, [*defaults], is_chosen, values)
    ranges.check(config)
    for name in config["evaluation"].get("metrics") or ():
        registry.read("metric", str(name))
    if found := truth.chosen(config.pop(truth.KEY, {}), config["operator"]):
        config[truth.KEY] = found
    if noise.KEY in config:
        noise.check(config, [key for key, _ in settings])
    return config


def compose_one(group: str, name: str, settings: Sequence[str] = ()) -> Config:
    """Compose a group that is no part of a cell, e.g. where cells run.

    Arguments:
        group: ``launcher``.
        name: Its choice.
        settings: ``group.key=value``; of two values of a key the later one counts.

    Raises:
        UserError: An unknown name, key or value.
    """
    tree = {group: registry.read(group, name)}
    if (shared := registry.clash(group, name)) is not None:
        tell([Notice(shared, is_warning=True)])
    defaults: dict[str, Any] = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        parent, last, annotation = _place(tree, key)
        default = defaults.setdefault(key, parent.get(last))
        parent[last] = _converted(key, text, read, annotation, default)
    ranges.check(tree)
    return {**tree[group], "name": name}


def _converted(
    key: str,
    given: Any,
    convert: Callable[[str, Any, Kind, Any], Any],
    annotation: str | None,
    default: Any,
) -> Any:
    """Return what was given as a value of a key, which calls nothing."""
    value = convert(key, given, kind_of(annotation, default), default)
    if _names_a_call(value):
        raise UserError(f"{key}: a value holds no _target_; only a YAML names what is called")
    return value


def _names_a_call(value: Any) -> bool:
    """Whether a value would be called when a part is built, at any depth."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_names_a_call, value.values()))
    return isinstance(value, list | tuple) and any(map(_names_a_call, value))


def recompose(remembered: Any, source: str) -> Config:
    """Compose what a file remembers of a cell again, from what is installed here.

    The file chooses a configuration of each group by its name and gives values of its keys. What is
    called is named by the installed YAML and never by the file, which may be a stranger's.

    Arguments:
        remembered: A composed configuration that was written to a file.
        source: The file, for errors.

    Raises:
        UserError: It is no configuration, or what it names is not installed.
    """
    if not isinstance(remembered, Mapping):
        remembered = {}
    groups = {g: remembered[g] for g in GROUPS if isinstance(remembered.get(g), Mapping)}
    if len(groups) < len(GROUPS):
        raise UserError(f"'{source}' is damaged: it holds no configuration of a cell")
    chosen = [f"{group}={values.get('name')}" for group, values in groups.items()]
    seeds = [f"{key}={remembered.get(key)}" for key in ("seed", "data_seed")]
    if truth.KEY in remembered:
        if not isinstance(remembered[truth.KEY], Mapping):
            raise UserError(f"'{source}' is damaged: its truth holds no keys")
        groups[truth.KEY] = remembered[truth.KEY]
    if noise.KEY in remembered:
        if not isinstance(remembered[noise.KEY], Mapping):
            raise UserError(f"'{source}' is damaged: its noise holds no keys")
        groups[noise.KEY] = remembered[noise.KEY]
    return compose([*chosen, *seeds], groups)


def _split(overrides: Sequence[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Return the chosen name of each group, and the other keys with their texts."""
    groups = dict(hydra_files.default_groups())
    given: dict[str, str] = {}
    settings = []
    for override in overrides:
        key, is_given, text = override.lstrip("+").partition("=")
        if not is_given or not key or key.startswith("~"):
            raise UserError(
                f"'{override}' is not an override; write key=value, e.g. operator.p=0.3"
            )
        if key in GROUPS:
            if key == "method":
                text, stages = registry.staged(text)
                settings += [(k, v) for k, _, v in (stage.partition("=") for stage in stages)]
            registry.read(key, text)
            if (shared := registry.clash(key, text)) is not None:
                tell([Notice(shared, is_warning=True)])
            if given.setdefault(key, text) != text:
                raise UserError(f"{key} is given twice: {given[key]}, {text}; give one")
        else:
            settings.append((key, text))
    return groups | given, settings


def _place(tree: Config, key: str) -> tuple[Config, str, str | None]:
    """Return where a key lies, its last name, and the annotation of its argument.

    Raises:
        UserError: No such key: what is allowed there, and the nearest spelling.
    """
    node: Config = tree
    *parents, last = key.split(".")
    if _FIXED & set(key.split(".")):
        raise _unknown_key(tree, key)
    is_free = False  # a dictionary of whatever a library takes
    for i, part in enumerate(parents):
        below = node.get(part)
        if isinstance(below, str) and (other := _REFERENCE.fullmatch(below)):
            # It follows another group until one of its keys is set.
            below = node[part] = copy.deepcopy(_at(tree, other[1]))
        if not isinstance(below, dict):
            raise _unknown_key(tree, key)
        annotation = declared(arguments(str(node.get("_target_", ""))).get(part))
        is_free = is_free or (i > 0 and "dict" in annotation.types)
        node = below
    if last not in node and not is_free:
        raise _unknown_key(tree, key)
    if isinstance(node.get(last), dict) and "_target_" in node[last]:
        inside = ", ".join(k for k in node[last] if k != "_target_")
        raise UserError(f"'{key}' has keys of its own; set one of them: {inside}")
    return node, last, arguments(str(node.get("_target_", ""))).get(last)


def _at(tree: Config, key: str) -> Any:
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


def _unknown_key(tree: Config, key: str) -> UserError:
    """Say what was given, what is allowed, the nearest spelling."""
    keys = [k for k in _keys(tree) if k.rpartition(".")[2] != "_target_"]
    parent = key.rpartition(".")[0]
    siblings = [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == parent]
    allowed = ", ".join(siblings) or ", ".join(GROUPS)
    return UserError(f"unknown key '{key}'; allowed here: {allowed}.{did_you_mean(key, keys)}")


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == ranges.KEY:
                continue
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


def _plain(values: Mapping[str, Any], tree: Config, node: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys of a composed group that a person may set, nested ones with their path.

    Arguments:
        values: What a file remembers of the group.
        tree: The whole of what is installed, for references.
        node: The group in it; what it calls has keys of its own.
    """
    for key, value in values.items():
        if key in (*DESCRIPTIONS, "name", "_target_"):
            continue
        below = node.get(key) if isinstance(node, Mapping) else None
        if isinstance(below, str) and (other := _REFERENCE.fullmatch(below)):
            below = _at(tree, other[1])
        if isinstance(value, Mapping) and isinstance(below, Mapping) and "_target_" in below:
            yield from ((f"{key}.{k}", v) for k, v in _plain(value, tree, below))
        else:
            yield key, value


def _filled(node: Any, literals: Sequence[Any]) -> Any:
    """Put the values that people gave in the places that were kept for them."""
    if isinstance(node, dict):
        return {k: _filled(v, literals) for k, v in node.items()}
    if isinstance(node, list):
        return [_filled(v, literals) for v in node]
    if isinstance(node, str) and node.startswith(_LITERAL):
        return copy.deepcopy(literals[int(node[len(_LITERAL) :])])
    return node


def check_method(name: str) -> None:
    """Raise a helpful :class:`UserError` unless ``name`` is an installed, configured method."""
    registry.read("method", name)


def check_name(kind: str, name: str, choices: Sequence[str]) -> None:
    """Raise a helpful :class:`UserError` unless ``name`` is one of ``choices``."""
    if name not in choices:
        raise unknown(kind, name, choices)
