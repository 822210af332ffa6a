"""A cell knows its paths and hashes, what made its record, and its names of before."""

import ast
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from cleanprior.benchmarks import description, runner
from cleanprior.benchmarks.plan import make_plan
from cleanprior.benchmarks.tables import notes
from cleanprior.benchmarks.tables.summary import codes_of

from cleanprior.cells import CellFolder, Identity, code, identity
from cleanprior.cells.code import method_code
from cleanprior.cells.migration import take_over
from cleanprior.cells.record import has_other_code, read_record, training_code, write_record
from cleanprior.config import compose
from cleanprior.progress import Progress

ROOT = Path(__file__).parents[2]
TINY = [
    "training.device=cpu",
    "training.budget=64",
    "backbone.hid_channels=[8,8]",
    "evaluation.test_images=8",
    "evaluation.draws=1",
    "evaluation.samples=20",
    "evaluation.sampling_seeds=[0]",
    "evaluation.features=pixels",
]


@pytest.fixture
def mine(tmp_path):
    """A cell of a user's own file."""
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "x.npy", images)
    chosen = ["method=naive", "data=arrays", f"data.path={tmp_path / 'x.npy'}"]
    return CellFolder(tmp_path / "runs", compose([*chosen, *TINY]))


def test_a_cell_computes_each_hash_once(mine, monkeypatch):
    from cleanprior.cells.run import run_cell

    computed, read = [], []
    parts, fingerprint = Identity.parts, identity.fingerprint

    def count_parts(self, is_training=False):
        computed.append(is_training)
        return parts(self, is_training)

    def count_files(*given):
        read.append(given)
        return fingerprint(*given)

    monkeypatch.setattr(Identity, "parts", count_parts)
    monkeypatch.setattr(identity, "fingerprint", count_files)
    record = run_cell(mine, Progress())
    assert record["status"] == "done"
    assert sorted(computed) == [False, True] and len(read) == 1
    assert record["cell"] == mine.identity.evaluation and mine.pictures.is_file()
    assert record["code"]["method"] == mine.code == mine.files.training.code.read_text()
    assert record["code"]["stages"] == identity.STAGES


def test_a_release_trains_nothing_again_and_a_stage_does(mine, monkeypatch):
    def hashes():
        found = Identity(mine.config)
        return found.measurements("train", "state"), found.training, found.evaluation

    before = hashes()
    for module in ("cleanprior", "cleanprior.version", "cleanprior.cells.run"):
        __import__(module)
        monkeypatch.setattr(sys.modules[module], "__version__", "99.0")
    assert hashes() == before
    for count, stage in enumerate(identity.STAGES):  # each also changes what comes after it
        with monkeypatch.context() as patch:
            patch.setitem(identity.STAGES, stage, 2)
            same = [a == b for a, b in zip(before, hashes(), strict=True)]
        assert same == [i < count for i in range(3)], stage


def edit(monkeypatch, name):
    """Let a source file have one line more, without touching it."""
    read = Path.read_bytes

    def edited(path):
        return read(path) + (b"\nEDITED = 1\n" if path.name == name else b"")

    monkeypatch.setattr(Path, "read_bytes", edited)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("bound.py", {"flowdiff"}),
        ("steps.py", {"em", "em_mmps"}),
        ("masked_loss.py", {"masked_loss"}),
        ("trainer.py", set()),  # the core: its stages tell
    ],
)
def test_a_method_is_its_module_and_what_it_imports_of_its_room(monkeypatch, name, changed):
    methods = ("flowdiff", "em", "em_mmps", "masked_loss", "naive", "oracle")
    before = {m: method_code(compose([f"method={m}"])) for m in methods}
    edit(monkeypatch, name)
    after = {m: method_code(compose([f"method={m}"])) for m in methods}
    assert {m for m in methods if after[m] != before[m]} == changed
    assert "torch" not in vars(code)


