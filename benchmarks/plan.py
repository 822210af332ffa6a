"""What a benchmark runs: a grid of problems, methods and seeds, composed and checked. No torch."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cleanprior.cells.identity import placeless, with_metrics
from cleanprior.config import GROUPS, Config, capabilities, compose, noise, registry
from cleanprior.config.hydra_files import default_groups
from cleanprior.errors import UserError, unknown

from .description import Beside, Case, Description
from .worth import worth_rows

#: More training seeds than anybody trains; a seed that was given for a count.
MOST_SEEDS = 1000
#: Keys of ``training`` that are null unless given; null ones are no part of a table's name.
LATER = ("processes", "start")


@dataclass(frozen=True)
class Problem:
    """One table: a data set and an operator, the same for every row.

    Attributes:
        title: Shown above the table.
        label: The operator with what differs from its defaults, for tabs and overviews.
        key: Its part of the name of its tables' folder; the same problem has the same key.
        cells: Composed configurations by row, in order; one a seed.
        beside: What was published about it, or None.
    """

    title: str
    label: str
    key: str
    cells: dict[str, list[Config]]
    beside: Beside | None = None


@dataclass(frozen=True)
class Plan:
    """A benchmark: its problems, and which rows are references.

    Attributes:
        name: Name of the benchmark's configuration.
        problems: One a table.
        references: Methods that anchor every table and are not compared.
        about: One sentence; empty where its data or operators were replaced.
        sweep: The key that differs between problems, for a plot; empty for none.
        worth: Rows trained on clean images, few and all, that the others are measured by.
        part: A hash of rows and seeds where these are not the benchmark's own: the tables of such a
            request have folders of their own, and overwrite no others. Empty for all of it, and for
            folders of before there were parts.
    """

    name: str
    problems: list[Problem]
    references: tuple[str, ...]
    about: str = ""
    sweep: str = ""
    part: str = ""
    worth: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Name of the folder of what belongs to all problems; that of a single problem's table."""
        if len(self.problems) == 1:
            return self.key_of(self.problems[0])
        return self._named(_short(" ".join(p.key for p in self.problems)))

    def key_of(self, problem: Problem) -> str:
        """Name of the folder of a problem's tables."""
        return self._named(problem.key)

    def _named(self, key: str) -> str:
        return "-".join([self.name, key, *([self.part] if self.part else [])])

    def kept_in(self, folder: str) -> "Plan":
        """Return the plan whose tables lie in a folder of this name, as earlier versions named it.

        Rows and seeds were no part of a name; such a folder's tables are made again where they are.
        """
        earlier = replace(self, part="")
        return earlier if earlier.key == folder else self


def chosen_seeds(given: int | str | Sequence[int]) -> list[int]:
    """Return training seeds: ``3`` is how many (0, 1, 2); ``7,8,9`` and ``7,`` are which.

    Raises:
        UserError: Anything else: a seed twice, below 0, or no whole number.
    """
    listed: Sequence[Any] = given if isinstance(given, (list, tuple)) else str(given).split(",")
    texts = [str(v).strip() for v in listed]
    is_count = len(texts) == 1 and not isinstance(given, (list, tuple))
    if len(texts) > 1 and texts[-1] == "":
        texts.pop()
    allowed = "a count from 1, e.g. 3, or a list of seeds from 0, e.g. 7,8,9 or 7,"
    shown = ",".join(str(v) for v in listed)
    if not all(t.isascii() and t.isdecimal() and len(t) < 19 for t in texts):
        raise UserError(f"seeds={shown}; allowed: {allowed}")
    found = [int(t) for t in texts]
    if is_count:
        if not 1 <= found[0] <= MOST_SEEDS:
            raise UserError(f"seeds={shown}; allowed: at least 1 and at most {MOST_SEEDS}")
        return list(range(found[0]))
    if len(set(found)) < len(found):
        raise UserError(f"seeds={shown} names a seed twice; allowed: {allowed}")
    return found


def make_plan(
    described: Description,
    methods: Sequence[str] | None = None,
    operators: Sequence[str] | None = None,
    data: str | None = None,
    seeds: int | str | Sequence[int] | None = None,
    overrides: Sequence[str] = (),
    with_references: bool = True,
    worth: bool = False,
) -> Plan:
    """Compose every cell of a benchmark.

    Arguments:
        described: The benchmark.
        methods: Replaces its rows.
        operators: Replaces its problems.
        data: Replaces its data set.
        seeds: Replaces its training seeds; see :func:`chosen_seeds`.
        overrides: Further ``key=value`` of every cell.
        with_references: Whether the reference rows are added.
        worth: Whether rows are added that say what the others are worth in clean images.

    Raises:
        UserError: Any name or key that does not exist; nothing has been computed or written.
    """
    chosen = list(methods or described.methods)
    for name in operators or ():
        registry.read("operator", name)
    trained = chosen_seeds(described.seeds if seeds is None else seeds)
    before = described.before if with_references else ()
    after = described.after if with_references else ()
    ladder = worth_rows() if worth else {}
    after = (*(row for row in ladder if row not in after), *after)
    rows = [m for m in before if m not in chosen]
    rows += chosen + [m for m in after if m not in chosen]
    variants = {row: ladder.get(row) or described.variant(row) for row in rows}
    cases = [Case((f"operator={o}",)) for o in operators] if operators else described.cases
    shared = [f"data={described.data if data is None else data}", *described.overrides]
    _check_shared(overrides)
    made = []
    for case in cases:
        cells = {}
        for row, variant in variants.items():
            row_overrides = [f"method={variant.method}", *variant.overrides]
            first = compose(_later_wins([*shared, *case.overrides, *overrides, *row_overrides]))
            cells[row] = [{**first, "seed": seed} for seed in trained]
        made.append(_problem(cells, case.beside))
    references = tuple(dict.fromkeys([*described.before, *described.after, *ladder]))
    if ladder and (reason := _no_clean(made)):
        raise UserError(f"--worth compares with training on clean images; {reason}")
    about = "" if data or operators else described.about  # it speaks of what was replaced
    own = [*described.before, *described.methods, *described.after]
    is_whole = set(rows) == set(own) and trained == chosen_seeds(described.seeds)
    part = "" if is_whole else _short(json.dumps([sorted(rows), sorted(trained)]))
    return Plan(described.name, made, references, about, described.sweep, part, tuple(ladder))


