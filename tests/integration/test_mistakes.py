"""Mistakes at the command line: one line that says what to do, exit code 2, nothing written."""

import json
import sys

import numpy as np
import pytest
import torch
import yaml

from cleanprior import cli
from cleanprior.commands.priors import destination, write_images
from cleanprior.diffusion.backbones import build_backbone
from cleanprior.diffusion.denoiser import Denoiser
from cleanprior.prior import Prior
from cleanprior.rendering import grid, rgb
from cleanprior.testing.parts import TINY

SMALL = ["posterior.steps=3", "sampler.steps=3"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a command in an empty folder, in this process; return its exit code and stderr."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["cleanprior", *arguments])
        capsys.readouterr()
        code = cli._run()
        told = capsys.readouterr()
        return code, told.err, told.out

    return command


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """A saved prior that says that it was trained on digits."""
    folder = tmp_path_factory.mktemp("priors") / "a prior = (1)"
    config = {"operator": {"name": "inpainting", "p": 0.25}, "data": {"name": "digits"}}
    made = Prior(Denoiser(build_backbone(TINY, 1, 1, 0), 0.5, 0), (1, 8, 8), TINY)
    made.about = {"config": config}
    made.save(folder)
    return folder


MISTAKES = [
    # names
    (["trian"], "No such command 'trian'"),
    (["train", "--forse"], "--forse"),
    (["list", "things"], "unknown list 'things'; installed: "),
    (["train", "method=ambiant"], "Did you mean 'ambient'?"),
    (["train", "training.budgt=1"], "Did you mean 'training.budget'?"),
    (["train", "method=naive", "method=em"], "method is given twice: naive, em; give one"),
    (["train", "method"], "'method' is not an override; write key=value"),
    (["bench", "--methods", "ambiant"], "Did you mean 'ambient'?"),
    (["bench", "--operator", "inpaintin"], "Did you mean 'inpainting'?"),
    (["bench", "--data", "digit"], "Did you mean 'digits'?"),
    (["bench", "--bench", "smoky"], "Did you mean 'smoke'?"),
    (["bench", "operator.q=0.5"], "unknown key 'operator.q'; allowed here: p, per_channel, sigma"),
    (["bench", "--force", "em_mmps"], "unknown row to force 'em_mmps'"),
    (["bench", "nonsense"], "'nonsense' is not an override"),
    (["bench", "--table", "em_table9"], "unknown table 'em_table9'"),
    (["bench", "--table", "em_table1", "--scale", "tpu"], "unknown scale 'tpu'"),
    (["bench", "--bench", ""], "unknown bench ''"),
    (["bench", "--methods", ""], "--methods '' names nothing"),
    (["bench", "--methods", " , "], "--methods ' , ' names nothing"),
    (["bench", "--operator", ","], "--operator ',' names nothing"),
    (["bench", "--data", ""], "unknown data set ''"),
    (["bench", "--force", ""], "--force '' names nothing"),
    (["bench", "operator=blur"], "'operator=blur': the bench takes it as --operator blur"),
    (["bench", "data=mnist"], "'data=mnist': the bench takes it as --data mnist"),
    (["bench", "method.chunk=1"], "would set one method for all rows"),
    (["bench", "posterior=dps", "posterior=ddrm"], "posterior is given twice: dps, ddrm"),
    # numbers
    (["train", "seed=abc"], "seed=abc; allowed: a whole number from 0"),
    (["train", "training.batch=32.5"], "training.batch=32.5; allowed: a whole number"),
    (["train", "operator.p=1/2"], "Did you mean 0.5?"),
    (["train", "operator.p=nan"], "operator.p=nan; allowed: a finite number"),
    (["train", "method=naive", "operator.p=1"], "operator.p=1; allowed: [0, 1)"),
    (["train", "method=naive", "training.budget=1"], "needed: 1 <= batch <= budget"),
    (["train", "method=naive", "training.lr=-1"], "training.lr=-1; allowed: above 0"),
    (["train", "method=naive", "training.log_every=0"], "log_every=0; allowed: at least 1"),
    (["train", "method=naive", "training.clip=0"], "training.clip=0; allowed: above 0"),
    (
        ["train", "method=naive", "training.device=tpu"],
        "=tpu; allowed: auto, cpu, cuda",
    ),
    (["train", "method=naive", "sampler.steps=1"], "steps=1; allowed: at least 2"),
    (["bench", "operator.sigma=-1"], "operator.sigma=-1; allowed: at least 0"),
    (["bench", "--operator", "blur", "operator.kernel_size=9"], "does not fit images of 8x8"),
    (["bench", "training.budget=1"], "needed: 1 <= batch <= budget"),
    (["bench", "--seeds", "0"], "seeds=0; allowed: at least 1"),
    (["bench", "--seeds", "-1"], "seeds=-1; allowed: a count from 1"),
    (["bench", "--seeds", "7,7"], "seeds=7,7 names a seed twice"),
    (["bench", "--seeds", "7,-8"], "seeds=7,-8; allowed: a count"),
    (["bench", "--seeds", "a"], "seeds=a; allowed: a count"),
    (["bench", "--seeds", "1.5"], "seeds=1.5; allowed: a count"),
    (["bench", "--seeds", ""], "seeds=; allowed: a count"),
    (["bench", "--seeds", "2026"], "seeds=2026; allowed: at least 1 and at most 1000"),
    (["bench", "--part", "9/8"], "part=9/8; allowed: NUMBER/OF"),
    (["sample", "PRIOR", "-n", "0"], "-n"),
    (["sample", "PRIOR", "-n", "many"], "-n"),
    (["sample", "PRIOR", "--seed", "-1"], "--seed"),
    (["snapshots", "method=naive", "-n", "1"], "-n"),
    # paths
    (["train", "--out", "FILE"], "'FILE' is not a folder; name another"),
    (["bench", "--out", "FILE/runs"], "'FILE' is not a folder; name another"),
    (["bench", "--out", ""], "'' is not a path"),
    (["train", "data=folder"], "data=folder needs data.path=FOLDER"),
    (["bench", "--data", "folder"], "data=folder needs data.path=FOLDER"),
    (["bench", "--data", "folder", "data.path=nowhere"], "'nowhere' is not a folder"),
    (["train", "data=folder", "data.path="], "data.path= has no value; allowed: a path"),
    (["train", "data=folder", "data.path=no (such) = #1"], "'no (such) = #1' is not a folder"),
    (["train", "data=folder", "data.path=FILE"], "'FILE' is not a folder"),
    (["train", "data=arrays", "data.path=FILE"], "FILE"),
    (["train", "data=zip", "data.path=FILE"], "'FILE' is damaged or not a readable zip"),
    (["measure", "--to", "mine.txt"], "--to mine.txt: its ending is none of .npz"),
    (["measure", "--to", "FILE/mine.npz"], "'FILE' is not a folder"),
    (["sample", "nowhere"], "'nowhere' is not a saved prior: 'prior.yaml' is missing"),
    (["sample", "FILE"], "'FILE' is not a saved prior"),
    (["sample", "PRIOR", "--to", "mine.jpg"], "images are written as .npz and .png"),
    (["sample", "PRIOR", "--to", "FILE/mine"], "'FILE' is not a folder"),
    (["restore", "nowhere"], "'nowhere' is not a saved prior"),
    (["restore", "PRIOR", "--operator", "inpaintin"], "Did you mean 'inpainting'?"),
    (["restore", "PRIOR", "--measurements", "nowhere.npz"], "nowhere.npz"),
    (["restore", "PRIOR", "--measurements", "FILE"], "FILE"),
    (["restore", "PRIOR", "posterior=dsp"], "Did you mean 'dps'?"),
    (["restore", "PRIOR", "data=mnist", "data.resolution=9"], "resolution"),
    (["restore", "PRIOR", "--operator", "box", "operator=blur"], "operator is given twice"),
    (["report", "nowhere"], "'nowhere' holds no request.json"),
    (["report", "FILE"], "'FILE' holds no request.json"),
    (["snapshots", "method=naive"], "holds no snapshots"),
    (["snapshots", "method=naive", "--to", "FILE/x"], "'FILE' is not a folder"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(run, prior, tmp_path, arguments, message):
    (tmp_path / "FILE").write_text("no folder")
    code, told, _ = run(*(str(prior) if a == "PRIOR" else a for a in arguments))
    assert code == 2, told
    assert message in told
    assert told.startswith("error: ") and told.count("\n") == 1, told
    assert [p.name for p in tmp_path.iterdir()] == ["FILE"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 9}, "has format 9; this version reads formats 1 and 2"),
        ({"backbone": {"_target_": "os.system"}}, "os.system"),
        ({"backbone": {**TINY, "hid_blocks": "x"}}, "error: "),
        ({"image_shape": "wide"}, "is damaged"),
        ({"about": ["no keys"]}, "is damaged: what it says of its origin has no keys"),
        ({"sigma_data": None}, "is damaged"),
        ({"weights_sha256": "0"}, "is damaged: its sha256 is not the one"),
        ("[1, 2]", "is damaged: prior.yaml holds no keys"),
        ("{", "is damaged"),
        (b"\xff\xfe\x00", "is damaged"),
    ],
)
def test_a_damaged_prior_is_one_line(run, prior, tmp_path, change, message):
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("prior.yaml", "weights.safetensors"):
        (folder / name).write_bytes((prior / name).read_bytes())
    card = folder / "prior.yaml"
    if isinstance(change, dict):
        said = yaml.safe_load(card.read_text())
        del said["sha256"]
        change = yaml.safe_dump(said | change)
    card.write_bytes(change if isinstance(change, bytes) else change.encode())
    code, told, _ = run("sample", str(folder), "-n", "1", *SMALL)
    assert code == 2 and message in told and told.count("\n") == 1, told


