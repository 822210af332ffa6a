"""What each metric of a record is, by its key. No torch."""

from collections.abc import Iterable

METRICS = {
    "psnr": "dB, images clipped to [-1, 1], peak-to-peak 2, mean over images; higher is better",
    "psnr_minmax": "dB after a contrast stretch of each image, as EMDiffusion prints; that paper's "
    "tables only",
    "ssim": "structural similarity, 11x11 Gaussian window, data range 2; higher is better",
    "lpips": "AlexNet, version 0.1; lower is better",
    "consistency": "root mean square of y - A x per observed number, units of x",
    "consistency_expected": "the same of the truth: the noise; far below it, the noise is fitted",
    "fd": "Frechet distance of samples to the clean training split; lower is better",
    "kid": "kernel distance of samples to the clean training split, unbiased; lower is better",
    "kid_subset_std": "its standard deviation over subsets",
    "precision": "share of samples within the manifold of clean training images",
    "recall": "share of clean training images within the manifold of samples",
    "inception_score": "Inception score of a classifier; higher is better",
    "inception_score_std": "its standard deviation over splits",
    "proximal_fd": "Frechet distance of samples, corrupted again, to the training measurements",
    "memorised": "share of samples nearer to a training image than all but 0.1 % of held-out "
    "images are",
    "memorised_ratio": "share of samples three times nearer (pixels) to one training image than to "
    "the next",
    "spread_ratio": "spread of posterior samples over their error, corrected for their number; 1 "
    "is calibrated, below 1 too sure",
    "spread_ratio_se": "its standard error over images",
    "coverage": "share of hidden pixels within their 90 % interval",
    "rank_deviation": "distance of the rank histogram from flat, 0 to 1",
    "psnr_mean": "PSNR of the mean of the posterior samples, on the images of the calibration",
    "psnr_mean_gain": "by how much it exceeds the PSNR of one sample of the same images",
}
#: Metrics that exist once for each of several features: ``fd_efficientnet``.
PER_FEATURES = (
    "fd",
    "kid",
    "kid_subset_std",
    "precision",
    "recall",
    "inception_score",
    "inception_score_std",
)


def is_metric(key: str) -> bool:
    """Whether a key names a metric."""
    return key in METRICS or key.startswith(tuple(f"{name}_" for name in PER_FEATURES))


def in_order(keys: Iterable[str]) -> list[str]:
    """Return those keys that name a metric, as :data:`METRICS` orders them, then by features."""
    names = list(METRICS)
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
    if key in METRICS:
        return METRICS[key]
    for name in sorted(PER_FEATURES, key=len, reverse=True):
        if key.startswith(f"{name}_"):
            return f"{METRICS[name]} ({key[len(name) + 1 :]})"
    raise KeyError(key)
