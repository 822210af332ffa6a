"""An operator whose constructor draws random numbers is one operator, and its code is known."""

import sys

import numpy as np
import pytest
import torch

from cleanprior.cells import CellFolder, Identity
from cleanprior.cells.identity import operator_code
from cleanprior.cells.run import Cell
from cleanprior.config import compose, registry
from cleanprior.operators.building import build_operator, state_hash
from cleanprior.seeding import generator_for

CODE = """
import random
import numpy as np, torch
from deepinv.physics import LinearPhysics
from cleanprior.operators import Operator


class Rows(LinearPhysics):
    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def A(self, x, **kwargs):
        return x.flatten(1) @ self.matrix.T

    def A_adjoint(self, y, **kwargs):
        return (y @ self.matrix).reshape(len(y), 1, 8, 8)


class Drawn(Operator):
    capabilities = frozenset({"fixed", "gaussian", "null_space"})

    def __init__(self, image_shape, m, sigma, file=None):
        matrix = torch.randn(m, 64) + np.random.rand() + random.random()
        super().__init__(Rows(matrix), image_shape, sigma)
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """An operator of another package, with its configuration."""
    (tmp_path / "mine.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "mine", None)
    del sys.modules["mine"]
    config = {"_target_": "mine.Drawn", "m": 9, "sigma": 0.1, "name": "drawn", "file": None}
    return config | {"capabilities": ["fixed", "gaussian", "null_space"]}


def test_it_is_the_same_however_often_it_is_built(stranger):
    first, second, other = (build_operator(stranger, (1, 8, 8), seed) for seed in (3, 3, 4))
    assert torch.equal(first.physics.matrix, second.physics.matrix)
    assert state_hash(first) == state_hash(second)
    assert not torch.equal(first.physics.matrix, other.physics.matrix)
    assert state_hash(first) != state_hash(other)


def test_building_leaves_the_global_generators_alone(stranger):
    before, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()
    build_operator(stranger, (1, 8, 8), 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == legacy).all()


def test_cells_of_one_configuration_have_one_operator(stranger, tmp_path):
    config = compose(["method=naive", "training.device=cpu"]) | {"operator": stranger}
    cells = [Cell(CellFolder(tmp_path / "runs", config)) for _ in range(2)]
    assert len({c.measurements("test").hash for c in cells}) == 1
    assert len({state_hash(c.operator) for c in cells}) == 1


def test_code_and_files_of_a_strangers_operator_are_part_of_the_cell(stranger, tmp_path):
    config = compose(["method=naive"])
    assert operator_code(config["operator"]) is None
    (tmp_path / "matrix.bin").write_bytes(b"one")
    mine = config | {"operator": stranger | {"file": str(tmp_path / "matrix.bin")}}
    names = [Identity(mine).evaluation]
    (tmp_path / "matrix.bin").write_bytes(b"two and more")
    names.append(Identity(mine).evaluation)
    (tmp_path / "mine.py").write_text(CODE.replace("torch.randn", "2 * torch.randn"))
    names.append(Identity(mine).evaluation)
    assert len(set(names)) == 3
    assert Identity(mine).evaluation == names[-1]


@pytest.mark.parametrize("name", registry.options("operator"))
def test_the_state_of_every_operator_is_read_before_and_after_a_call(name, make_operator):
    shape = (2, 8, 8) if name.startswith("mri") else (1, 8, 8)
    operator, again = make_operator(name, shape), make_operator(name, shape)
    assert state_hash(operator) == state_hash(again)
    params = operator.draw(2, generator_for(0, "state"))
    operator.A_adjoint(operator.A(torch.zeros(2, *shape), params), params)
    assert len(state_hash(operator)) == 16
