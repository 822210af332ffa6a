"""Descriptions of benchmarks and of papers' tables, read from their YAML and checked. No torch."""

from dataclasses import dataclass, field
from typing import Any

from cleanprior.config import registry
from cleanprior.errors import UserError, unknown

SCALES = ("cpu", "gpu", "paper")
_SHARED = {"data", "overrides", "tuned", "seeds"}
_BENCH = {"methods", "before", "after", "problems", "variants", "sweep", "about", *_SHARED}
_PROBLEM = {"overrides", "published", "where", "beside"}
_NEEDED = ("data", "problems", "methods")
_LISTS = ("problems", "methods", "before", "after", "overrides")
_HELD: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("data", "sweep", "about"), (str,)),
    **dict.fromkeys(_LISTS, (list,)),
    **dict.fromkeys(("variants", "tuned"), (dict,)),
    "seeds": (int, list),
}
_WORDS = {str: "a word", list: "a list", dict: "keys with values", int: "a count or a list"}


@dataclass(frozen=True)
class Variant:
    """A row that is a method with other settings: ``oracle_100`` is ``oracle`` on 100 images.

    Attributes:
        method: The method.
        overrides: ``key=value`` of this row alone.
    """

    method: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class Beside:
    """Published rows that a problem of ours is shown beside.

    Attributes:
        group: Identifier of the published group.
        where: Keys that select its rows, e.g. ``p_missing: 0.6``.
        rows: Our row for each published method: its name, and what its way begins with.
    """

    group: str
    where: dict[str, Any]
    rows: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Case:
    """One problem of a description: its overrides, and what was published about it."""

    overrides: tuple[str, ...]
    beside: Beside | None = None


@dataclass(frozen=True)
class Description:
    """What a benchmark compares, before anything is composed.

    Attributes:
        name: Name of its configuration; a table's name holds its scale.
        data: Data set.
        cases: The problems.
        methods: Rows that are compared.
        before: Reference rows shown first.
        after: Reference rows shown last.
        variants: Rows that are no method's name.
        overrides: ``key=value`` of every cell.
        tuned: ``key=value`` of one row, with the experiment that they come from beside them.
        seeds: Training seeds: how many, or a list.
        sweep: The key that differs between problems, for a plot; empty for none.
        about: One sentence.
    """

    name: str
    data: str
    cases: tuple[Case, ...]
    methods: tuple[str, ...]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    variants: dict[str, Variant] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    tuned: dict[str, tuple[str, ...]] = field(default_factory=dict)
    seeds: int | tuple[int, ...] = 1
    sweep: str = ""
    about: str = ""

    def variant(self, row: str) -> Variant:
        """Return the method and the settings of a row.

        Raises:
            UserError: No such method or variant.
        """
        found = self.variants.get(row, Variant(row))
        registry.staged(found.method)
        return Variant(found.method, (*found.overrides, *self.tuned.get(row, ())))


def _check(kind: str, given: dict[str, Any], allowed: set[str]) -> None:
    if extra := sorted(set(given) - allowed):
        raise UserError(
            f"{kind} has unknown keys: {', '.join(extra)}; allowed: {', '.join(sorted(allowed))}"
        )


def _case(name: str, given: Any) -> Case:
    listed = given.get("overrides") if isinstance(given, dict) else given
    if not isinstance(listed, list) or not all(isinstance(o, str) for o in listed):
        raise UserError(f"{name}: a problem is {given!r}; it must list overrides, key=value")
    if not isinstance(given, dict):
        return Case(tuple(given))
    _check(f"a problem of {name}", given, _PROBLEM)
    if "published" not in given:
        return Case(tuple(given["overrides"]))
    rows = {}
    for published, ours in given.get("beside", {}).items():
        row, _, way = str(ours).partition(":")
        rows[published] = (row.strip(), way.strip())
    return Case(tuple(given["overrides"]), Beside(given["published"], given.get("where", {}), rows))


def _describe(name: str, given: dict[str, Any]) -> Description:
    _check(name, given, _BENCH)
    if lack := [key for key in _NEEDED if key not in given]:
        raise UserError(f"{name} lacks {', '.join(lack)}")
    for key, kinds in _HELD.items():
        if key in given and not isinstance(given[key], kinds):
            raise UserError(f"{name}: {key} is {given[key]!r}; it must be {_WORDS[kinds[0]]}")
    for variant in given.get("variants", {}).values():
        if not isinstance(variant, dict) or "method" not in variant:
            raise UserError(f"{name}: a variant is {variant!r}; it must say its method")
    return Description(
        name=name,
        data=given["data"],
        cases=tuple(_case(name, p) for p in given["problems"]),
        methods=tuple(given["methods"]),
        before=tuple(given.get("before", ())),
        after=tuple(given.get("after", ())),
        variants={
            row: Variant(v["method"], tuple(v.get("overrides", ())))
            for row, v in given.get("variants", {}).items()
        },
        overrides=tuple(given.get("overrides", ())),
        tuned={row: tuple(v) for row, v in given.get("tuned", {}).items()},
        seeds=tuple(s) if isinstance(s := given.get("seeds", 1), list) else s,
        sweep=given.get("sweep", ""),
        about=given.get("about", ""),
    )


def bench(name: str) -> Description:
    """Read a benchmark of the group ``bench``.

    Raises:
        UserError: No such benchmark, or a key that it may not have.
    """
    return _describe(name, registry.read("bench", name))


def table(name: str, scale: str) -> Description:
    """Read a paper's table of the group ``table`` at a scale.

    Arguments:
        name: Name of the table.
        scale: ``cpu``, ``gpu`` or ``paper``: data set, budget and networks; problems and rows are
            the same.

    Raises:
        UserError: No such table, no such scale, or a key that it may not have.
    """
    given = dict(registry.read("table", name))
    scales = given.pop("scales", {})
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    if scale not in scales:
        raise UserError(f"table '{name}' has no scale '{scale}'; it has: {', '.join(scales)}")
    chosen = dict(scales[scale])
    problems = chosen.pop("problems", None)  # a scale may have problems of its own
    _check(f"scale '{scale}' of table '{name}'", chosen, _SHARED)
    merged = {**given, **chosen}
    merged["overrides"] = [*given.get("overrides", []), *chosen.get("overrides", [])]
    merged["tuned"] = {**given.get("tuned", {}), **chosen.get("tuned", {})}
    if problems is not None:
        merged["problems"] = problems
    return _describe(f"{name}-{scale}", merged)
