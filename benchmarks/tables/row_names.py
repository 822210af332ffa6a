"""What a row is called: by its method, and by what it restores or samples where that is its own."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

#: A label of version 0.1.0; its first words are in the group.
_LABEL = re.compile(r"(?:none; )?(?:samples: )?(.*?)(?:: |; |$)")


def row_name(method: str, row: Mapping[Any, Any], is_own: bool) -> str:
    """Return the name of a row where the other rows are not shown.

    A row that restores or samples by the method's own procedure is called "method: procedure".
    """
    return f"{method}: {procedure(row)}" if is_own else method


def procedure(row: Mapping[Any, Any]) -> str:
    """Return by what a row of a record, or a line of a table, restores; else by what it samples.

    Records of version 0.1.0 have both in one label, ``mmps: one draw; samples: fixed mask``.
    """
    for key in ("procedure", "restores_by", "samples_by"):
        if isinstance(row.get(key), str) and row[key]:
            return str(row[key])
    found = _LABEL.match(str(row["way"]))
    return found[1] if found else ""


def _way(line: Mapping[str, Any]) -> str:
    return str(line["way"])


def names(summary: pd.DataFrame, references: Sequence[str]) -> list[str]:
    """Return the name of each row of a table, each once.

    † marks training on all clean images, ‡ a start that has seen clean images.
    """
    lines = [{str(k): v for k, v in line.items()} for line in summary.to_dict("records")]
    found = [
        row_name(str(n["method"]), n, n["is_own"] and n["method"] not in references) for n in lines
    ]
    for naming in (procedure, _way):  # from fewer words to more, where two rows have one name
        shared = {name for name in found if found.count(name) > 1}
        first = {name: found.index(name) for name in shared}
        found = [
            f"{line['method']}: {naming(line)}"
            if name in shared and (i != first[name] or ":" in name)
            else name
            for i, (name, line) in enumerate(zip(found, lines, strict=True))
        ]
    whole = [bool(n["clean_images"]) and n["clean_images"] == n["train_images"] for n in lines]
    begun = [isinstance(n.get("clean_start"), str) for n in lines]
    marks = [
        "†" * is_whole + "‡" * is_begun for is_whole, is_begun in zip(whole, begun, strict=True)
    ]
    return [f"{name} {mark}" if mark else name for name, mark in zip(found, marks, strict=True)]
