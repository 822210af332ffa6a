"""What ``cleanprior list`` prints: what is installed, and what may be trained on what. No torch."""

from . import capabilities, registry
from .errors import unknown
from .terminal import Column, Screen

#: What can be listed, and the group of its configurations.
KINDS = {
    "methods": "method",
    "operators": "operator",
    "datasets": "data",
    "benches": "bench",
    "tables": "table",
    "backbones": "backbone",
}
HEADINGS = {"data": "data set"}


def show(what: str) -> None:
    """Print a list.

    Arguments:
        what: One of :data:`KINDS`.

    Raises:
        UserError: Anything else.
    """
    if what not in KINDS:
        raise unknown("list", what, KINDS)
    group, screen = KINDS[what], Screen()
    names = list(registry.methods() if group == "method" else registry.options(group))
    found = {name: registry.read(group, name) for name in names}
    columns = [
        Column(HEADINGS.get(group, group), names, is_text=True),
        Column("about", [_words(config.get("about")) for config in found.values()], is_text=True),
    ]
    if group == "operator":
        able = [", ".join(config.get("capabilities") or ()) for config in found.values()]
        columns.append(Column("capabilities", able, is_text=True))
    screen.table(columns)
    if group in ("method", "operator"):
        screen.say()
        _print_matrix(screen)


def _words(value: object) -> str:
    return "" if value is None else " ".join(str(value).split())


def _print_matrix(screen: Screen) -> None:
    """Print which method may be trained on which operator, in as many blocks as the width needs."""
    operators = {name: registry.read("operator", name) for name in registry.options("operator")}
    methods = {name: registry.read("method", name) for name in registry.methods()}
    codes: dict[str, None] = {}
    able: dict[str, list[str]] = {operator: [] for operator in operators}
    for name, config in methods.items():
        for operator, described in operators.items():
            code = capabilities.unmet(name, config, operator, described)[0]
            codes |= {code: None} if code else {}
            able[operator].append(code or "ok")
    first = [
        Column("method", list(methods), is_text=True),
        Column("clean images", [_words(m.get("clean_images", 0)) for m in methods.values()]),
    ]
    screen.note("May be trained with its default parameters on (ok), or may not (code, see below):")
    screen.blocks(first, [Column(o, cells, is_text=True) for o, cells in able.items()])
    screen.say()
    for code in codes:
        screen.note(f"{code}: {capabilities.rule(code)}")