@pytest.mark.parametrize(
    ("edited", "is_same"),
    [
        (b'"""Better."""\nimport os  # why\n\n\nclass A:\n    """B."""\n\n    x = "# 1"\n', True),
        (b'import os\nclass A:\n    x = "# 1"  # one\n', True),
        (b'import os\nclass A:\n    x = "# 2"\n', False),
        (b'import os\nclass A:\n  x = "# 1"\n', False),
        (b'import sys\nclass A:\n    x = "# 1"\n', False),
    ],
)
def test_words_are_no_code(edited, is_same):
    source = b'"""A."""\n\nimport os\nclass A:\n    """Some\n\n    words.\n    """\n    x = "# 1"\n'
    assert (code.statements(source) == code.statements(edited)) == is_same


def test_a_source_that_cannot_be_read_is_taken_as_it_is():
    for source in (b"def f(:\n", b"\xff = 1\n", b"x = (\n", b"\0"):
        assert code.statements(source) == source


def test_a_strangers_method_is_all_of_its_package(tmp_path, monkeypatch):
    package = tmp_path / "theirs_all"
    (package / "inside").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inside" / "__init__.py").write_text("")
    (package / "inside" / "method.py").write_text(
        "raise RuntimeError\ndef f():\n    from cleanprior.methods.em.steps import drift\n"
    )
    (package / "other.py").write_text("A = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = compose(["method=naive"])
    config["method"] = config["method"] | {"_target_": "theirs_all.inside.method.Mine"}
    hashes = [method_code(config)]
    (package / "other.py").write_text("A = 2\n")
    hashes.append(method_code(config))
    edit(monkeypatch, "steps.py")
    hashes.append(method_code(config))
    config["operator"] = config["operator"] | {"_target_": "theirs_all.other.Operator"}
    assert len(set(hashes)) == 3 and method_code(config) == hashes[-1]


def finished(cell):
    """Write a record as a training with the installed code does."""
    code = {"method": training_code(cell.files.training, cell.code)}
    rows = {"config": cell.config, "measurements_sha256": "0" * 64, "rows": []}
    write_record(cell, {"status": "done", "code": code, "warning": "floor", **rows})


def test_a_row_of_other_code_says_so(tmp_path, monkeypatch):
    plan = make_plan(description.bench("default"), ["flowdiff", "naive"], with_references=False)
    (problem,) = plan.problems
    for config, *_ in problem.cells.values():
        finished(CellFolder(tmp_path, config))
    found = runner.records(problem, tmp_path)
    assert {r["warning"] for cells in found.values() for r in cells if r["status"] == "done"} == {
        "floor"
    }
    edit(monkeypatch, "bound.py")
    found = runner.records(problem, tmp_path)
    told = {m: list(codes_of(cells[0])) for m, cells in found.items()}
    assert told["flowdiff"] == ["floor", "code"] and told["naive"] == ["floor"]
    assert any(
        line.startswith("[code] flowdiff: trained by other code of the method than is installed")
        for line in notes._codes(found)
    )
    # What is evaluated anew was still trained by the code of before.
    cell = CellFolder(tmp_path, problem.cells["flowdiff"][0])
    cell.files.training.checkpoint.write_bytes(b"")
    finished(cell)
    assert has_other_code(cell, read_record(cell))


def as_before(cell):
    """Rename a cell's files to the names that version 0.1.0 gave them."""
    training, evaluation = (
        identity.digest(["0.1.0", cell.identity.parts(is_training)])
        for is_training in (True, False)
    )
    name = cell.name_of(training)
    record = json.loads(cell.record.read_text())
    record["cell"] = evaluation
    method = cell.config["method"]["_target_"].rpartition(".")[0]
    from cleanprior.config.registry import module_hash

    record["code"] = {"cleanprior": "0.1.0", "method_sha256": module_hash(method)}
    cell.record.unlink()
    training_files = cell.files.training
    for path in (training_files.code, training_files.job, training_files.outcome):
        path.unlink()
    for path in training_files.folder.iterdir():
        path.rename(cell.path / path.name)
    training_files.folder.rmdir()
    cell.files.record(evaluation).write_text(json.dumps(record))
    cell.pictures.rename(cell.pictures_of(name, evaluation))
    for split in ("train", "test"):
        (path,) = (cell.out / "measurements").glob(f"{split}-*")
        named = identity.digest(["0.1.0", cell.identity.measured(""), split])
        path.rename(cell.measurements(split, named))
    cell.path.rename(cell.cells / name)
    return name, evaluation


def tree(out):
    since = ("job.json", "outcome.json")
    return {
        str(p.relative_to(out)): p.read_bytes()
        for p in out.rglob("*")
        if p.is_file() and p.name not in since
    }


def test_a_folder_of_an_earlier_version_is_taken_over_and_nothing_is_trained(
    mine, monkeypatch, capsys
):
    from cleanprior.cells.run import Cell, run_cell
    from cleanprior.training.trainer import Trainer

    run_cell(mine, Progress())
    now = tree(mine.out)
    name, evaluation = as_before(mine)
    assert read_record(mine) is None
    # An interruption at any step is made good by the next call.
    for left in range(3):
        out = mine.out.with_name(f"interrupted{left}")
        shutil.copytree(mine.out, out)
        cell = CellFolder(out, mine.config)
        if left > 0:
            (cell.cells / name).rename(cell.path)
        if left > 1:
            cell.pictures_of(name, evaluation).rename(cell.pictures)
        assert take_over([cell]) == 1 and take_over([cell]) == 0
        assert tree(out).keys() >= {k for k in now if not k.startswith("measurements")}
        assert not has_other_code(cell, read_record(cell))
        assert not (cell.cells / name).exists() and read_record(cell)["cell"] != evaluation
    assert take_over([mine]) == 1

    def fit(*args):
        raise AssertionError("trained again")

    monkeypatch.setattr(Trainer, "fit", fit)
    assert read_record(mine)["status"] == "done"
    for split in ("train", "test"):
        Cell(mine).measurements(split)
    assert tree(mine.out).keys() == now.keys()
    changed = {k for k, v in tree(mine.out).items() if v != now[k]}
    assert changed == {str(mine.record.relative_to(mine.out))}


#: Names below a folder of runs, and who may spell them.
NAMES = r"cells|pictures|features|measurements|tables|prior|snapshots|round|error\.txt|code\.txt"
NAMES += r"|checkpoint\.safetensors|snapshots\.(csv|png)|request\.json|report\.html|record-.*"
SPELLERS = {"cleanprior/cells/folder.py", "benchmarks/places.py"}


def spelled(source):
    """Yield the names that a source joins to a path, or looks for below one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            found = node.right
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("glob", "joinpath"):
            found = node.args[0]
        else:
            continue
        first = found.values[0] if isinstance(found, ast.JoinedStr) else found
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            name = first.value.removeprefix("*/").split("/")[0]
            if re.fullmatch(NAMES, name):
                yield name


def test_names_below_a_folder_of_runs_are_spelled_in_one_place():
    found = {}
    for room in ("cleanprior", "methods", "benchmarks"):
        for path in sorted((ROOT / room).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            is_scratch = name.startswith("cleanprior/testing/")  # what a contract test throws away
            if not is_scratch and (names := set(spelled(path.read_text()))):
                found[name] = names
    assert found.keys() == SPELLERS, found
    assert {"cells", "pictures", "record-"} <= found["cleanprior/cells/folder.py"]


def test_code_that_trains_the_same_weights_puts_no_record_in_doubt(mine, monkeypatch):
    now = mine.code
    monkeypatch.setattr("cleanprior.cells.code.EQUAL", {"first": "second", "second": now})
    for given, is_other in (("first", False), ("second", False), (now, False), ("third", True)):
        assert has_other_code(mine, {"code": {"method": given}}) == is_other, given
    assert not has_other_code(mine, {})  # a record of nobody's training
