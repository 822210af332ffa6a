"""``README.md`` in a prior's folder: where the prior comes from, as the Hub shows it. No torch.

What a prior says of its origin may be a stranger's: every value stands on one line, shortened, and
with what Markdown or HTML would read as its own escaped.
"""

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

#: Characters of a value that are shown.
SHOWN = 200
#: What the Hub calls a licence that nobody has chosen yet.
UNKNOWN = "unknown"
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$>-])")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.\-]{0,60}")
#: Metrics that are the spread of another.
_SPREADS = re.compile(r"(proximal_)?fd_std(_|$)")


def shown(value: Any) -> str:
    """Return any value as text on one line that is nothing but text in Markdown."""
    text = " ".join(str(value).split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    text = text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."
    return _MARKDOWN.sub(r"\\\1", html.escape(text, quote=False))


def measured(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what a prior's card keeps of the rows of its record.

    Returns:
        Of each row ``way`` and ``metrics``: by name ``[value, spread, of what]``. The spread is a
        standard deviation over test images or over sampling seeds, or None where neither is known.
    """
    return [{"way": row["way"], "metrics": _metrics(row)} for row in rows]


def _metrics(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for name, value in row["metrics"].items():
        if _SPREADS.match(name) or not _is_finite(value):
            continue
        each = [v for v in row.get("per_image", {}).get(name, ()) if _is_finite(v)]
        seeds = row.get("curves", {}).get(f"{name}_by_seed", ())
        if len(each) > 1:
            found[name] = [float(value), _deviation(each), f"{len(each)} images"]
        elif len(seeds) > 1:
            found[name] = [float(value), _deviation(seeds), f"{len(seeds)} sampling seeds"]
        else:
            found[name] = [float(value), None, ""]
    return found


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def licence_of(about: Mapping[str, Any]) -> str:
    """Return the licence that a prior's origin names, in the Hub's spelling, or ``unknown``."""
    given = about.get("license")
    is_one = isinstance(given, str) and _LICENCE.fullmatch(given) is not None
    return str(given) if is_one else UNKNOWN


def model_card(
    about: Mapping[str, Any], image_shape: Sequence[int], sigma_data: float, version: str
) -> str:
    """Return the text of ``README.md`` for a prior.

    Arguments:
        about: What the prior says of its origin; any of it may be missing.
        image_shape: (channels, height, width).
        sigma_data: Of the preconditioning.
        version: Of this package.
    """
    config = _mapping(about.get("config"))
    front = {
        "license": licence_of(about),
        "library_name": "cleanprior",
        "pipeline_tag": "unconditional-image-generation",
        "tags": ["cleanprior", "diffusers", "deepinv", "inverse-problems", "diffusion-prior"],
    }
    method = about.get("method", "that nobody has named")
    size = " x ".join(map(str, image_shape))
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# A generative prior of {size} images",
        f"A denoiser in a folder, trained by cleanprior with the method {shown(method)}. Its "
        "images lie in [-1, 1].",
        _table(_facts(about, config, sigma_data, version)),
        *_results(about),
        _USE,
    ]
    if front["license"] == UNKNOWN:
        parts.append("Licence: nobody has said yet. Write it in `license`, on top of this file.")
    return "\n\n".join(parts) + "\n"


_USE = """## Use

```python
import cleanprior as cp

prior = cp.load("this folder, or its name on the Hub")
x = prior.sample(4)
x = prior.restore(measurements, operator).x
denoiser = prior.deepinv(range=(0, 1))  # for deepinv

import cleanprior.diffusers

pipe = cleanprior.diffusers.load("this folder, or its name on the Hub")  # for diffusers
```"""


def _facts(
    about: Mapping[str, Any], config: Mapping[str, Any], sigma_data: float, version: str
) -> list[tuple[str, Any]]:
    """Return what is known of a prior's origin, by what it is."""
    operator, method = _mapping(config.get("operator")), _mapping(config.get("method"))
    training, data = _mapping(config.get("training")), _mapping(config.get("data"))
    start, costs = _mapping(about.get("start")), _mapping(about.get("costs"))
    keys = {k: v for k, v in operator.items() if isinstance(v, int | float) and k != "capabilities"}
    found = [
        ("data", about.get("data", data.get("name"))),
        ("operator", about.get("operator", operator.get("name"))),
        ("its values", ", ".join(f"{k}={v:g}" for k, v in keys.items()) or None),
        ("measurements, sha256", about.get("measurements_sha256")),
        ("method", about.get("method", method.get("name"))),
        ("clean images used", about.get("clean_images", method.get("clean_images"))),
        ("begun from", start.get("said")),
        ("images seen in training", costs.get("images", training.get("budget"))),
        ("seconds of training", _rounded(costs.get("seconds"))),
        ("training seed", about.get("seed")),
        ("sigma of the data", sigma_data),
        ("cleanprior", version),
    ]
    return [(name, value) for name, value in found if value is not None]


def _rounded(value: Any) -> Any:
    return round(float(value)) if _is_finite(value) else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _table(facts: Sequence[tuple[str, Any]]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {k} | {shown(v)} |" for k, v in facts)])


def _results(about: Mapping[str, Any]) -> list[str]:
    """Return the part with metrics; nothing where none are known, or they are not as ours."""
    rows = about.get("metrics")
    lines = []
    for row in rows if isinstance(rows, list) else ():
        for name, told in _mapping(_mapping(row).get("metrics")).items():
            if not isinstance(told, list) or len(told) != 3 or not _is_finite(told[0]):
                continue
            spread = f"± {told[1]:.3g} over {shown(told[2])}" if _is_finite(told[1]) else ""
            way = shown(_mapping(row).get("way", ""))
            lines.append(f"| {shown(name)} | {told[0]:.4g} | {spread} | {way} |")
    if not lines:
        return []
    head = ["| metric | value | spread | by |", "| --- | --- | --- | --- |"]
    return ["## Measured on held-out images", "\n".join([*head, *lines])]


__all__ = ["licence_of", "measured", "model_card", "shown"]
