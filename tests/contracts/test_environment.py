"""What a process or a shell has set does not change a result in silence."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

import cleanprior as cp
from cleanprior import environment
from cleanprior.cells import CellFolder, Identity
from cleanprior.cells.record import read_record, write_failure, write_record
from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.defaults import plain_tensors
from cleanprior.diffusion.backbones import build_backbone
from cleanprior.diffusion.denoiser import Denoiser
from cleanprior.errors import UserError
from cleanprior.prior import Prior
from cleanprior.seeding import scoped_rng
from cleanprior.testing.parts import TINY
from cleanprior.training import Trainer

SHAPE = (1, 8, 8)


@pytest.fixture(params=["float64", "meta"])
def elsewhere(request):
    """Somebody's defaults for all of torch."""
    if request.param == "float64":
        torch.set_default_dtype(torch.float64)
    else:
        torch.set_default_device("meta")
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    with scoped_rng(0):
        prior = Prior(Denoiser(build_backbone(TINY, 1, 1, 0), 0.5, 0), SHAPE, TINY)
    folder = tmp_path_factory.mktemp("saved") / "prior"
    prior.save(folder)
    parts = compose(["method=naive", "sampler.steps=3", "posterior.steps=3", "operator.sigma=0.1"])
    operator = build(parts["operator"], image_shape=SHAPE)
    measured = Measurements.draw(torch.zeros(2, *SHAPE), operator, 0, "test")
    return {
        "folder": folder,
        "parts": parts,
        "samples": prior.sample(2, build(parts["sampler"]), 0),
        "restored": prior.restore(measured, operator, build(parts["posterior"]), 0).x,
        "denoised": prior(torch.zeros(1, *SHAPE), 0.1),
        "hash": measured.hash,
    }


def test_a_prior_is_float32_on_the_cpu_whatever_the_defaults_are(saved, elsewhere):
    """Loaded, sampled and restored: the same bits as in a process that has set nothing."""
    prior, parts = Prior.load(saved["folder"]), saved["parts"]
    assert {v.dtype for v in prior.state_dict().values()} == {torch.float32}
    assert torch.equal(prior.sample(2, build(parts["sampler"]), 0), saved["samples"])
    operator = build(parts["operator"], image_shape=SHAPE)
    zeros = torch.zeros(2, *SHAPE, dtype=torch.float32, device="cpu")
    measured = Measurements.draw(zeros, operator, 0, "test")
    assert measured.hash == saved["hash"]
    restored = prior.restore(measured, operator, build(parts["posterior"]), 0).x
    assert torch.equal(restored, saved["restored"])


def test_a_prior_denoises_images_of_another_precision(saved):
    prior = Prior.load(saved["folder"])
    wide = prior(torch.zeros(1, *SHAPE, dtype=torch.float64), 0.1)
    assert wide.dtype == torch.float64 and torch.equal(wide.float(), saved["denoised"])


def test_the_defaults_are_put_back(elsewhere):
    before = torch.get_default_dtype(), torch.get_default_device()
    with pytest.raises(KeyError), plain_tensors():
        assert torch.zeros(1).dtype == torch.float32 and torch.zeros(1).device.type == "cpu"
        raise KeyError
    assert (torch.get_default_dtype(), torch.get_default_device()) == before


def test_accelerates_variables_change_no_gradient(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    trainer: Trainer = build(compose(["method=naive", "training.device=cpu"])["training"])
    weight = torch.ones(3, requires_grad=True)
    trainer.accelerator.backward(weight.sum())
    assert torch.equal(weight.grad, torch.ones(3))
    assert trainer.accelerator.mixed_precision == "no"
    assert os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] == "4"


def test_variables_that_lower_precision_are_taken_away():
    given = dict.fromkeys(environment.PRECISION, "1") | {"HOME": "x"}
    environment.take_precision_away(given)
    assert given == {"HOME": "x"}


def test_products_are_exact_in_a_cell_whatever_the_shell_says():
    code = (
        "import torch\n"
        "assert torch.get_float32_matmul_precision() != 'highest', 'the variable does nothing'\n"
        "from cleanprior.defaults import exact_products\n"
        "exact_products()\n"
        "print(torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32)"
    )
    env = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert out.stdout.split() == ["highest", "False"], out.stderr


def test_processes_that_train_together_are_another_cell(monkeypatch):
    config = compose(["method=naive"])
    alone = Identity(config).evaluation
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Identity(config).evaluation == alone and environment.processes() == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Identity(config).evaluation != alone and environment.processes() == 2
    there = Identity(config).training, Identity(config).evaluation
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert environment.processes() == 1
    for processes, accumulate in ((2, 1), (1, 2)):
        keys = [f"training.processes={processes}", f"training.accumulate={accumulate}"]
        here = Identity(compose(["method=naive", *keys]))
        assert (here.training, here.evaluation) == there
    assert Identity(compose(["method=naive", "training.processes=1"])).evaluation == alone


def test_a_trainer_of_two_processes_trains_in_no_other_number():
    trainer = build(compose(["training.processes=2", "training.budget=640"])["training"])
    assert trainer.steps == 5, "whoever judges the training knows its steps"
    operator = cp.operator("inpainting", (1, 8, 8))
    y = cp.measure(torch.linspace(-1, 1, 256).reshape(4, 1, 8, 8), operator)
    with pytest.raises(UserError, match="processes=2, and there is 1; start it with torchrun"):
        cp.train("naive", y, operator, processes=2)


def test_what_chooses_between_implementations_is_known(monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    monkeypatch.setenv("MY_TOKEN", "secret")
    found = environment.known()
    assert found["ATEN_CPU_CAPABILITY"] == "default" and "MY_TOKEN" not in found


def test_a_record_is_strict_json_and_a_lost_metric_has_its_reason(tmp_path):
    cell = CellFolder(tmp_path, compose(["method=naive"]))
    row = {
        **{"way": "mmps", "is_own": False, "seconds": {}, "evaluations": 1, "backwards": 0},
        "metrics": {"psnr": 20.0, "ssim": math.nan, "fd": math.inf},
        "per_image": {"psnr": [20.0], "ssim": [math.nan]},
        "missing": {"fd": "known before"},
        "curves": {"losses": [1.0, math.nan]},
    }
    said = {"operator": "inpainting", "data": "digits", "parameters": {}}
    spent = {"seconds": {}, "costs": {}, "memory_mb": {"cpu": math.nan, "gpu": None}, "images": 1}
    write_record(cell, {"status": "done", **said, "rows": [row], "training": spent})
    text = cell.record.read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    record = read_record(cell)
    (found,) = record["rows"]
    assert found["metrics"] == {"psnr": 20.0} and found["per_image"] == {"psnr": [20.0]}
    assert found["missing"] == {"ssim": "the value is no finite number", "fd": "known before"}
    assert (
        found["curves"] == {"losses": [1.0, None]}
        and record["training"]["memory_mb"]["cpu"] is None
    )


def test_a_failure_is_a_record_with_its_traceback_beside(tmp_path):
    cell = CellFolder(tmp_path, compose(["method=naive"]))
    try:
        raise RuntimeError("no luck")
    except RuntimeError as error:
        write_failure(cell, error)
    assert read_record(cell)["status"] == "failed: RuntimeError: no luck"
    assert "no luck" in cell.files.error.read_text()
