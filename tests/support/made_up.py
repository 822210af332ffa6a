"""Records of a benchmark that nobody trained: what evaluation writes, with made-up numbers."""

from pathlib import Path
from typing import Any

from cleanprior.benchmarks import description, plan
from cleanprior.benchmarks.tables import notes, printing
from cleanprior.benchmarks.tables.display import display, marks
from cleanprior.benchmarks.tables.summary import summarise, tidy

from cleanprior.terminal import Screen

WARNING = "samples leave the range of the data: 12.0 % of their values lie beyond twice [-1, 1]"
#: method, way, is own, clean images, warning of the method, marks, metrics
ROWS: tuple[tuple[str, str, bool, int, str, dict[str, str], dict[str, float]], ...] = (
    ("observations", "A^+ y: point estimate", True, 0, "", {}, {"psnr_point": 10.55}),
    ("naive", "mmps: one draw, mean of 8", False, 0, "", {}, {"psnr": 16.13, "fd": 77.24}),
    (
        "ambient",
        "mmps: one draw, mean of 8",
        False,
        0,
        "shift",
        {"range": WARNING},
        {"psnr": 18.24},
    ),
    (
        "ambient",
        "one step: point estimate; samples: fixed mask",
        True,
        0,
        "",
        {},
        {"psnr_point": 18.87, "fd": 114.6},
    ),
    ("em", "mmps: one draw, mean of 8", False, 50, "floor", {}, {"psnr": 17.73, "fd": 64.2}),
    ("flowdiff", "mmps: one draw, mean of 8", False, 0, "floor", {}, {"psnr": 17.77, "fd": 90.5}),
    ("flowdiff", "flow: one draw, mean of 8", True, 0, "floor", {}, {"psnr": 16.89}),
    ("oracle", "mmps: one draw, mean of 8", False, 1437, "", {}, {"psnr": 19.16, "fd": 20.02}),
)
EVALUATION: dict[str, Any] = {
    "has_clean": True,
    "samples": 2048,
    "sampling_seeds": [0, 1, 2],
    "fd_exact": 3.41,
    "fd_exact_std": 0.28,
    "test_split": {"fd": 43.7},
    "test_split_samples": 360,
    "fd_exact_test": 20.7,
    "fd_exact_test_std": 4.4,
    "fd_random_splits": 24.4,
    "fd_random_splits_std": 4.9,
    "draws": 8,
    "test_images": 360,
    "features": "64 of a small classifier",
    "reference": "train split, 1437 images",
    "expected_consistency": 0.0,
    "proximal_features": "pixels",
    "proximal_floor": 0.00412,
    "proximal_floor_std": 0.0003,
    "proximal_ceiling": 12.3,
}


def metrics(given: dict[str, float], shift: float) -> dict[str, float]:
    """Return a row's metrics from those that tell rows apart."""
    found = {key: value + shift for key, value in given.items()}
    if "psnr" in given:
        found |= {
            "psnr_point": found["psnr"] + 1.6,
            "ssim": 0.611,
            "ssim_point": 0.664,
            "consistency": 0.0312,
            "consistency_point": 0.0271,
            "spread_ratio": 0.97,
        }
    if "psnr_point" in given:
        found |= {"ssim_point": 0.352, "consistency_point": 1.2e-8}
    if "fd" in given:
        found |= {
            "fd_std": 0.83,
            "fd_inf": found["fd"] - 4,
            "kid": 0.0123,
            "kid_se": 0.0011,
            "proximal_fd": 0.00534,
            "proximal_fd_std": 0.00021,
        }
    return found


def records(config: dict[str, Any], seeds: int = 1) -> dict[str, list[dict[str, Any]]]:
    """Return records by method, one a seed.

    Arguments:
        config: A composed configuration; each record has it with its own method's name.
        seeds: Training seeds.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for method in dict.fromkeys(row[0] for row in ROWS):
        mine = [row for row in ROWS if row[0] == method]
        _, _, _, clean, warning, _, _ = mine[0]
        found[method] = [
            {
                "status": "done",
                "method": method,
                "operator": "inpainting",
                "data": "digits",
                "seed": seed,
                "warning": warning,
                "config": config | {"method": config["method"] | {"name": method}},
                "clean_images": clean,
                "train_images": 1437,
                "image_shape": [1, 8, 8],
                "measurements_sha256": "f70c5e8e8816" * 4,
                "parameters": {"denoiser": 294_000},
                "training": {
                    "seconds": {"training": 38.2},
                    "images": 96_000,
                    "memory_mb": {"cpu": 996.0, "gpu": None},
                    "costs": {},
                },
                "costs": {
                    "train_flops": 3.14e12,
                    "train_forwards": 96_000,
                    "train_backwards": 96_000,
                },
                "evaluation": EVALUATION,
                "rows": [
                    {
                        "way": way,
                        "is_own": is_own,
                        "draws": 8,
                        "samples": 2048,
                        "metrics": metrics(given, 0.1 * seed),
                        "per_image": {},
                        "curves": {"fd_by_seed": [1.0, 2.0, 3.0]} if "fd" in given else {},
                        "seconds": {"restoration": 3.9, "sampling": 1.1},
                        "evaluations": 24,
                        "backwards": 72,
                        "missing": {"lpips": "images have 8x8"},
                        "costs": {"restore_flops": 1.9e8, "sample_flops": 7.1e7},
                        "marks": sorted(marked),
                        "marked": marked,
                    }
                    for _, way, is_own, _, _, marked, given in mine
                ],
            }
            for seed in range(seeds)
        ]
    return found


def print_made_up(seeds: int, is_wide: bool = False) -> None:
    """Print a table as a bench does, with a stranger's long name and a row that failed."""
    made = plan.make_plan(description.bench("default"), ["naive"], with_references=False)
    (problem,) = made.problems
    found = records(problem.cells["naive"][0], seeds)
    found["a_method_of_somebody_with_a_long_name_[/x]"] = found.pop("em")
    failed = {"method": "other", "seed": 0, "status": "failed: Odd: [bold] no\nmemory"}
    found["other"] = [failed]
    summary = summarise(tidy(found))
    shown = display(summary, made.references)
    bold = marks(summary, {"psnr": [("ambient", "mmps: one draw, mean of 8")]})
    screen = Screen(is_wide)
    printing.print_table(screen, problem.title, shown, bold, Path("table.md"))
    said = notes.write_notes(problem, found, made.references)
    printing.print_notes(screen, "Careful:", said.careful)
    printing.print_notes(screen, "Measured:", said.details)
