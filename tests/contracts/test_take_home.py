"""A prior goes home: its card, diffusers, deepinv in [0, 1], the Hub. No network is touched."""

import os
import re
import subprocess
import sys
from pathlib import Path

import diffusers
import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError

import cleanprior as cp
import cleanprior.diffusers as ours
from cleanprior.diffusion.backbones import build_backbone
from cleanprior.diffusion.denoiser import Denoiser
from cleanprior.errors import UserError
from cleanprior.model_card import measured
from cleanprior.prior import Prior
from cleanprior.prior_files import describe
from cleanprior.seeding import generator_for, scoped_rng
from cleanprior.testing.parts import TINY

SHAPE = (1, 8, 8)


def make_prior(shape=SHAPE, condition=0, about=None):
    with scoped_rng(1):
        network = build_backbone(dict(TINY), shape[0], shape[0], condition)
        for p in network.parameters():
            p.data += 0.05 * torch.randn_like(p)
    return Prior(Denoiser(network, 0.5, condition), shape, dict(TINY), about or {"method": "naive"})


@pytest.fixture(scope="module")
def prior():
    return make_prior()


@pytest.fixture(scope="module")
def folder(prior, tmp_path_factory):
    place = tmp_path_factory.mktemp("home") / "prior"
    prior.save(place)
    return place


@pytest.fixture(scope="module")
def x():
    return torch.randn((4, *SHAPE), generator=generator_for(0, "x"))


# -- diffusers -------------------------------------------------------------------------------------


def edm(pipe, x, sigma):
    """Denoise as ten lines of anybody's code would, with the scheduler's own scaling."""
    s, sigma = pipe.scheduler, torch.tensor(sigma)
    output = pipe.unet(s.precondition_inputs(x, sigma), s.precondition_noise(sigma)).sample
    return s.precondition_outputs(x, output, sigma)


@pytest.mark.parametrize("sigma", [0.002, 0.05, 0.5, 3.0, 80.0])
def test_diffusers_scheduler_around_the_network_is_the_prior(prior, folder, x, sigma):
    found = edm(ours.load(folder), x, sigma)
    torch.testing.assert_close(found, prior(x, sigma), rtol=0, atol=1e-6)


def test_each_step_of_the_scheduler_predicts_the_prior_mean(prior, folder, x):
    pipe = ours.load(folder)
    pipe.scheduler.set_timesteps(3)
    for t, sigma in zip(pipe.scheduler.timesteps, pipe.scheduler.sigmas, strict=False):
        output = pipe.unet(pipe.scheduler.scale_model_input(x, t), t).sample
        step = pipe.scheduler.step(output, t, x)
        torch.testing.assert_close(step.pred_original_sample, prior(x, sigma), rtol=0, atol=1e-6)


IN_A_FRESH_PROCESS = """
import sys, torch
import cleanprior.diffusers
from diffusers import DiffusionPipeline
x = torch.load({x!r}, weights_only=True)
pipe = DiffusionPipeline.from_pretrained({folder!r})
pipe.set_progress_bar_config(disable=True)
s, sigma = pipe.scheduler, torch.tensor(0.3)
out = pipe.unet(s.precondition_inputs(x, sigma), s.precondition_noise(sigma)).sample
g = torch.Generator().manual_seed(0)
image = pipe(batch_size=2, num_inference_steps=3, generator=g, output_type="pt").images
import cleanprior as cp
other = cp.load({folder!r}).deepinv(range=(0, 1))
found = [s.precondition_outputs(x, out, sigma), image, other((x + 1) / 2, 0.15)]
torch.save(found, {to!r})
print([m for m in sys.modules if m.startswith("cleanprior.methods")])
"""


