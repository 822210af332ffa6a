"""The notes under a table: first warnings, then how the numbers were measured."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cleanprior.cells.record import Record, is_finished
from cleanprior.cells.status import Status
from cleanprior.config.capabilities import WARNINGS

from ..plan import Problem
from . import statistics
from .columns import COLUMNS
from .numbers import significant, with_spread
from .summary import codes_of

#: Sentences of codes in records of version 0.1.0, which hold none.
CODES = {
    **WARNINGS,
    "rank": "some pixels are never supervised under this operator",
    "straw-man": "y was treated as a noisy image; the operator was not used",
    "ambient-o": "the operator is not modelled; added noise hides its corruption",
}
#: A mean of draws has more PSNR than a draw by nature.
POINTS = (
    "a draw is never ranked against a point: the mean of several draws, or a point estimate, has "
    "more PSNR than a draw of the same prior, and is smoother"
)

NO_BOLD = (
    "nothing is bold: it needs {needed} training seeds; intervals of all pairs in comparisons.csv"
)

Records = Mapping[str, list[Record]]


@dataclass(frozen=True)
class Notes:
    """The lines under a table.

    Attributes:
        careful: What a reader must know before believing a number.
        details: What was measured, and how.
    """

    careful: list[str]
    details: list[str]

    @property
    def lines(self) -> list[str]:
        """All of them, in their order."""
        return [*self.careful, *self.details]


def write_notes(problem: Problem, records: Records, references: Sequence[str]) -> Notes:
    """Return the notes of a problem.

    Arguments:
        problem: The problem.
        records: Its records by method, one a seed.
        references: Methods that are not ranked.
    """
    seeds = max(len(cells) for cells in problem.cells.values())
    done = [r for cells in records.values() for r in cells if is_finished(r)]
    found = done[0]["evaluation"] if done else {}
    careful = [*_unfinished(records), *_codes(records), *_seeds(records, references, seeds)]
    rows = [row for r in done for row in r["rows"]]
    has_points = any("psnr_point" in row["metrics"] for row in rows)
    careful += [POINTS] if has_points else []
    careful += _distances(found)
    careful += _upper_bounds(records)
    careful += _clean_starts(records)
    details = []
    if done:
        details = [*_protocol(done[0], rows), *_proximal(found), *_missing(records)]
        is_bold = seeds >= statistics.SEEDS_FOR_T
        told = NO_BOLD.format(needed=statistics.SEEDS_FOR_T)
        details.append(statistics.BOLD if is_bold else told)
    return Notes(list(dict.fromkeys(careful)), list(dict.fromkeys(details)))


def _unfinished(records: Records) -> Iterable[str]:
    for method, cells in records.items():
        yield from (f"{method}: {_flat(r['status'])}" for r in cells if Status.of(r).reason)


def _flat(text: str) -> str:
    """Return a text on one line; an exception's may have several."""
    return " ".join(text.split())


