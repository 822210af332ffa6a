"""What a benchmark was asked for, kept beside its tables to make them again. No torch."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

from cleanprior.errors import UserError
from cleanprior.files import write_text
from cleanprior.outside import CARD, read_text

from . import description
from .places import REQUEST, all_tables
from .plan import Plan, check_forced, make_plan


@dataclass(frozen=True)
class Request:
    """The options of ``cleanprior bench``; None leaves an answer to the benchmark.

    Attributes:
        bench: Name of a benchmark's configuration.
        table: Name of a paper's table, in its place.
        scale: Of a paper's table: ``cpu``, ``gpu`` or ``paper``.
        methods: Its rows.
        operators: One table each.
        data: The data set.
        seeds: How many training seeds, or which; see
            :func:`cleanprior.benchmarks.plan.chosen_seeds`.
        overrides: ``key=value`` for every row.
        with_references: Whether the rows that anchor a table are added.
        worth: Whether rows are told as good as so many clean images, see :mod:`.worth`.
    """

    bench: str = "default"
    table: str | None = None
    scale: str = "cpu"
    methods: Sequence[str] | None = None
    operators: Sequence[str] | None = None
    data: str | None = None
    seeds: int | str | Sequence[int] | None = None
    overrides: Sequence[str] = ()
    with_references: bool = True
    worth: bool = False

    def plan(self, forced: Sequence[str] = ()) -> Plan:
        """Compose and check every cell.

        Arguments:
            forced: Rows that will be trained again.

        Raises:
            UserError: A name, key or value that does not exist.
        """
        check_forced(self._plan, forced)
        return self._plan

    @cached_property
    def _plan(self) -> Plan:
        if self.table is None:
            chosen = description.bench(self.bench)
        else:
            chosen = description.table(self.table, self.scale)
        return make_plan(
            chosen,
            self.methods,
            self.operators,
            self.data,
            self.seeds,
            self.overrides,
            self.with_references,
            self.worth,
        )

    def write(self, folder: Path) -> None:
        """Write the request beside its tables."""
        write_text(folder / REQUEST, json.dumps(asdict(self), indent=1))

    @classmethod
    def read(cls, folder: Path) -> "Request":
        """Read the request of a folder of tables.

        Raises:
            UserError: There is none, or it is damaged.
        """
        path = folder / REQUEST
        try:
            text = read_text(path, CARD)
        except ValueError as error:
            known = [str(found) for found in all_tables(Path("runs"))]
            there = f"; there are: {', '.join(known)}" if known else ""
            raise UserError(
                f"'{folder}' holds no {REQUEST}: give the folder that `cleanprior bench` printed "
                f"as that of its page{there}"
            ) from error
        try:
            given = json.loads(text)
            given = {"worth": False, **given}  # earlier versions had no such option
            if given.keys() != {f.name for f in fields(cls)}:
                raise KeyError("a key is missing")
            request = cls(**given)
            request.plan()
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise UserError(
                f"'{path}' is damaged; run `cleanprior bench` again, which trains nothing that is "
                "finished"
            ) from error
        return request


def names(argument: str, given: Sequence[str] | str | None) -> list[str] | None:
    """Return names, each once; a text may hold several with commas between. None stays None.

    Raises:
        UserError: There is no name in it.
    """
    if given is None:
        return None
    listed = given.split(",") if isinstance(given, str) else given
    found = list(dict.fromkeys(n.strip() for n in listed if n.strip()))
    if not found:
        raise UserError(f"{argument} '{given}' names nothing; leave it out, or give names")
    return found