def test_a_fresh_process_gets_the_same_from_diffusers_and_from_deepinv(prior, folder, x, tmp_path):
    torch.save(x, tmp_path / "x.pt")
    names = {"x": str(tmp_path / "x.pt"), "folder": str(folder), "to": str(tmp_path / "y.pt")}
    code = IN_A_FRESH_PROCESS.format(**names)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "[]"
    denoised, image, halved = torch.load(tmp_path / "y.pt", weights_only=True)
    expected = prior(x, 0.3)
    torch.testing.assert_close(denoised, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(2 * halved - 1, expected, rtol=0, atol=2e-6)
    pipe = ours.load(folder)
    pipe.set_progress_bar_config(disable=True)
    g = torch.Generator().manual_seed(0)
    own = pipe(batch_size=2, num_inference_steps=3, generator=g, output_type="pt").images
    torch.testing.assert_close(image, own, rtol=0, atol=1e-6)


def test_oblong_images_have_our_pipeline_alone(tmp_path):
    make_prior((2, 8, 12)).save(tmp_path / "p")
    assert not (tmp_path / "p" / "model_index.json").exists()
    pipe = ours.load(tmp_path / "p")
    pipe.set_progress_bar_config(disable=True)
    images = pipe(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 8, 12, 2) and images.min() >= 0 and images.max() <= 1


def test_a_pipeline_is_saved_and_read_again(folder, x, tmp_path):
    pipe = ours.load(folder)
    pipe.save_pretrained(tmp_path / "again")
    again = ours.load(tmp_path / "again" / "unet")
    assert torch.equal(edm(again, x, 0.3), edm(pipe, x, 0.3))


def test_a_network_that_is_told_a_mask_is_no_pipeline(tmp_path):
    make_prior(condition=1).save(tmp_path / "p")
    assert {p.name for p in (tmp_path / "p").iterdir()} == {
        "prior.yaml",
        "weights.safetensors",
        "README.md",
    }
    with pytest.raises(UserError, match="is told a mask beside the image"):
        ours.load(tmp_path / "p")


def test_a_strangers_folder_runs_no_code_in_diffusers(folder, tmp_path):
    place = tmp_path / "p"
    make_prior().save(place)
    (place / "cleanprior.diffusers.py").write_text("raise SystemExit('run')")
    (place / "unet").mkdir()
    (place / "unet" / "cleanprior.diffusers.py").write_text("raise SystemExit('run')")
    assert ours.load(place).unet.config.in_channels == 1
    with pytest.raises(ValueError, match="trust_remote_code"):
        diffusers.DiffusionPipeline.from_pretrained(str(place))


# -- deepinv ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1, 1), (-2.0, 6.0)])
def test_a_range_scales_images_and_noise_alike(prior, x, low, high):
    other, half = prior.deepinv(range=(low, high)), (high - low) / 2
    found = other(low + half * (x + 1), torch.full((4,), 0.3 * half))
    torch.testing.assert_close((found - low) / half - 1, prior(x, 0.3), rtol=0, atol=5e-6)


@pytest.mark.parametrize("given", [(1, 0), (0, 0), (0, float("nan")), (0,)])
def test_no_range_is_refused(prior, given):
    with pytest.raises(UserError, match="range=.*needed: two numbers"):
        prior.deepinv(range=given)


@pytest.mark.parametrize(
    ("change", "sigma", "told"),
    [
        (lambda x: x, -1.0, "sigma=-1.0; allowed: noise levels from 0"),
        (lambda x: x, float("nan"), "sigma=nan; allowed"),
        (lambda x: x, torch.tensor([0.1, -0.1, 1.0, 1.0]), "allowed: noise levels from 0"),
        (lambda x: x.to(torch.complex64), 0.5, "x is complex64; needed: floating-point images"),
        (lambda x: (100 * x).to(torch.int16), 0.5, "x is int16; needed"),
        (lambda x: x.to("meta"), 0.5, "x lies on meta and the prior on cpu"),
        (lambda x: x[0], 0.5, r"x has shape .1, 8, 8.; needed: .b, 1, h, w"),
        (lambda x: x.expand(-1, 3, -1, -1), 0.5, r"x has shape .4, 3, 8, 8."),
    ],
)
def test_what_a_prior_cannot_denoise_is_one_line(prior, x, change, sigma, told):
    with pytest.raises(UserError, match=told):
        prior(change(x[:4]), sigma)


def test_an_image_without_noise_is_returned(prior, x):
    assert torch.equal(prior(x, 0), x)
    assert torch.equal(prior.deepinv()(x, 0.0), (2 * x - 1 + 1) / 2)
    some = torch.tensor([0.0, 0.3, 0.0, 2.0])
    found = prior(x, some)
    assert torch.equal(found[::2], x[::2])
    torch.testing.assert_close(found[1::2], prior(x[1::2], some[1::2]), rtol=1e-5, atol=1e-6)
    leaf = x.clone().requires_grad_()
    prior(leaf, some).sum().backward()
    assert torch.isfinite(leaf.grad).all() and torch.equal(leaf.grad[0], torch.ones(SHAPE))


def test_deepinvs_own_schedule_that_ends_at_zero_gives_numbers(prior, x):
    from deepinv.physics import GaussianNoise, Inpainting
    from deepinv.sampling import DDRM

    mask = (torch.rand(SHAPE, generator=generator_for(0, "mask")) > 0.5).float()
    physics = Inpainting(SHAPE, mask=mask, noise_model=GaussianNoise(0.05))
    y = mask * (x[:1].clamp(-1, 1) + 1) / 2
    with scoped_rng(0):
        found = DDRM(prior.deepinv())(y, physics)
    assert torch.isfinite(found).all()


# -- the card --------------------------------------------------------------------------------------

HOSTILE = {
    "method": "em](javascript:x) <script>alert(1)</script> | `a`\n\n# title",
    "data": "x" * 5000,
    "operator": ["a", {"b": "c\n---\nlicense: mit"}],
    "license": "mit\ntags: [x]",
    "metrics": [{"way": "<b>", "metrics": {"a|b": [1.0, None, ""], "c": "no", "d": [1e9, 2, "|"]}}],
    "config": {"operator": {"p": 0.5, "name": "n"}, "training": "none", "method": 3},
}


def front(text):
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_a_strangers_words_are_words_in_the_card(tmp_path):
    make_prior(about=HOSTILE).save(tmp_path / "p")
    head, body = front((tmp_path / "p" / "README.md").read_text())
    assert head["license"] == "unknown" and head["library_name"] == "cleanprior"
    assert "<script" not in body and "<b>" not in body and "](" not in body
    assert not re.search(r"^# title|^license", body, re.M)
    assert max(map(len, body.splitlines())) < 500
    cells = [line for line in body.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) in (3, 5) for line in cells)


