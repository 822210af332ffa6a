"""What ``cleanprior list`` prints: what is installed, and what may be trained on what. No torch."""

from typing import Any

from .. import metric_names
from ..config import capabilities, registry
from ..config.soundness import code_fault
from ..errors import UserError, unknown
from ..terminal import Column, Screen, wrap

#: What can be listed, and the group of its configurations.
KINDS = {
    "methods": "method",
    "operators": "operator",
    "datasets": "data",
    "noises": "noise",
    "posteriors": "posterior",
    "samplers": "sampler",
    "evaluations": "evaluation",
    "backbones": "backbone",
    "launchers": "launcher",
    "benches": "bench",
    "tables": "table",
}
#: What a record holds; no configurations.
METRICS = "metrics"
HEADINGS = {"data": "data set"}


def show(what: str) -> None:
    """Print a list.

    Arguments:
        what: One of :data:`KINDS`, or :data:`METRICS`.

    Raises:
        UserError: Anything else.
    """
    screen = Screen()
    if what == METRICS:
        held = metric_names.METRICS | {
            name: f"cannot be used: {card}" if isinstance(card, str) else _words(card.get("about"))
            for name, card in usable("metric").items()
        }
        about, names = list(held.values()), list(held)
        columns = [Column("metric", names, is_text=True), Column("about", about, is_text=True)]
        screen.table(columns)
        _print_remarks(screen)
        return
    if what not in KINDS:
        raise unknown("list", what, (*KINDS, METRICS))
    group = KINDS[what]
    found = usable(group)
    about = [
        f"cannot be used: {config}" if isinstance(config, str) else _words(config.get("about"))
        for config in found.values()
    ]
    columns = [
        Column(HEADINGS.get(group, group), list(found), is_text=True),
        Column("about", about, is_text=True),
    ]
    if group in ("operator", "noise"):
        able = [
            "" if isinstance(config, str) else ", ".join(config.get("capabilities") or ())
            for config in found.values()
        ]
        columns.append(Column("capabilities", able, is_text=True))
    screen.table(columns)
    if group in ("method", "operator"):
        screen.say()
        methods, operators = found, found
        if group == "operator":
            methods = usable("method")
        else:
            operators = usable("operator")
        _print_matrix(screen, _sound(methods), _sound(operators))
    _print_remarks(screen)


def _print_remarks(screen: Screen) -> None:
    if remarks := registry.remarks():
        screen.say()
        for remark in remarks:
            _note(screen, f"careful: {remark}")


def usable(group: str) -> dict[str, dict[str, Any] | str]:
    """Return the configurations of a group by name, or in one's place why it cannot be used."""
    found: dict[str, dict[str, Any] | str] = {}
    for name in registry.methods() if group == "method" else registry.options(group):
        try:
            card = registry.read(group, name)
        except UserError as error:
            found[name] = str(error)
            continue
        package = registry.package_of(group, name)
        target = card.get("_target_")
        reason = None
        if package != registry.OWN and isinstance(target, str):
            reason = code_fault(target)
        found[name] = card if reason is None else f"{reason} (package {package})"
    return found


def _sound(found: dict[str, dict[str, Any] | str]) -> dict[str, dict[str, Any]]:
    return {name: card for name, card in found.items() if not isinstance(card, str)}


def _words(value: object) -> str:
    return "" if value is None else " ".join(str(value).split())


def _note(screen: Screen, text: str) -> None:
    """Print a sentence: in one piece only where nobody said how wide the output is."""
    if screen.is_assumed:
        screen.say(text)
    else:
        screen.say("\n".join(wrap(text, screen.width, "  ")))


def _print_matrix(
    screen: Screen, methods: dict[str, dict[str, Any]], operators: dict[str, dict[str, Any]]
) -> None:
    """Print which method may be trained on which operator, in as many blocks as the width needs."""
    codes: dict[str, None] = {}
    able: dict[str, list[str]] = {operator: [] for operator in operators}
    for name, config in methods.items():
        for operator, described in operators.items():
            facts = capabilities.ProblemFacts.of({**described, "name": operator})
            found = capabilities.refusal({**config, "name": name}, facts)
            codes |= {found.code: None} if found else {}
            able[operator].append(found.code if found else "ok")
    first = [
        Column("method", list(methods), is_text=True),
        Column("clean images", [_words(m.get("clean_images", 0)) for m in methods.values()]),
    ]
    _note(screen, "May be trained with its default parameters on (ok), or may not (code, below):")
    screen.blocks(first, [Column(o, cells, is_text=True) for o, cells in able.items()])
    screen.say()
    for code in codes:
        _note(screen, f"{code}: {capabilities.rule(code)}")
