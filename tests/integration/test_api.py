"""The library: what a script of ten lines does, and that it is what the command line does."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

import cleanprior as cp
from cleanprior.cells import CellFolder
from cleanprior.cells.run import run_cell
from cleanprior.config import compose
from cleanprior.data import write_splits
from cleanprior.progress import Progress
from cleanprior.public import NAMES

SMALL = {"batch": 16, "warmup": 1, "ema": 0.5, "device": "cpu", "precision": "fp32"}
SHORT = ["posterior.steps=2", "sampler.steps=2"]
EVALUATED = ["evaluation.test_images=6", "evaluation.draws=2", "evaluation.samples=50"]


@pytest.fixture(scope="module")
def digits():
    return cp.dataset("digits")


@pytest.fixture(scope="module")
def A():
    return cp.operator("inpainting", (1, 8, 8), p=0.4, sigma=0.05)


@pytest.fixture(scope="module")
def y(A, digits):
    return cp.measure(digits.train[:40], A)


@pytest.fixture(scope="module")
def prior(y, A):
    return cp.train("naive", y, A, budget=64, progress=False, **SMALL)


def same(one, other):
    first, second = one.denoiser.state_dict(), other.denoiser.state_dict()
    return all(torch.equal(first[k], second[k]) for k in first.keys() | second.keys())


def test_the_package_loads_nothing_until_a_name_is_used():
    code = (
        "import sys, cleanprior; assert not {'torch', 'numpy', 'pandas'} & set(sys.modules); "
        "cleanprior.UserError; assert 'torch' not in sys.modules; "
        "cleanprior.operator; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_public_name_is_there_and_documented(name):
    found = getattr(cp, name)
    assert found.__name__ == name and found.__doc__
    assert name in cp.__all__ and name in dir(cp)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'cleanprior' has no attribute 'trian'"):
        _ = cp.trian


def test_a_prior_is_trained_used_saved_and_loaded(prior, y, A, tmp_path):
    x = prior.restore(y[:5], A, posterior=cp.posterior("mmps", steps=2)).x
    assert x.shape == (5, 1, 8, 8) and torch.isfinite(x).all()
    assert prior.sample(3, sampler=cp.sampler("multistep", steps=2)).shape == (3, 1, 8, 8)
    prior.save(tmp_path / "prior")
    assert same(cp.load(tmp_path / "prior"), prior)


def test_restoring_takes_the_default_sampler_or_a_name(prior, y, A):
    by_default = prior.restore(y[:2], A)
    assert torch.equal(by_default.x, prior.restore(y[:2], A, "mmps").x)
    assert by_default.evaluations == cp.posterior("mmps").steps
    assert torch.equal(prior.sample(2), prior.sample(2, "multistep"))
    with pytest.raises(cp.UserError, match="unknown posterior 'mpms'.*Did you mean 'mmps'"):
        prior.restore(y[:2], A, "mpms")


def test_a_saved_prior_serves_the_command_line(prior, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from cleanprior.cli import build_app

    monkeypatch.chdir(tmp_path)
    prior.save("prior")
    clean = torch.zeros(2, 1, 8, 8)
    operator = cp.operator("inpainting", (1, 8, 8), p=0.4, sigma=0.05)
    from pathlib import Path

    write_splits(Path("mine.npz"), cp.measure(clean, operator))
    app = CliRunner()
    for command in (
        ["restore", "prior", "--measurements", "mine.npz", "posterior.steps=2"],
        ["sample", "prior", "-n", "2", "sampler.steps=2"],
    ):
        result = app.invoke(build_app(), command)
        assert result.exit_code == 0, (result.output, result.exception)
    assert np.load("restored.npz")["x"].shape == (2, 1, 8, 8)


@pytest.mark.parametrize("name", ["naive", "em_mmps"])
def test_training_gives_the_weights_of_the_command_line(name, digits, A, tmp_path):
    y, held_out = cp.measure(digits.train[:40], A), cp.measure(digits.test[:6], A, seed=1)
    write_splits(tmp_path / "mine.npz", y, held_out)
    changes = {"low_rank_iterations": 1} if name == "em_mmps" else {}
    training = [f"training.{k}={v}" for k, v in {**SMALL, "budget": 64}.items()]
    overrides = [f"method.{k}={v}" for k, v in changes.items()]
    own = ["data=measurements", f"data.path={tmp_path / 'mine.npz'}"]
    problem = ["operator=inpainting", "operator.p=0.4", "operator.sigma=0.05"]
    config = compose([f"method={name}", *own, *problem, *training, *overrides, *SHORT, *EVALUATED])
    cell = CellFolder(tmp_path / "runs", config)
    assert run_cell(cell, Progress())["status"] == "done"
    expected = load_file(cell.files.prior / "weights.safetensors")

    method = cp.method(name, **changes) if changes else name
    cp.train(method, y, A, budget=64, progress=False, **SMALL).save(tmp_path / "prior")
    found = load_file(tmp_path / "prior" / "weights.safetensors")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[k], expected[k]) for k in expected)


def test_an_interrupted_training_goes_on_from_its_folder(y, A, prior, tmp_path, monkeypatch):
    from cleanprior.training.run import Run

    settings = {"budget": 64, "progress": False, "folder": tmp_path / "mine"} | SMALL
    turn, count = Run._turn, []

    def interrupted(self, *given):
        count.append(1)
        if len(count) == 3:
            raise KeyboardInterrupt
        return turn(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_turn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cp.train("naive", y, A, checkpoint_seconds=0.0, **settings)
    again = cp.train("naive", y, A, checkpoint_seconds=0.0, **settings)
    assert same(again, prior)
    # Asked once more, nothing is trained.
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_turn", lambda *given: pytest.fail("trained again"))
        assert same(cp.train("naive", y, A, checkpoint_seconds=0.0, **settings), prior)
    with pytest.raises(cp.UserError, match="is that of another training"):
        cp.train("naive", y, A, checkpoint_seconds=0.0, seed=1, **settings)


def test_a_folder_with_other_files_is_left_alone(y, A, tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(cp.UserError, match="holds other files"):
        cp.train("naive", y, A, budget=64, folder=tmp_path, progress=False, **SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_entitled_method_takes_its_clean_images(y, A, digits):
    em = cp.method("em", clean_images=4, start_share=0.3)
    quick = {"budget": 64, "progress": False, **SMALL}
    with pytest.raises(cp.UserError, match="starts from 4 clean images; clean= holds 0"):
        cp.train(em, y, A, **quick)
    trained = cp.train(em, y, A, clean=digits.train[:4], **quick)
    assert trained.about["method"] == "em"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda y, A: cp.operator("inpaintng", (1, 8, 8)), "Did you mean 'inpainting'"),
        (lambda y, A: cp.operator("inpainting", (1, 8, 8), q=0.5), "unknown key 'operator.q'"),
        (lambda y, A: cp.operator("inpainting", (1, 8, 8), p=1.5), "1.5"),
        (lambda y, A: cp.operator("inpainting", (1, 8, 8), p="half"), "operator.p"),
        (lambda y, A: cp.method("ems"), "unknown method 'ems'"),
        (lambda y, A: cp.train("naive", y, A, budgt=3), "unknown key 'training.budgt'"),
        (lambda y, A: cp.train("naive", y, A, budget=3), "batch <= budget"),
        (lambda y, A: cp.train("ambient", y, A), "noisy measurements"),
        (lambda y, A: cp.train("ambient_gan", y, A), "no denoiser"),
        (
            lambda y, A: cp.train("naive", y, cp.operator("blur", (1, 8, 8))),
            "not a parameter of operator blur",
        ),
        (
            lambda y, A: cp.train("naive", y, cp.operator("inpainting", (1, 8, 8), p=0.4)),
            "set operator.sigma=0.05",
        ),
        (
            lambda y, A: cp.train("naive", y, cp.operator("inpainting", (1, 8, 8), sigma=0.05)),
            "operator.p",
        ),
        (lambda y, A: cp.measure(torch.zeros(3, 8, 8), A), r"needed: \(n, 1, 8, 8\)"),
        (lambda y, A: cp.measure(3 * torch.ones(3, 1, 8, 8), A), r"needed: \[-1, 1\]"),
        (lambda y, A: cp.measure(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), A), "needed: floats"),
        (lambda y, A: cp.load("nowhere"), "not a saved prior"),
        (lambda y, A: cp.bench(["emm"]), "unknown method 'emm'"),
        (lambda y, A: cp.bench([]), "names nothing"),
        (lambda y, A: cp.bench(["naive"], out=__file__), "out"),
        (lambda y, A: cp.bench(overrides={"operator": {"q": 1}}), "unknown key 'operator.q'"),
        (lambda y, A: cp.operator("inpainting", (8, 8)), "image_shape="),
        (lambda y, A: cp.operator("inpainting", (1, 8, 8), seed=-1), "seed=-1"),
        (lambda y, A: cp.measure(torch.zeros(0, 1, 8, 8), A), "n above 0"),
        (lambda y, A: cp.train("naive", y, A, folder=__file__), "folder"),
        (
            lambda y, A: cp.train("em", y, A, clean=torch.full((50, 1, 8, 8), torch.nan)),
            "clean images lie in",
        ),
        (lambda y, A: cp.bench(overrides={"operator.q": 1}), "unknown key 'operator.q'"),
    ],
)
def test_a_mistake_is_one_sentence_before_any_compute(call, message, y, A):
    with pytest.raises(ValueError, match=message) as caught:
        call(y, A)
    assert caught.type is cp.UserError and "\n" not in str(caught.value)


def test_measurements_are_taken_by_slices_positions_and_masks(y):
    some = y[3:6]
    assert torch.equal(some.y, y.y[3:6]) and len(some) == 3
    assert torch.equal(some.params["mask"], y.params["mask"][3:6])
    assert y[torch.tensor([3, 4, 5])].hash == some.hash
    assert y[torch.arange(40) < 3].hash == y[:3].hash
    with pytest.raises(TypeError, match="slice"):
        _ = y[3]


def test_a_bench_gives_a_table(tmp_path, capsys):
    settings = {f"training.{k}": v for k, v in {**SMALL, "budget": 64}.items()}
    overrides = settings | {"evaluation.sampling_seeds": [0], "evaluation.test_images": 6}
    overrides |= {"evaluation.draws": 2, "evaluation.samples": 50}
    overrides |= {"posterior.steps": 2, "sampler.steps": 2}
    result = cp.bench(
        ["naive"], overrides=overrides, references=False, out=tmp_path, progress=False
    )
    assert isinstance(result.table, pd.DataFrame) and result.is_sound
    assert list(result.table["method"]) == ["naive"] and result.page.is_file()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, y, A: p.restore(y[:2], cp.operator("blur", (1, 8, 8))), "not a parameter"),
        (lambda p, y, A: p.restore(y[:2], cp.operator("denoising", (1, 8, 8))), "not a parameter"),
        (lambda p, y, A: p.restore(y[:2], cp.operator("inpainting", (1, 9, 9))), "9.; theirs has"),
        (lambda p, y, A: p.restore(y[:2], cp.operator("inpainting", (1, 7, 7))), "the prior makes"),
        (lambda p, y, A: p.restore(y[:2], A, seed=-1), "seed=-1"),
        (lambda p, y, A: p.sample(0), "n=0; allowed: at least 1"),
    ],
)
def test_a_prior_refuses_what_it_cannot_do(call, message, prior, y, A):
    with pytest.raises(cp.UserError, match=message):
        call(prior, y, A)


def test_a_prior_is_not_written_over_anything_else(prior, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("all of it")
    (tmp_path / "notes").write_text("mine")
    for name in ("thesis", "notes"):
        with pytest.raises(cp.UserError, match=name):
            prior.save(tmp_path / name)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "all of it"
    assert (tmp_path / "notes").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    for _ in range(2):  # a prior of before is replaced
        prior.save(tmp_path / "empty")
    assert same(cp.load(tmp_path / "empty"), prior)


@pytest.mark.parametrize("wrong", ["method", "measurements", "operator"])
def test_another_kind_of_argument_is_told(wrong, y, A):
    given = {"method": "naive", "measurements": y, "operator": A} | {wrong: cp.Method}
    # While tests run, annotations are checked before our own check is reached.
    with pytest.raises(TypeError, match=f"{wrong} is a|Type-check error"):
        cp.train(*given.values())
