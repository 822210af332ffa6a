"""How often a comparison errs: simulated tables whose truth is known. No torch.

``python -m cleanprior.benchmarks.null`` prints false positives and power of the shipped procedure
beside those that were considered, for one, three and five training seeds.

A table is PSNR of ``rows`` methods, ``seeds`` training runs and ``images`` test images: a shift of
each method, a normal one of each run, and two of each image, for a method (in all its runs) and for
a run, both of Student's law with 5 degrees of freedom. Their sizes are those of digits with half of
the pixels missing: two runs of a method differ by 0.67 dB in an image (excess kurtosis 4), two
methods by 1.4 to 2.
"""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np
from scipy.special import stdtr

from .tables.difference import (
    LEVEL,
    SEEDS_FOR_T,
    Array,
    Noise,
    between,
    holm,
    moderate,
    of_images,
    p_values,
)

#: Standard deviations in dB, of one image.
OF_METHOD, OF_RUN = 0.9, 0.5
IMAGES = 360
#: Standard deviations between training runs in dB; the last is as unequal as rows are found to be.
SPREADS: dict[str, tuple[float, ...]] = {
    "0": (0,),
    ".1": (0.1,),
    ".3": (0.3,),
    ".03 or .3": (0.03, 0.3),
}
POWER = (0.1, 0.3, 0.5)

Procedure = Callable[[Array, Array, Array], Array]


def tables(
    generator: np.random.Generator,
    tries: int,
    rows: int,
    seeds: int,
    spread: Sequence[float],
    images: int = IMAGES,
    lead: float = 0.0,
) -> Array:
    """Draw tables, (tries, rows, seeds, images).

    Arguments:
        generator: Source of randomness.
        tries: Tables.
        rows: Methods.
        seeds: Training runs of each.
        spread: Standard deviation between runs, repeated over rows.
        images: Test images; their noise is scaled to that of :data:`IMAGES`.
        lead: By how much the first method is better.
    """
    scale = np.sqrt(images / IMAGES * 3 / 5)  # the variance of Student's law is 5 / 3
    x = generator.standard_t(5, (tries, rows, seeds, images)) * (OF_RUN * scale)
    x += generator.standard_t(5, (tries, rows, 1, images)) * (OF_METHOD * scale)
    x += generator.normal(size=(tries, rows, seeds, 1)) * np.resize(spread, (rows, 1, 1))
    x[:, 0] += lead
    return x


def shipped(x: Array, a: Array, b: Array) -> Array:
    """Return p-values of pairs as the package computes them, (tries, pairs)."""
    runs, seeds = x.mean(3), x.shape[2]
    freedom = np.full(x.shape[1], seeds - 1.0)
    total, welch = between(*moderate(runs.var(2, ddof=1), freedom), freedom + 1, a, b)
    noise = Noise(total, welch, of_images(x.mean(2), a, b), x.shape[3] - 1.0)
    return p_values(_mean(x, a, b), noise)


def _mean(x: Array, a: Array, b: Array) -> Array:
    mean = x.mean((2, 3))
    return mean[:, a] - mean[:, b]


def _t(difference: Array, *parts: tuple[Array, float]) -> Array:
    """Return p-values of a single t, its degrees of freedom from Satterthwaite."""
    total = sum(v for v, _ in parts)
    freedom = total**2 / sum(v**2 / f for v, f in parts)
    return 2 * stdtr(freedom, -np.abs(difference) / np.sqrt(total))


def images_alone(x: Array, a: Array, b: Array) -> Array:
    """Take the trained networks for the methods: what one seed can do."""
    return _t(_mean(x, a, b), (of_images(x.mean(2), a, b), x.shape[3] - 1))


def pigeonhole(x: Array, a: Array, b: Array, resamples: int = 1000) -> Array:
    """Resample runs and images independently (Owen, 2007, arXiv:0706.4349), runs paired."""
    generator = np.random.default_rng(0)
    seeds, images = x.shape[2:]
    of_runs = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    of_each = generator.multinomial(images, np.full(images, 1 / images), resamples) / images
    p = []
    for table in x:
        means = np.einsum("rsk,ks->rk", table @ of_each.T, of_runs)
        difference = means[a] - means[b]
        tail = np.minimum((difference <= 0).sum(1), (difference >= 0).sum(1))
        p.append(np.minimum(1, 2 * (1 + tail) / (1 + resamples)))
    return np.array(p)