def _no_clean(problems: Sequence[Problem]) -> str:
    """Return why there are no clean images; empty where there are."""
    config = next(iter(problems[0].cells.values()))[0]
    data = config["data"]
    return f"data={data['name']} has none" if "no_clean" in data.get("capabilities", ()) else ""


def _short(text: str) -> str:
    """Return the hash of a text, 8 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _check_shared(overrides: Sequence[str]) -> None:
    """Refuse what is not the same for every row, or has an option of its own."""
    given: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key in ("method", "seed") or key.startswith("method."):
            raise UserError(
                f"'{override}' would set one method for all rows; use --methods, --seeds, or "
                "`cleanprior train` for a single method"
            )
        if key in ("data", "operator"):
            raise UserError(f"'{override}': the bench takes it as --{key} {value}")
        if key in GROUPS and given.setdefault(key, value) != value:
            raise UserError(f"{key} is given twice: {given[key]}, {value}; give one")


def _later_wins(overrides: Sequence[str]) -> list[str]:
    """Keep the last choice of each group: a person's before a case's before a description's."""
    last = {o.partition("=")[0]: o for o in overrides}
    groups = {k: o for k, o in last.items() if k in GROUPS}
    return [*groups.values(), *(o for o in overrides if o.partition("=")[0] not in GROUPS)]


def _problem(cells: dict[str, list[Config]], beside: Beside | None) -> Problem:
    config = next(iter(cells.values()))[0]
    shared = {k: v for k, v in config.items() if k not in ("method", "seed")}
    shared["data"] = placeless(shared["data"])
    shared["training"] = {  # as tables of before there were such keys
        k: v for k, v in shared["training"].items() if v is not None or k not in LATER
    }
    for group in ("sampler", "posterior", "evaluation"):
        shared[group] = {k: v for k, v in shared[group].items() if k != "about"}
    shared["evaluation"] = with_metrics(shared["evaluation"])
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:8]
    data, operator = config["data"], config["operator"]
    if noise.KEY in config:  # it stands in the place of the operator's own
        operator = {k: v for k, v in operator.items() if k != "sigma"}
    values = [f"{k}={v}" for k, v in operator.items() if _is_shown(k, v)]
    extra = [f"{k}={v}" for k, v in data.items() if _is_shown(k, v) and k != "path"]
    if "own_files" in data.get("capabilities", ()) and data["path"] is not None:
        extra.insert(0, Path(data["path"]).name)
    true = [f"truth {k}={v}" for k, v in config.get("truth", {}).items()]
    if noise.KEY in config:
        true = [*noise.label(config[noise.KEY]), *true]
    title = f"{data['name']}{_bracket(extra)}, {operator['name']}{_bracket(values + true)}"
    usual = registry.read("operator", operator["name"])
    changed = [f"{k}={v}" for k, v in operator.items() if _is_shown(k, v) and usual.get(k) != v]
    label = " ".join([operator["name"], *changed, *true])
    if config["posterior"]["name"] != _usual("posterior"):
        label += f" · {config['posterior']['name']}"
    return Problem(title, label, f"{data['name']}-{operator['name']}-{digest}", cells, beside)


def _usual(group: str) -> str:
    """Return the configuration that a cell takes of a group unless told otherwise."""
    return default_groups()[group]


def _is_shown(key: str, value: Any) -> bool:
    hidden = key.startswith("_") or key in ("name", "about", "capabilities", "download")
    return not hidden and value is not None


def _bracket(values: list[str]) -> str:
    return f" ({', '.join(values)})" if values else ""


def refusal(config: Config) -> str | None:
    """Return why a cell cannot be trained, as far as that is known without torch."""
    found = capabilities.refused(config)
    return None if found is None else found.reason


def check_forced(plan: Plan, forced: Sequence[str]) -> None:
    """Raise a helpful error when a method to retrain is not a row of the plan."""
    rows = {m for p in plan.problems for m in p.cells}
    for name in forced:
        if name not in rows:
            raise unknown("row to force", name, rows)
