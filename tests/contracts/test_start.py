"""A training begins from a prior, or from a network of diffusers, and says what that has seen."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from cleanprior.benchmarks.tables.notes import _clean_starts
from cleanprior.benchmarks.tables.row_names import names
from cleanprior.benchmarks.tables.statistics import compare, told, track_of
from cleanprior.benchmarks.tables.summary import summarise, tidy
from diffusers import DDPMPipeline, DDPMScheduler, EDMEulerScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from trained import CHEAP, over_learners

import cleanprior as cp
from cleanprior.cells import CellFolder, Identity
from cleanprior.cells.identity import digest, training_identity
from cleanprior.cells.run import run_cell
from cleanprior.config import build, compose, recompose
from cleanprior.diffusion.backbones import build_backbone
from cleanprior.diffusion.denoiser import Denoiser
from cleanprior.errors import UserError
from cleanprior.operators.building import build_operator
from cleanprior.prior import Prior
from cleanprior.progress import Progress
from cleanprior.seeding import generator_for, scoped_rng
from cleanprior.starts import read_start
from cleanprior.testing.parts import TINY
from cleanprior.testing.training import make_setting, make_trainer
from cleanprior.training.start import begin_from, start_fault

SHAPE = (1, 8, 8)
BLIND = {"method": "em", "data": "digits", "operator": "inpainting", "clean_images": 0}
BLIND |= {"costs": {"images": 640, "seconds": 12.0, "flops": 1e9, "forwards": 10, "backwards": 5}}
NETWORK = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "in_channels": 1,
    "out_channels": 1,
    "sample_size": 8,
}


def make_prior(shape=SHAPE, condition=0, about=BLIND, seed=1, preconditioning="edm", sigma=0.5):
    with scoped_rng(seed):
        network = build_backbone(dict(TINY), shape[0], shape[0], condition)
        for p in network.parameters():
            p.data += 0.05 * torch.randn_like(p)
    return Prior(Denoiser(network, sigma, condition, preconditioning), shape, dict(TINY), about)


@pytest.fixture(scope="module")
def prior():
    return make_prior()


@pytest.fixture(scope="module")
def home(prior, tmp_path_factory):
    place = tmp_path_factory.mktemp("start") / "prior"
    prior.save(place)
    return place


@pytest.fixture(scope="module")
def x():
    return torch.rand((4, *SHAPE), generator=generator_for(0, "x")) * 2 - 1


def unet2d(to, scheduler, **changes):
    """Save a network with its scheduler as diffusers does, and return both."""
    with scoped_rng(3):
        unet = UNet2DModel(**{**NETWORK, **changes})
    DDPMPipeline(unet, scheduler).save_pretrained(to)
    return unet.eval(), scheduler


# -- a prior's weights -----------------------------------------------------------------------------


@over_learners
def test_every_method_begins_with_the_weights_or_says_why_not(prior, home, x, name):
    method, problem, *_ = make_setting(name, tuple(CHEAP.get(name, ())))
    fault = start_fault(str(home), method, problem)
    if name == "ambient_gan":
        assert fault == "AmbientGAN learns no denoiser that could begin from a prior"
        return
    assert fault is None
    method.setup(problem, torch.device("cpu"))
    begin_from(str(home), method, method.networks())
    denoiser = method.networks()[method.begun].eval()
    sigma = torch.full((4,), 0.3)
    expected = prior.denoiser.backbone(x, sigma, None)
    masks = [torch.zeros_like(x), torch.ones_like(x)] if denoiser.condition_channels else [None]
    for mask in masks:  # its weights are 0: whatever it says, the network is the start
        found = denoiser.backbone(x, sigma, mask)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["naive", "ambient", "pinv_then_train"])
def test_networks_and_averages_begin_there_and_fresh_rounds_begin_there_again(prior, home, name):
    """With hardly any learning rate a training ends where it began."""
    method, problem, data, clean = make_setting(name)
    trainer = make_trainer(4, lr=1e-12, start=str(home))
    averaged, report = trainer.fit(method, problem, data, 0, None, clean)
    assert report.images == 32 and report.steps[method.begun] == 4
    own, start = averaged["denoiser"].state_dict(), prior.denoiser.state_dict()
    for key, value in start.items():
        mine = own[key][:, : value.shape[1]] if value.dim() == 4 else own[key]
        torch.testing.assert_close(mine, value, rtol=0, atol=1e-6)


def test_the_first_e_step_of_a_method_finds_the_start_in_the_averages(prior, home, x):
    method, problem, data, _ = make_setting("naive")
    seen = []

    def begin_round(number, plan, session):
        seen.append(session.averaged["denoiser"](x, torch.full((4,), 0.3)).detach())
        return session.measurements

    method.begin_round = begin_round
    make_trainer(1, start=str(home)).fit(method, problem, data, 0)
    torch.testing.assert_close(seen[0], prior(x, 0.3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["em", "em_mmps"])
def test_em_draws_its_first_restorations_by_the_start(prior, home, name, monkeypatch):
    method, problem, data, _ = make_setting(name, tuple(CHEAP[name]))
    method = replace(method, start="prior", clean_images=0)
    assert method.supports(problem) == (
        "start=prior draws by the prior of training.start, which is not set"
    )
    problem = replace(problem, has_start=True)
    assert method.supports(problem) is None
    drawn, draws = [], type(method)._draws

    def watched(self, denoise, sampler, index, number, session):
        with torch.no_grad():
            drawn.append((number, denoise(data.y[:2], torch.full((2,), 0.3))))
        return draws(self, denoise, sampler, index, number, session)

    monkeypatch.setattr(type(method), "_draws", watched)
    make_trainer(20, start=str(home)).fit(method, problem, data, 0)
    assert drawn[0][0] == 0 and len(drawn) > 2
    torch.testing.assert_close(drawn[0][1], prior(data.y[:2], 0.3), rtol=1e-5, atol=1e-6)


def test_a_killed_fine_tuning_goes_on_and_does_not_begin_again(home, tmp_path, digits_data):
    A = cp.operator("inpainting", SHAPE, p=0.4)
    y = cp.measure(digits_data.train[:48], A)
    small = {"batch": 8, "warmup": 1, "device": "cpu", "precision": "fp32", "progress": False}
    place = tmp_path / "mine"
    shutil.copytree(home, place)

    class Killed(Exception):
        pass

    whole = cp.train("naive", y, A, budget=96, start=str(place), **small)
    method, calls = cp.method("naive"), []
    loss = method.loss

    def killed(*given):
        calls.append(1)
        if len(calls) == 7:
            raise Killed
        return loss(*given)

    method.loss = killed
    kept = {**small, "folder": tmp_path / "run", "checkpoint_seconds": 0.0}
    with pytest.raises(Killed):
        cp.train(method, y, A, budget=96, start=str(place), **kept)
    shutil.move(place, tmp_path / "elsewhere")  # the same start in another place is the same
    again = cp.train("naive", y, A, budget=96, start=str(tmp_path / "elsewhere"), **kept)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert again.about["start"]["hash"] == read_start(str(home)).hash
    assert not again.about["start"]["is_clean"]
    with pytest.raises(UserError, match="is that of another training"):
        cp.train("naive", y, A, budget=96, **kept)


# -- what it is ------------------------------------------------------------------------------------


def test_without_a_start_a_cell_is_what_it_was():
    config = compose([])
    assert config["training"]["start"] is None
    assert Identity(config).training == Identity(_without(config)).training
    assert training_identity(config) == training_identity(_without(config))
    assert "start" not in Identity(config).parts()["training"]


def _without(config):
    training = {k: v for k, v in config["training"].items() if k != "start"}
    return {**config, "training": training}


def test_the_content_of_a_start_is_part_of_a_cell_and_its_place_is_not(home, tmp_path):
    shutil.copytree(home, tmp_path / "copy")
    make_prior(seed=2).save(tmp_path / "other")
    found = {}
    for name, place in {
        "own": home,
        "copy": tmp_path / "copy",
        "other": tmp_path / "other",
    }.items():
        config = compose([f"training.start={place}"])
        assert config["backbone"]["hid_channels"] == TINY["hid_channels"]
        found[name] = digest(Identity(config).parts())
        again = recompose(json.loads(json.dumps(config)), "file")
        assert digest(Identity(again).parts()) == found[name]
    assert found["own"] == found["copy"] != found["other"]
    files = [home / "weights.safetensors", home / "prior.yaml"]
    assert {read_start(str(f)).hash for f in files} == {read_start(str(home)).hash}


@pytest.mark.parametrize(
    ("about", "is_clean", "images", "said"),
    [
        (BLIND, False, 640, "by em on digits, inpainting: it has seen no clean image, 640 images"),
        ({**BLIND, "clean_images": 50}, True, 640, "it has seen 50 clean images"),
        ({**BLIND, "start": {"is_clean": True, "costs": {"images": 60}}}, True, 700, "a start of"),
        ({**BLIND, "start": {"is_clean": False, "costs": {"images": 60}}}, False, 700, "no clean"),
        ({**BLIND, "config": {"training": {"start": "gone"}}}, True, 640, "a start of clean"),
        ({"method": "x\ny" * 99}, True, None, "nobody says how many clean images"),
        ({**BLIND, "clean_images": False, "costs": "much"}, True, None, "False clean images"),
        (
            {"method": "em", "config": {"method": {"clean_images": 0}, "training": {"budget": 32}}},
            False,
            32,
            "no clean image, 32 images in training",
        ),
    ],
)
def test_a_start_says_what_it_has_seen(tmp_path, about, is_clean, images, said):
    make_prior(about=about).save(tmp_path / "p")
    seen = read_start(str(tmp_path / "p")).seen
    assert seen["is_clean"] is is_clean and seen["costs"].get("images") == images
    assert said in seen["said"] and "\n" not in seen["said"] and len(seen["said"]) < 300


# -- diffusers -------------------------------------------------------------------------------------


def wrapped(config):
    """Return the denoiser that a composed configuration describes, with its start's weights."""
    method, trainer = build(config["method"]), build(config["training"])
    operator = build_operator(config["operator"], SHAPE, 0)
    problem = trainer.problem(operator, config)
    assert start_fault(trainer.start, method, problem) is None
    begin_from(trainer.start, method, method.networks())
    return method.networks()["denoiser"].eval()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_a_ddpm_network_is_the_denoiser_of_its_own_scheduler(tmp_path, x, prediction, schedule):
    options = {"prediction_type": prediction, "beta_schedule": schedule, "clip_sample": False}
    unet, scheduler = unet2d(tmp_path / "p", DDPMScheduler(200, **options))
    config = compose(["method=naive", f"training.start={tmp_path / 'p'}"])
    assert config["backbone"]["name"] == "unet2d"
    denoiser = wrapped(config)
    for t in (0, 40, 150):
        signal = scheduler.alphas_cumprod[t]
        x_t = scheduler.add_noise(x, torch.randn_like(x), torch.tensor(t))
        expected = scheduler.step(unet(x_t, t).sample, t, x_t).pred_original_sample
        sigma = ((1 - signal) / signal).sqrt()
        with torch.no_grad():
            found = denoiser(x_t / signal.sqrt(), sigma.expand(4))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    levels = denoiser.backbone.log_sigmas
    times = denoiser.backbone.timestep(torch.tensor([-99.0, (levels[3] + levels[4]) / 2, 99.0]))
    assert times.tolist() == pytest.approx([0, 3.5, 199], abs=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_an_edm_network_is_the_denoiser_of_its_own_scheduler(tmp_path, x, prediction):
    unet, s = unet2d(tmp_path / "p", EDMEulerScheduler(sigma_data=0.7, prediction_type=prediction))
    config = compose(["method=naive", f"training.start={tmp_path / 'p'}"])
    assert config["training"]["sigma_data"] == config["backbone"]["sigma_data"] == 0.7
    denoiser = wrapped(config)
    for level in (0.05, 2.0, 50.0):
        sigma = torch.tensor(level)
        output = unet(s.precondition_inputs(x, sigma), s.precondition_noise(sigma)).sample
        expected = s.precondition_outputs(x, output, sigma)
        torch.testing.assert_close(denoiser(x, sigma.expand(4)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ambient", "em_mmps"])
def test_a_method_trains_a_network_of_diffusers_on_and_the_prior_goes_home(tmp_path, x, name):
    unet2d(tmp_path / "p", DDPMScheduler())
    A = cp.operator("inpainting", SHAPE, p=0.4)
    y = cp.measure(x.repeat(4, 1, 1, 1), A)
    small = {"batch": 8, "warmup": 1, "device": "cpu", "precision": "fp32", "progress": False}
    changes = {"posterior": {"steps": 2}, "gaussian_iterations": 1} if name == "em_mmps" else {}
    method = cp.method(name, **changes)
    prior = cp.train(method, y, A, budget=48, start=str(tmp_path / "p"), **small)
    prior.save(tmp_path / "home")
    loaded = cp.load(tmp_path / "home")
    assert torch.equal(loaded(x, 0.3), prior(x, 0.3))
    assert loaded.about["start"]["is_clean"] and torch.isfinite(loaded(x, 0.3)).all()
    again = compose([f"training.start={tmp_path / 'home'}"])
    assert again["backbone"]["unet"]["block_out_channels"] == [8, 16]


def test_a_network_without_a_scheduler_asks_how_it_was_trained(tmp_path, x):
    unet, _ = unet2d(tmp_path / "p", DDPMScheduler())
    bare = f"training.start={tmp_path / 'p' / 'unet'}"
    with pytest.raises(UserError, match="no scheduler/scheduler_config.json beside it.*set backb"):
        compose([bare])
    chosen = ["method=naive", "backbone=unet2d", "backbone.parametrisation=edm", bare]
    denoiser = wrapped(compose(chosen))
    found = denoiser.backbone(x, torch.zeros(4), None)
    torch.testing.assert_close(found, unet(x, torch.zeros(4)).sample)


def test_names_of_attention_before_are_read(tmp_path, x):
    unet2d(tmp_path / "p", EDMEulerScheduler())
    config = compose(["method=naive", f"training.start={tmp_path / 'p'}"])
    expected = wrapped(config).state_dict()
    file = tmp_path / "p" / "unet" / "diffusion_pytorch_model.safetensors"
    then = {
        ".to_q.": ".query.",
        ".to_k.": ".key.",
        ".to_v.": ".value.",
        ".to_out.0.": ".proj_attn.",
    }
    old = {}
    for key, value in load_file(file).items():
        for new, name in then.items():
            key = key.replace(new, name)
        old[key] = value
    save_file(old, file)
    found = wrapped(config).state_dict()
    assert all(torch.equal(v, found[k]) for k, v in expected.items()) and ".query." in str([*old])


# -- refused ---------------------------------------------------------------------------------------


def refused_start(tmp_path, make):
    """Return the one line by which a training on 8x8 digits refuses a start."""
    place, overrides = make(tmp_path / "p")
    with pytest.raises(UserError) as caught:
        config = compose(["method=naive", f"training.start={place}", *overrides])
        method, trainer = build(config["method"]), build(config["training"])
        problem = trainer.problem(build_operator(config["operator"], SHAPE, 0), config)
        if (fault := start_fault(trainer.start, method, problem)) is not None:
            raise UserError(fault)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saved(to, overrides=(), **changes):
    make_prior(**changes).save(to)
    return to, overrides


def pipeline(to, overrides=(), scheduler=None, config=None, schedule=None, **changes):
    unet2d(to, scheduler or DDPMScheduler(), **changes)
    for file, given in (
        (to / "unet" / "config.json", config),
        (to / "scheduler" / "scheduler_config.json", schedule),
    ):
        file.write_text(json.dumps({**json.loads(file.read_text()), **(given or {})}))
    return to, overrides


REFUSED = {
    "nothing": (lambda p: (p, ()), "neither a prior (prior.yaml, weights.safetensors) nor a UNet"),
    "size": (
        lambda p: saved(p, shape=(1, 16, 16)),
        "the start makes images (1, 16, 16); the measurements are of images (1, 8, 8)",
    ),
    "channels": (lambda p: saved(p, shape=(3, 8, 8)), "the start makes images (3, 8, 8); the"),
    "backbone": (
        lambda p: saved(p, ["backbone=medium"]),
        "backbone=medium has hid_blocks=[2, 2, 2], and the start's [1, 1]; leave backbone out",
    ),
    "sigma_data": (
        lambda p: saved(p, ["training.sigma_data=0.4"]),
        "training.sigma_data=0.4, and the start has 0.5; leave it out",
    ),
    "condition": (
        lambda p: saved(p, condition=1),
        "the start's network is told 1 channels beside the image, and that of Naive 0",
    ),
    "channels of a network": (
        lambda p: pipeline(p, in_channels=3, out_channels=3),
        "the start makes images of 3 channels; the measurements are of images (1, 8, 8)",
    ),
    "channels out": (
        lambda p: pipeline(p, out_channels=2),
        "has 1 channels in and 2 out; a start has equal",
    ),
    "sides": (
        lambda p: pipeline(
            p,
            block_out_channels=(8,) * 5,
            down_block_types=("DownBlock2D",) * 5,
            up_block_types=("UpBlock2D",) * 5,
        ),
        "the start halves images 4 times: it takes sides that are multiples of 16",
    ),
    "another network": (
        lambda p: pipeline(p, config={"_class_name": "UNet2DConditionModel"}),
        "is a UNet2DConditionModel; a start is a UNet2DModel",
    ),
    "another backbone": (
        lambda p: pipeline(p, ["backbone=small"]),
        "backbone=small, and the start is a UNet2DModel; leave it out",
    ),
    "classes": (
        lambda p: pipeline(p, num_class_embeds=10),
        "num_class_embeds=10: a network that is told a class is no prior",
    ),
    "an unknown key": (
        lambda p: pipeline(p, config={"evil": 1}),
        "unknown key of unet 'evil'",
    ),
    "code in a key": (
        lambda p: pipeline(p, config={"act_fn": {"_target_": "os.system", "command": "true"}}),
        "act_fn is {'_target_': 'os.system', 'command': 'true'}; needed: plain values",
    ),
    "code deep in a key": (
        lambda p: pipeline(p, config={"sample_size": [[{"_target_": "os.system"}]]}),
        "sample_size is [[{'_target_': 'os.system'}]]; needed: plain values",
    ),
    "code in a schedule": (
        lambda p: pipeline(p, schedule={"beta_start": {"_target_": "os.system"}}),
        "beta_start is {'_target_': 'os.system'}; needed: plain values",
    ),
    "a network that no memory holds": (
        lambda p: pipeline(p, config={"block_out_channels": [1 << 20, 1 << 22]}),
        "its networks are larger than its",
    ),
    "other weights": (
        lambda p: pipeline(p, config={"block_out_channels": [8, 24]}),
        "the start's network is not that of Naive: its 'backbone.unet.",
    ),
    "timesteps that no memory holds": (
        lambda p: pipeline(p, schedule={"num_train_timesteps": 10**10}),
        "num_train_timesteps=10000000000; allowed: 2 to 100,000",
    ),
    "zero signal": (
        lambda p: pipeline(p, scheduler=DDPMScheduler(rescale_betas_zero_snr=True)),
        "rescale_betas_zero_snr: the last timestep has no noise level",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_start_that_does_not_fit_is_one_line(tmp_path, case):
    make, expected = REFUSED[case]
    assert expected in refused_start(tmp_path, make)


def test_weights_that_are_no_numbers_are_refused(home, tmp_path):
    shutil.copytree(home, tmp_path / "p")
    file = tmp_path / "p" / "weights.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, file)
    method, problem, data, _ = make_setting("naive")
    with pytest.raises(UserError, match="hold NaN or infinity"):
        make_trainer(1, start=str(tmp_path / "p")).fit(method, problem, data, 0)


@pytest.mark.parametrize(
    "edit",
    [
        lambda b: b["unet"].update(act_fn={"_target_": "os.system", "command": "true"}),
        lambda b: b["unet"].update(block_out_channels=[1 << 20, 1 << 22]),
        lambda b: b["unet"].update(evil=1),
        lambda b: b.update(parametrisation="ddpm", schedule={"num_train_timesteps": 10**10}),
        lambda b: b.update(sigma_data=0.7),
    ],
)
def test_a_strangers_prior_on_a_network_of_diffusers_is_data(tmp_path, x, edit):
    halves = "down_block_types: [DownBlock2D, DownBlock2D], up_block_types: [UpBlock2D, UpBlock2D]"
    wanted = f"backbone.unet={{block_out_channels: [8, 16], norm_num_groups: 4, {halves}}}"
    backbone = compose(["backbone=unet2d", wanted])["backbone"]
    with scoped_rng(0):
        prior = Prior(Denoiser(build_backbone(backbone, 3, 3, 0), 0.5), (3, 8, 8), backbone)
    prior.save(tmp_path / "p")
    y = x.expand(-1, 3, -1, -1)
    assert torch.equal(Prior.load(tmp_path / "p")(y, 0.3), prior(y, 0.3))
    card = tmp_path / "p" / "prior.yaml"
    values = yaml.safe_load(card.read_text())
    del values["sha256"]
    edit(values["backbone"])
    card.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="p' (is damaged|cannot be read): ") as caught:
        Prior.load(tmp_path / "p")
    assert "\n" not in str(caught.value)


# -- in a table ------------------------------------------------------------------------------------

SMALL = [
    *("training.device=cpu", "training.budget=64", "method=naive", "posterior.steps=2"),
    *("evaluation.test_images=8", "evaluation.draws=1", "evaluation.samples=20", "sampler.steps=2"),
    *("evaluation.sampling_seeds=[0]", "evaluation.features=pixels"),
]


@pytest.fixture(scope="module")
def records(home, tmp_path_factory):
    """Cells from nothing, from a prior that has seen no clean image, and from one that has."""
    out = tmp_path_factory.mktemp("runs")
    make_prior(about={**BLIND, "clean_images": "all"}).save(out / "oracle")
    found = {}
    for name, more in {
        "fresh": ["backbone.hid_channels=[8,16]"],
        "blind": [f"training.start={home}"],
        "clean": [f"training.start={out / 'oracle'}"],
    }.items():
        folder = CellFolder(out, compose([*SMALL, *more]))
        found[name] = run_cell(folder, Progress())
        assert found[name]["status"] == "done"
        files = folder.files
        assert not files.training.start.exists()
        about = Prior.load(files.prior).about
        assert about.get("start") == found[name].get("start")
        card = (files.prior / "README.md").read_text()
        assert ("| begun from |" in card) is (name != "fresh")
    return found


def test_a_record_and_its_table_say_what_a_training_began_from(records):
    assert [r.get("warning") for r in records.values()] == [
        records["fresh"]["warning"],
        *("+".join(filter(None, [records["fresh"]["warning"], "start"])) for _ in range(2)),
    ]
    sentence = records["blind"]["warned"]["start"]
    assert "by em on digits, inpainting: it has seen no clean image, 640 images" in sentence
    frame = summarise(tidy({k: [r] for k, r in records.items()}))
    line = frame.set_index("method")
    own = records["blind"]["training"]
    assert line.loc["blind", "train_seconds"] == pytest.approx(sum(own["seconds"].values()) + 12)
    flops = records["blind"]["costs"]["train_flops"]
    assert line.loc["blind", "train_flops"] == flops + 1e9
    assert line.loc["fresh", "train_flops"] == records["fresh"]["costs"]["train_flops"]
    assert own["images"] == 64  # the budget is counted anew
    assert tidy({"blind": [records["blind"]]})["images_seen"][0] == 704
    found = names(frame, ["fresh"])
    assert [n.endswith("‡") for n in found] == [False, False, True]


def test_a_clean_start_is_a_track_of_its_own(records):
    tracks = [track_of(r) for r in records.values()]
    assert (
        tracks[:2] == [0, 0] and tracks[2] == f"clean start {records['clean']['start']['hash'][:8]}"
    )
    assert told(tracks[2]).startswith("from a clean start") and told(50) == "with 50 clean images"
    pairs = compare({k: [r] for k, r in records.items()}, ())
    psnr = pairs[pairs["metric"] == "psnr"].set_index(["a", "b"])["family"].to_dict()
    assert psnr == {
        ("fresh", "blind"): "ranked",
        ("fresh", "clean"): "tracks",
        ("blind", "clean"): "tracks",
    }
    notes = list(_clean_starts({k: [r] for k, r in records.items()}))
    assert len(notes) == 1 and notes[0].startswith("‡ clean: clean start")


@pytest.mark.parametrize(("name", "status"), [("ambient_gan", "skipped"), ("observations", "done")])
def test_what_learns_no_denoiser_is_skipped_and_what_learns_nothing_stays(
    home, tmp_path, name, status
):
    chosen = [*SMALL[:2], f"method={name}", f"training.start={home}", *SMALL[3:]]
    record = run_cell(CellFolder(tmp_path, compose(chosen)), Progress())
    assert record["status"].startswith(status) and "start" not in record
    if status == "skipped":
        assert record["status"].endswith(
            "AmbientGAN learns no denoiser that could begin from a prior"
        )