def test_the_card_says_where_the_prior_comes_from_and_what_it_reached(tmp_path):
    rows = [
        {
            "way": "mmps",
            "metrics": {"psnr": 20.0, "fd": 3.0, "fd_std": 0.5, "lpips": None},
            "per_image": {"psnr": [19.0, 21.0]},
            "curves": {"fd_by_seed": [2.5, 3.0, 3.5]},
        }
    ]
    config = {"operator": {"name": "inpainting", "p": 0.4}, "training": {"budget": 640}}
    about = {"method": "em", "data": "digits", "operator": "inpainting", "clean_images": 50}
    prior = make_prior(about={**about, "measurements_sha256": "abc", "config": config})
    prior.save(tmp_path / "p")
    describe(tmp_path / "p", {**prior.about, "metrics": measured(rows)}, "1.2")
    text = (tmp_path / "p" / "README.md").read_text()
    for line in (
        "| data | digits |",
        "| its values | p=0.4 |",
        "| measurements, sha256 | abc |",
        "| clean images used | 50 |",
        "| images seen in training | 640 |",
        "| psnr | 20 | ± 1.41 over 2 images | mmps |",
        "| fd | 3 | ± 0.5 over 3 sampling seeds | mmps |",
        "| cleanprior | 1.2 |",
    ):
        assert line in text, line
    assert "fd_std" not in text.replace("\\", "") and "lpips" not in text
    loaded = Prior.load(tmp_path / "p")
    assert loaded.about["metrics"][0]["metrics"]["psnr"][0] == 20
    loaded.save(tmp_path / "p")  # a prior of today replaces itself, its card and pipeline, too
    assert (tmp_path / "p" / "README.md").read_text().count("| psnr | 20 |") == 1