@pytest.mark.parametrize("request_", ["[]", '{"bench": "default"}', '{"bench": 3, "table": null}'])
def test_a_damaged_request_is_one_line(run, tmp_path, request_):
    folder = tmp_path / "tables" / "x"
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(request_)
    code, told, _ = run("report", str(folder))
    assert code == 2 and "request.json' is damaged" in told and told.count("\n") == 1, told


@pytest.mark.parametrize(
    ("to", "written"),
    [
        (None, "samples"),
        ("draws/sigma0.1", "draws/sigma0.1"),
        ("draws/sigma0.2.npz", "draws/sigma0.2"),
        ("mine.PNG", "mine"),
        (" é (1)=#, ", " é (1)=#, "),
        (".hidden", ".hidden"),
        ("here", "here/samples"),
    ],
)
def test_where_samples_go(run, prior, tmp_path, to, written):
    (tmp_path / "here").mkdir()
    options = [] if to is None else ["--to", to]
    code, told, shown = run("sample", str(prior), "-n", "2", *options, "sampler.steps=3")
    assert code == 0, told
    assert np.load(tmp_path / f"{written}.npz")["x"].shape == (2, 1, 8, 8)
    assert (tmp_path / f"{written}.png").is_file() and f"{written}.npz" in shown


def test_other_names_stay_when_a_file_is_replaced(tmp_path):
    for value, name in ((0.0, "sigma0.1"), (1.0, "sigma0.2"), (0.5, "sigma0.1")):
        write_images(np.full((1, 1, 2, 2), value), destination(tmp_path / name, "samples"))
    assert np.load(tmp_path / "sigma0.1.npz")["x"].max() == 0.5
    assert np.load(tmp_path / "sigma0.2.npz")["x"].max() == 1
    assert len(list(tmp_path.iterdir())) == 4