def _codes(records: Records) -> Iterable[str]:
    """Return each warning with the methods that it stands beside; sentences come from records."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for method, cells in records.items():
        for record in cells:
            told = codes_of(record)
            for row in record.get("rows") or ():
                told |= codes_of(record, row)
            for code, sentence in told.items():
                said = _flat(sentence) or CODES.get(code, "")
                found.setdefault((code, said), {})[method] = None
    for (code, sentence), methods in sorted(found.items()):
        meaning = sentence or "a warning of the method's own; its package says what it means"
        yield f"[{code}] {', '.join(methods)}: {meaning}"


def _seeds(records: Records, references: Sequence[str], n: int) -> Iterable[str]:
    if n > 1:  # of one seed the verdict speaks
        yield f"mean ± standard deviation over {n} training seeds"
    if needed := statistics.needed(dict(records), references):
        yield needed


def _with_std(found: Mapping[str, Any], key: str) -> str:
    value, spread = found[key], found.get(f"{key}_std")
    return significant(value) if spread is None else with_spread(value, spread, " ± ")


def _distances(found: Mapping[str, Any]) -> Iterable[str]:
    """Say what a Frechet distance is to be read against."""
    if "samples" not in found:
        return
    count = found["samples"]
    if "fd_exact" in found:
        yield (
            f"FD of a perfect sampler: {_with_std(found, 'fd_exact')} ({count:,} samples with "
            "exactly the right mean and covariance)"
        )
    sampling = found.get("sampling_seeds")
    if sampling is not None and len(sampling) > 1:
        yield (
            f"FD ±: standard deviation over {len(sampling)} sampling seeds, and over training "
            "seeds where there are several"
        )
    split = found.get("test_split") or {}
    if "fd" in split:
        size = found.get("test_split_samples", found.get("test_images", 0))
        text = f"FD of the held-out images: {significant(split['fd'])} with {size:,} of them"
        if "fd_exact_test" in found:
            text += f", where exact samples have {_with_std(found, 'fd_exact_test')}"
        if "fd_random_splits" in found:
            text += f" and random splits {_with_std(found, 'fd_random_splits')}"
        yield f"{text}; with fewer images an FD is larger by chance"
    elif "test_split_missing" in found:
        yield f"FD of the held-out images: {found['test_split_missing']}"
    elif "fd_train_test" in found:
        yield f"FD: the test split itself has {significant(found['fd_train_test'])}"


def _upper_bounds(records: Records) -> Iterable[str]:
    for method, cells in records.items():
        if any(r.get("clean_images") and r["clean_images"] == r.get("train_images") for r in cells):
            is_leaky = any("leak" in codes_of(r) for r in cells)
            what = "a leak, handed" if is_leaky else "upper bound, trained on"
            yield f"† {method}: {what} all clean images; not ranked"


def _clean_starts(records: Records) -> Iterable[str]:
    for method, cells in records.items():
        if any(isinstance(statistics.track_of(r), str) for r in cells):
            yield (
                f"‡ {method}: clean start, it began from a prior that has seen clean images (or of "
                "which nobody says); not ranked with rows that learned from measurements alone"
            )


def _protocol(record: Record, rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    found, training = record["evaluation"], record["config"]["training"]
    yield (
        f"measurements: the same bytes for every row (sha256 {record['measurements_sha256'][:12]})"
        f"; budget: {training['budget']:,} images seen by each denoiser"
    )
    draws = found.get("draws")
    text = f"restorations: {found['test_images']} held-out measurements"
    if draws:
        text += f"; PSNR draw: of one draw, PSNR point: of the mean of {draws} draws"
    yield (
        f"{text}; all rows use the same posterior sampler and noise, and a method's own procedure "
        "has a separate row"
    )
    if "features" in found:
        yield (
            f"FD: features {found['features']}; {found['samples']:,} samples against the "
            f"{found['reference']}"
        )
    elif not found.get("has_clean", True):
        yield "no clean images: no PSNR, SSIM or FD"
    if found.get("expected_consistency") is not None and any(
        "consistency" in row["metrics"] or "consistency_point" in row["metrics"] for row in rows
    ):
        yield (
            f"|y-Ax| of the true images: {significant(found['expected_consistency'])} (the noise); "
            "far below it, a restoration fits the noise; far above it, it contradicts y"
        )


def _proximal(found: Mapping[str, Any]) -> Iterable[str]:
    if "proximal_floor" in found:
        yield (
            f"proximal FD: features {found['proximal_features']}; training measurements among "
            f"themselves have {_with_std(found, 'proximal_floor')}, zeros "
            f"{significant(found['proximal_ceiling'])}"
        )


def _missing(records: Records) -> Iterable[str]:
    """Return why there is a dash: columns with one reason in a line, then methods."""
    headings = {column.key: column.heading for column in COLUMNS}
    columns: dict[str, dict[str, None]] = {}
    methods: dict[str, None] = {}
    for method, cells in records.items():
        for record in cells:
            uncounted = (record.get("costs") or {}).get("uncounted") or {}
            for network, reason in uncounted.items():
                methods[f"{method}: FLOP of {network} cannot be counted: {reason}"] = None
            for row in record.get("rows") or ():
                for kind, reason in row["missing"].items():
                    if kind in headings:
                        columns.setdefault(reason, {})[headings[kind]] = None
                    elif kind in ("restoration", "generation"):
                        methods[f"{method}: {reason}"] = None
    for reason, dashed in columns.items():
        yield f"{', '.join(dashed)}: {reason}"
    yield from methods
