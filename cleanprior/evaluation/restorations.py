"""The judge of restorations: draws against draws, means and point estimates against each other."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..operators.likelihood import Likelihood
from ..seeding import generator_for
from .calibration import calibrate, open_pixels
from .marks import Leak, out_of_range
from .metrics.further import Metric, values_of
from .metrics.networks import Unavailable
from .metrics.perceptual import Lpips, refusal
from .metrics.restoration import (
    consistency,
    expected_consistency,
    psnr,
    psnr_minmax,
    ssim,
    ssim_refusal,
)
from .rows import Findings

#: What a restoration is compared by; ``_POINT`` follows the key of a mean or a point estimate.
FAMILY = ("psnr", "ssim", "lpips", "psnr_minmax", "consistency")
_POINT = "_point"
_SPREAD = ("spread_ratio", "coverage")


class RestorationJudge:
    """Compares restorations with their measurements and, where there is one, with the truth.

    Arguments:
        likelihood: The measurements with their operator.
        truth: Their clean images, or None.
        is_lpips: Whether LPIPS is computed.
        is_downloading: Whether absent weights may be fetched.
        seed: Evaluation seed.
        leak: The least error that a measurement allows, or None where it is not known.
        further: Metrics of plug-ins by name.
        images: What a restoration is as an image in [-1, 1], to be compared with the truth; it is
            compared with its measurement as it is.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        truth: Tensor | None,
        is_lpips: bool,
        is_downloading: bool,
        seed: int,
        leak: Leak | None = None,
        further: Mapping[str, Metric] | None = None,
        images: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        self.images = images
        self.further = further or {}
        self.likelihood, self.truth, self.leak = likelihood, truth, leak
        self.expected_consistency = expected_consistency(likelihood).mean().item()
        self.lpips: Lpips | None = None
        self.missing: dict[str, str] = {}
        if truth is None:
            return
        generator = generator_for(seed, "open-pixels")
        self.is_open = open_pixels(likelihood, generator)
        no_ssim = ssim_refusal(truth.shape[1:])
        if no_ssim is not None:
            self.missing["ssim"] = no_ssim
        reason = refusal(truth.shape[1:]) if is_lpips else "LPIPS is off: evaluation.lpips=false"
        if reason is None:
            try:
                self.lpips = Lpips.load(is_downloading)
            except Unavailable as error:
                reason = str(error)
        if reason is not None:
            self.missing["lpips"] = reason

    def __call__(self, x: Tensor, is_point: bool) -> Findings:
        """Judge the restorations of all measurements.

        Arguments:
            x: (k, n, c, h, w): k draws, or one point estimate.
            is_point: Whether it is a point estimate.
        """
        found = Findings()
        found.metrics["consistency_expected"] = self.expected_consistency
        broken = int((~torch.isfinite(x)).flatten(2).any(2).sum())
        if broken:
            reason = f"{broken} of {x.shape[0] * x.shape[1]} restorations are not finite"
            return Findings(missing={"restoration": reason})
        shown = self.images(x)
        if is_point:
            found.add(self._family(x[0], shown[0], _POINT))
            found.missing |= dict.fromkeys(
                ("psnr", "ssim", "consistency"), "a point estimate is no draw"
            )
            found.missing |= dict.fromkeys(_SPREAD, "a point estimate has no spread")
        else:
            found.add(self._family(x[0], shown[0], ""))
            if len(x) > 1:
                found.add(self._family(x.mean(0), shown.mean(0), _POINT))
            else:
                reason = "evaluation.draws=1: no mean of several draws"
                keys = (f"{k}{_POINT}" for k in ("psnr", "ssim", "consistency"))
                found.missing |= dict.fromkeys(keys, reason)
            found.add(self._calibration(shown))
        found.marked |= out_of_range(shown, "restorations")
        if self.leak is not None and self.truth is not None:
            found.marked |= self.leak.mark(x[0], self.truth)
            if not is_point:
                found.marked |= self.leak.mark(x.mean(0), self.truth)
        return found

    def _family(self, given: Tensor, x: Tensor, suffix: str) -> Findings:
        values: dict[str, Tensor] = {}
        missing = dict(self.missing)
        if self.truth is not None:
            values["psnr"] = psnr(x, self.truth)
            values["psnr_minmax"] = psnr_minmax(x, self.truth)
            if "ssim" not in self.missing:
                values["ssim"] = ssim(x, self.truth)
            if self.lpips is not None:
                values["lpips"] = self.lpips(x, self.truth)
            for name, metric in self.further.items():
                try:
                    values[name] = values_of(name, metric, x, self.truth)
                except ValueError as error:
                    missing[name] = str(error)
        values["consistency"] = consistency(given, self.likelihood)
        return Findings(
            metrics={f"{k}{suffix}": v.mean().item() for k, v in values.items()},
            per_image={
                f"{k}{suffix}": [round(a, 5) for a in v.tolist()] for k, v in values.items()
            },
            missing={f"{k}{suffix}": reason for k, reason in missing.items()},
        )

    def _calibration(self, x: Tensor) -> Findings:
        """Compare the spread of draws with their error, on what the measurements leave open."""
        if self.truth is None:
            return Findings(missing=dict.fromkeys(_SPREAD, "the spread needs clean images"))
        try:
            found = calibrate(x, self.truth, self.is_open)
        except ValueError as error:
            return Findings(missing=dict.fromkeys(_SPREAD, f"spread: {error}"))
        metrics = {
            "spread_ratio": found.spread_ratio,
            "spread_ratio_se": found.spread_ratio_se,
            "coverage": found.coverage,
            "rank_deviation": found.rank_deviation,
        }
        if found.images < 2:
            del metrics["spread_ratio_se"]
        return Findings(metrics, curves={"rank_histogram": found.ranks})