def paired_t(x: Array, a: Array, b: Array) -> Array:
    """Pair runs by the number of their seed; images are taken for fixed."""
    runs, seeds = x.mean(3), x.shape[2]
    return _t(_mean(x, a, b), ((runs[:, a] - runs[:, b]).var(2, ddof=1) / seeds, seeds - 1))


def _of_runs(x: Array, a: Array, b: Array) -> list[tuple[Array, float]]:
    variance, seeds = x.mean(3).var(2, ddof=1), x.shape[2]
    return [(variance[:, a] / seeds, seeds - 1), (variance[:, b] / seeds, seeds - 1)]


def welch_t(x: Array, a: Array, b: Array) -> Array:
    """Take runs for independent; images are taken for fixed."""
    return _t(_mean(x, a, b), *_of_runs(x, a, b))


def crossed_t(x: Array, a: Array, b: Array) -> Array:
    """Add the variances of runs and images, and take Satterthwaite's t of the sum."""
    of_each = (of_images(x.mean(2), a, b), x.shape[3] - 1.0)
    return _t(_mean(x, a, b), *_of_runs(x, a, b), of_each)


#: Those that were considered; with one seed only the first two exist.
PROCEDURES: dict[str, Procedure] = {
    "images alone": images_alone,
    "pigeonhole bootstrap": pigeonhole,
    "paired t of runs": paired_t,
    "Welch t of runs": welch_t,
    "crossed, one t": crossed_t,
    "shipped": shipped,
}


def errors(procedure: Procedure, x: Array) -> tuple[float, float]:
    """Return the share of tables of equal methods in which the procedure errs.

    Arguments:
        procedure: P-values of pairs.
        x: (tables, rows, seeds, images).

    Returns:
        With a pair called different, after Holm; with a row called best, in bold.
    """
    rows = x.shape[1]
    a, b = np.array(list(combinations(range(rows), 2))).T
    p, difference = procedure(x, a, b), _mean(x, a, b)
    wins = np.zeros((len(x), rows), int)
    for k, (i, j) in enumerate(zip(a, b, strict=True)):
        wins[:, i] += (p[:, k] < LEVEL) & (difference[:, k] > 0)
        wins[:, j] += (p[:, k] < LEVEL) & (difference[:, k] < 0)
    pairs = np.mean([min(holm(list(values))) < LEVEL for values in p])
    return float(pairs), float((wins == rows - 1).any(1).mean())


def power(procedure: Procedure, x: Array) -> tuple[float, float]:
    """Return how often a lead of the first row is found: of each pair after Holm, and by bold."""
    rows = x.shape[1]
    a, b = np.array(list(combinations(range(rows), 2))).T
    p = procedure(x, a, b)
    is_found = np.array([holm(list(values)) for values in p]) < LEVEL
    return float(is_found[:, : rows - 1].mean()), float((p[:, : rows - 1] < LEVEL).all(1).mean())


def main(tries: int = 2000, images: int = 100) -> None:
    """Print rates in percent: false positives by the spread of runs, power by the lead.

    Each cell is *pairs / bold*: a pair called different after Holm's correction (for a lead: of
    each pair with the leader), and a row called best. Power is at a spread of 0.1 dB.
    """
    false = [f"sd {name}" for name in SPREADS]
    found = [f"{lead} dB" for lead in POWER]
    print("| rows | seeds | procedure | " + " | ".join([*false, *found]) + " |")
    print("|--:|--:|:--|" + "--:|" * (len(false) + len(found)))
    for rows in (2, 15):
        for seeds in (1, 3, 5):
            names = [n for n in PROCEDURES if seeds >= SEEDS_FOR_T or n in list(PROCEDURES)[:2]]
            if seeds < SEEDS_FOR_T:
                blank = "- | " * (len(false) + len(found))
                print(f"| {rows} | {seeds} | shipped: no p-value, no bold | {blank.strip()}")
            for name in names:
                n = tries // (1 if rows == 2 else 4) // (5 if name.startswith("pigeon") else 1)
                cells = []
                for spread in SPREADS.values():
                    x = tables(np.random.default_rng(1), n, rows, seeds, spread, images)
                    cells.append(errors(PROCEDURES[name], x))
                for lead in POWER:
                    x = tables(np.random.default_rng(2), n, rows, seeds, [0.1], images, lead)
                    cells.append(power(PROCEDURES[name], x))
                texts = [f"{100 * p:.0f} / {100 * bold:.0f}" for p, bold in cells]
                print(f"| {rows} | {seeds} | {name} | " + " | ".join(texts) + " |", flush=True)


if __name__ == "__main__":
    main()
