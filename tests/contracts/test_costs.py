"""What a run cost: energy counters that wrap, hide and disappear; memory that is measured."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cleanprior.costs import Energy, PeakMemory


def package(folder: Path, name: str, joules: float, limit: float = 100.0) -> None:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{int(limit * 1e6)}\n")


def test_joules_add_up_over_packages_and_around_the_end_of_a_counter(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 90)
    package(tmp_path, "intel-rapl:1", 10)
    package(tmp_path, "intel-rapl:0:0", 5)  # a part of package 0: counted there already
    energy = Energy(tmp_path)
    package(tmp_path, "intel-rapl:0", 20)  # wrapped at 100: 30 spent
    package(tmp_path, "intel-rapl:1", 14)
    package(tmp_path, "intel-rapl:0:0", 50)
    assert energy.spent()["cpu"] == pytest.approx(34)
    assert energy.spent()["cpu"] == 0


def test_a_counter_that_cannot_be_read_is_none_and_not_zero(tmp_path: Path) -> None:
    assert Energy(tmp_path).spent()["cpu"] is None
    package(tmp_path, "intel-rapl:0", 1)
    energy = Energy(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert energy.spent()["cpu"] is None
    package(tmp_path, "intel-rapl:0", 7)
    assert energy.spent()["cpu"] is None, "what was spent in between is not known"


def test_joules_of_the_gpu_are_those_of_the_card_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    millijoules = {"GPU-b": 5_000}
    fake = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: millijoules[handle],
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    cards = [SimpleNamespace(uuid="a"), SimpleNamespace(uuid="b")]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: cards[i])
    energy = Energy(Path("/nowhere"))
    millijoules["GPU-b"] = 12_500
    assert energy.spent() == {"cpu": None, "gpu": 7.5}


@pytest.mark.skipif(sys.platform != "linux", reason="the mark is Linux's")
def test_peak_memory_sees_what_was_held_for_a_moment() -> None:
    memory = PeakMemory()
    before = memory.cpu_mb()
    assert before is not None
    held = torch.ones(64, 2**20)  # 256 MB
    del held
    after = memory.cpu_mb()
    assert after is not None and after - before > 200