def test_the_home_folder_is_meant_by_a_tilde(run, prior, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert run("sample", str(prior), "-n", "1", "--to", "~/x", "sampler.steps=3")[0] == 0
    assert (tmp_path / "home" / "x.npz").is_file()


def test_a_prior_restores_what_it_was_trained_on(run, prior, tmp_path):
    code, told, shown = run("restore", str(prior), "-n", "2", *SMALL)
    assert code == 0 and "2 restorations by mmps" in shown, told
    assert np.load(tmp_path / "restored.npz")["x"].shape == (2, 1, 8, 8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_images_of_any_number_of_channels_are_pictures(tmp_path, channels):
    import io

    from PIL import Image

    x = torch.linspace(-1, 1, 3 * channels * 16).reshape(3, channels, 4, 4).numpy()
    shown = rgb(x)
    assert shown.shape == (3, 4, 4, 3) and shown.min() >= 0 and shown.max() <= 1
    if channels == 2:
        magnitude = np.hypot(x[:, 0], x[:, 1])
        assert np.allclose(shown[..., 0], magnitude / magnitude.max())
    elif channels > 2:
        assert np.allclose(shown, (x[:, :3].transpose(0, 2, 3, 1) + 1) / 2)
    picture = Image.open(io.BytesIO(grid(x, columns=2, side=8, gap=1)))
    sheets = 2 if channels == 2 else 1  # magnitudes, and phases below
    assert picture.mode == "RGB" and picture.size == (2 * 9 + 1, sheets * 2 * 9 + 1)


def test_what_is_not_a_number_is_black():
    x = np.array([np.nan, np.inf, -np.inf, 9.0], np.float32).reshape(1, 1, 2, 2)
    assert rgb(x)[0, :, :, 0].tolist() == [[0, 1], [0, 1]]


def test_seeds_are_a_count_or_a_list():
    from cleanprior.benchmarks.description import bench
    from cleanprior.benchmarks.plan import chosen_seeds, make_plan

    assert chosen_seeds("3") == [0, 1, 2] and chosen_seeds(2) == [0, 1]
    assert chosen_seeds("7,8, 9") == [7, 8, 9] and chosen_seeds("7,") == [7]
    assert chosen_seeds([4]) == [4]
    plan = make_plan(bench("default"), ["naive"], seeds="7,11", with_references=False)
    assert [c["seed"] for c in plan.problems[0].cells["naive"]] == [7, 11]
    json.dumps(plan.problems[0].cells)


def test_a_reader_that_goes_away_is_no_error(tmp_path):
    """As in ``cleanprior bench | head -1``: everything after the first line is still done."""
    import subprocess

    code = (
        "import sys\n"
        "from cleanprior.streams import lasting\n"
        "sys.stdout = lasting(sys.stdout)\n"
        "for i in range(20000): print('a line of the table', i)\n"
        "sys.stdout.flush()\n"
        f"open({str(tmp_path / 'report.html')!r}, 'w').write('whole')\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    with child.stderr:
        assert child.wait(60) == 0 and child.stderr.read() == b""
    assert (tmp_path / "report.html").read_text() == "whole"
