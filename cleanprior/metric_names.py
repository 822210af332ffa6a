"""What each metric of a record is, by its key. No torch."""

from collections.abc import Iterable
from functools import cache

from .config import registry

#: Metrics of one draw that a mean of several draws, or a point estimate, has too.
_RESTORATION = {
    "psnr": "dB, images clipped to [-1, 1], peak-to-peak 2, mean over images; higher is better",
    "psnr_minmax": "dB after a contrast stretch of each image, as EMDiffusion prints; that paper's "
    "tables only",
    "ssim": "structural similarity, 11x11 Gaussian window, data range 2; higher is better",
    "lpips": "AlexNet, version 0.1; lower is better",
    "consistency": "root mean square of y - A x per observed number, units of x",
}
METRICS = {
    **{k: f"{text}; of one draw from p(x|y)" for k, text in _RESTORATION.items()},
    **{
        f"{k}_point": f"{text}; of the mean of several draws, or of a point estimate"
        for k, text in _RESTORATION.items()
    },
    "consistency_expected": "the consistency of the truth: the noise; far below it, the noise is "
    "fitted",
    "spread_ratio": "spread of posterior draws over their error, corrected for their number; 1 "
    "is calibrated, below 1 too sure",
    "spread_ratio_se": "its standard error over images",
    "coverage": "share of hidden pixels within their 90 % interval",
    "rank_deviation": "distance of the rank histogram from flat, 0 to 1",
    "fd": "Frechet distance of samples to the clean training split, mean over sampling seeds; "
    "lower is better",
    "fd_std": "its standard deviation over sampling seeds",
    "fd_inf": "the Frechet distance extrapolated to infinitely many samples; lower is better",
    "kid": "kernel distance of samples to the clean training split, unbiased; lower is better",
    "kid_se": "its standard error",
    "precision": "share of samples within the manifold of clean training images; first sampling "
    "seed",
    "recall": "share of clean training images within the manifold of samples; first sampling seed",
    "inception_score": "Inception score of a classifier; higher is better; first sampling seed",
    "inception_score_std": "its standard deviation over splits",
    "proximal_fd": "Frechet distance of samples, corrupted again, to the training measurements, "
    "mean over sampling seeds",
    "proximal_fd_std": "its standard deviation over sampling seeds",
    "memorised": "share of samples nearer to a training image than all but 0.1 % of held-out "
    "images are; first sampling seed",
    "memorised_ratio": "share of samples three times nearer (pixels) to one training image than to "
    "the next; first sampling seed",
}
#: Metrics that exist once for each of several features: ``fd_efficientnet``.
PER_FEATURES = (
    "fd",
    "fd_std",
    "fd_inf",
    "kid",
    "kid_se",
    "precision",
    "recall",
    "inception_score",
    "inception_score_std",
)


@cache
def further() -> dict[str, str]:
    """Return what the metrics of plug-ins are, by key: of one draw, and of a mean or a point."""
    found = {}
    for name, card in registry.readable("metric").items():
        about = " ".join(str(card.get("about") or name).split())
        found[name] = f"{about}; of one draw from p(x|y)"
        found[f"{name}_point"] = f"{about}; of the mean of several draws, or of a point estimate"
    return found


def is_built_in(key: str) -> bool:
    """Whether a key names a metric of this package."""
    return key in METRICS or key.startswith(tuple(f"{name}_" for name in PER_FEATURES))


def is_metric(key: str) -> bool:
    """Whether a key names a metric, a plug-in's too."""
    return is_built_in(key) or key in further()


def in_order(keys: Iterable[str]) -> list[str]:
    """Return those keys that name a metric, as :data:`METRICS` orders them, then by features.

    A plug-in's come last.
    """
    names = [*METRICS, *further()]
    places = {}
    for key in filter(is_metric, keys):
        own = [name for name in names if key == name or key.startswith(f"{name}_")]
        places[key] = (names.index(max(own, key=len)), key)
    return sorted(places, key=places.__getitem__)


def describe(key: str) -> str:
    """Return what a metric is.

    Arguments:
        key: A key of a row's ``metrics``. ``NAME_FEATURES`` is ``NAME`` on other features than the
            first; an Inception score always names its classifier, ``inception_score_classifier``.

    Raises:
        KeyError: No such metric.
    """
    if key in METRICS or key in further():
        return (METRICS | further())[key]
    for name in sorted(PER_FEATURES, key=len, reverse=True):
        if key.startswith(f"{name}_"):
            return f"{METRICS[name]} ({key[len(name) + 1 :]})"
    raise KeyError(key)
