"""Damage to classifiers, features, distances that cells share, and to snapshots: made again."""

import pytest
import torch
from damage import cut, empty, flip, of_another, pickle_in, text, without_hash
from hostile import pipe

from cleanprior.cells.reading import read_sealed, sealed
from cleanprior.evaluation import references
from cleanprior.evaluation.metrics import features
from cleanprior.evaluation.metrics.generation import MeanStd
from cleanprior.training.checkpoint import read_tensors, write_tensors
from cleanprior.training.snapshots import snapshot_files

CACHED = {
    "flipped": flip,
    "cut": cut,
    "empty": empty,
    "a pickle": pickle_in,
    "a pipe": pipe,
    "of something else": of_another,
    "of other networks": lambda p: write_tensors(p, {"x": torch.zeros(2)}, {"of": p.stem}),
    "of NaN": lambda p: write_tensors(
        p, {k: v * float("nan") for k, v in read_tensors(p)[0].items()}, {"of": p.stem}
    ),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", CACHED)
def test_a_damaged_classifier_is_named_and_trained_again(
    digits_data, tmp_path, monkeypatch, caplog, kind
):
    monkeypatch.setattr(features, "STEPS", 2)
    first = features.Classifier.of(digits_data, tmp_path)
    (file,) = tmp_path.glob("classifier-*.safetensors")
    CACHED[kind](file)
    again = features.Classifier.of(digits_data, tmp_path)
    assert again.accuracy == first.accuracy
    assert all(torch.equal(v, first.net.state_dict()[k]) for k, v in again.net.state_dict().items())
    (line,) = [r.getMessage() for r in caplog.records if "computed again" in r.getMessage()]
    assert file.name in line and not (tmp_path / "canary").exists()
    caplog.clear()
    features.Classifier.of(digits_data, tmp_path)
    assert not caplog.records


class Slow:
    """Features that are worth keeping."""

    key = name = "slow"
    is_slow = True

    def with_scores(self, x):
        return x.flatten(1).double().numpy(), None


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", [k for k in CACHED if k != "of NaN"])
def test_damaged_features_are_named_and_computed_again(tmp_path, caplog, kind):
    x = torch.arange(12.0).reshape(3, 1, 2, 2)
    first = features.reference_features(Slow(), x, tmp_path)
    (file,) = tmp_path.glob("slow-*.safetensors")
    CACHED[kind](file)
    again = features.reference_features(Slow(), x, tmp_path)
    assert (again == first).all() and first.shape == (3, 4)
    assert file.name in caplog.text and "computed again" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        text,
        lambda p: p.write_text("[]"),
        lambda p: p.write_text(p.read_text().replace("0.5", "0.7")),
        lambda p: p.write_text(sealed(read_sealed(p) | {"of": "x", "mean": 9.0})),
        without_hash(lambda r: r.update(mean="x")),
    ],
)
def test_a_damaged_distance_is_computed_again(tmp_path, caplog, damage):
    def once():
        return references.remembered(tmp_path, "floor", ["a"], lambda: MeanStd(0.5, 0.25))

    first = once()
    (file,) = tmp_path.glob("floor-*.json")
    damage(file)
    assert once() == first == MeanStd(0.5, 0.25)
    assert "computed again" in caplog.text
    caplog.clear()
    assert once() == first and not caplog.records


@pytest.mark.parametrize("damage", [flip, cut, pipe, of_another])
def test_a_damaged_snapshot_is_left_out(tmp_path, caplog, damage):
    paths = [tmp_path / f"snapshot-{i:03d}.safetensors" for i in (1, 2)]
    for path in paths:
        write_tensors(path, {"a": torch.ones(4)}, {"of": "me", "step": 1})
    assert snapshot_files(tmp_path, "me") == paths
    damage(paths[0])
    assert snapshot_files(tmp_path, "me") == paths[1:]
    assert "it is left out" in caplog.text and paths[0].name in caplog.text