# -- the Hub ---------------------------------------------------------------------------------------


class FakeApi:
    """Keeps what would be uploaded."""

    def __init__(self, store, token=None):
        self.store = store

    def create_repo(self, name, private=None, exist_ok=False):
        assert exist_ok
        self.store["private"] = private

    def create_branch(self, name, branch, exist_ok=False):
        self.store["branch"] = branch

    def upload_folder(self, repo_id, folder_path, commit_message, revision=None):
        files = [p for p in Path(folder_path).rglob("*") if p.is_file()]
        self.store |= {p.relative_to(folder_path).as_posix(): p.read_bytes() for p in files}
        return f"commit of {repo_id}"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub of one machine: what is pushed there can be fetched."""
    store, asked = {}, []

    def snapshot(name, revision=None, allow_patterns=None):
        asked.append((name, revision, tuple(allow_patterns)))
        if not store:
            raise LocalEntryNotFoundError("no such files in the cache\nand more\nlines")
        place = tmp_path / "cache" / name
        for key in ("prior.yaml", "weights.safetensors"):
            place.mkdir(parents=True, exist_ok=True)
            (place / key).write_bytes(store[key])
        return str(place)

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: FakeApi(store, token))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    return store, asked


def test_a_prior_is_pushed_and_loaded_by_its_name(hub, x):
    store, asked = hub
    prior = make_prior()
    assert (
        prior.push_to_hub("me/digits", license="cc-by-4.0", private=True) == "commit of me/digits"
    )
    assert store["private"] is True
    assert {k for k, v in store.items() if isinstance(v, bytes)} == {
        *("prior.yaml", "weights.safetensors", "README.md", "model_index.json"),
        "scheduler/scheduler_config.json",
    }
    assert front(store["README.md"].decode())[0]["license"] == "cc-by-4.0"
    loaded = cp.load("me/digits", revision="v1")
    assert torch.equal(loaded(x, 0.3), prior(x, 0.3))
    assert asked == [("me/digits", "v1", ("prior.yaml", "weights.safetensors"))]
    pipe = ours.load("me/digits")
    torch.testing.assert_close(edm(pipe, x, 0.3), prior(x, 0.3), rtol=0, atol=1e-6)
    prior.push_to_hub("me/digits", revision="other")
    assert store["branch"] == "other"


def test_a_folder_comes_before_a_name_on_the_hub(hub, tmp_path, x):
    _, asked = hub
    prior = make_prior()
    prior.save(tmp_path / "me" / "digits")
    assert torch.equal(cp.load("me/digits")(x, 0.3), prior(x, 0.3))
    assert asked == []
    with pytest.raises(UserError, match="revision=v1: 'me/digits' is a folder"):
        cp.load("me/digits", revision="v1")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: cp.load("me/none"), "'me/none' is no folder and was not loaded from the Hub: no"),
        (lambda: cp.load("me/none", revision="v2"), "'me/none, revision v2,' is no folder"),
        (lambda: make_prior().push_to_hub("digits"), "'digits' is no name on the Hub; write user/"),
        (lambda: make_prior().push_to_hub("a/b", license="My own"), "license='My own'; write it"),
        (lambda: cp.load("a/b/c"), "is not a saved prior: 'prior.yaml' is missing"),
    ],
)
def test_a_mistake_with_the_hub_is_one_line(hub, call, told):
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_without_the_library_its_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"there is no folder 'me/none'.*cleanprior\[hub\]"):
        cp.load("me/none")


def test_offline_the_real_library_answers_in_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code = "import cleanprior as cp\ntry: cp.load('me/none')\nexcept cp.UserError as e: print(e)"
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=variables
    )
    assert out.stdout.startswith("'me/none' is no folder and was not loaded from the Hub: ")
    assert out.stdout.count("\n") == 1 and out.stderr == ""
