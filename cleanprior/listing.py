"""What ``cleanprior list`` prints: what is installed, and what may be trained on what. No torch."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import capabilities, registry
from .errors import unknown

#: What can be listed, and the group of its configurations.
KINDS = {
    "methods": "method",
    "operators": "operator",
    "datasets": "data",
    "benches": "bench",
    "tables": "table",
    "backbones": "backbone",
}


def show(what: str) -> None:
    """Print a list.

    Arguments:
        what: One of :data:`KINDS`.

    Raises:
        UserError: Anything else.
    """
    if what not in KINDS:
        raise unknown("list", what, KINDS)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    if what in ("methods", "operators"):
        if what == "operators":
            console.print(_operators())
        _print_matrix(console, has_about=what == "methods")
        return
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("data set" if what == "datasets" else KINDS[what])
    table.add_column("about")
    for name in registry.options(KINDS[what]):
        table.add_row(escape(name), escape(registry.read(KINDS[what], name).get("about", "")))
    console.print(table)


def _operators() -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("operator", "about", "capabilities"):
        table.add_column(heading)
    for name in registry.options("operator"):
        config = registry.read("operator", name)
        able = ", ".join(config.get("capabilities", []))
        table.add_row(escape(name), escape(config.get("about", "")), able)
    return table


def _print_matrix(console: Console, has_about: bool) -> None:
    """Print which method may be trained on which operator with its default parameters."""
    operators = {name: registry.read("operator", name) for name in registry.options("operator")}
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    if has_about:
        table.add_column("about", min_width=30)
    table.add_column("clean images", justify="right")
    for operator in operators:
        table.add_column(operator)
    codes: dict[str, None] = {}
    for name in registry.methods():
        config = registry.read("method", name)
        found = [capabilities.unmet(name, config, o, d)[0] for o, d in operators.items()]
        codes |= dict.fromkeys(code for code in found if code)
        about = [escape(config.get("about", ""))] if has_about else []
        clean = str(config.get("clean_images", 0))
        table.add_row(escape(name), *about, clean, *(code or "ok" for code in found))
    console.print(table)
    console.print("ok: may be trained on the operator with its default parameters. Otherwise:")
    for code in codes:
        console.print(f"  {code}: {capabilities.rule(code)}", soft_wrap=True, highlight=False)
