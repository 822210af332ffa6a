"""Which method may be trained on what, and the sentence shown where it may not."""

import re

import pytest

from cleanprior.config import build, compose, registry
from cleanprior.config.capabilities import (
    CAPABILITIES,
    CLEAN,
    EARLIER,
    NEEDS,
    ProblemFacts,
    earlier,
    refusal,
)
from cleanprior.training.warning import codes

INPAINTING = ("random", "mask", "further", "svd", "same_shape", "gaussian")
BLUR = ("fixed", "svd", "same_shape", "gaussian", "null_space")


def facts(capabilities=INPAINTING, sigma=0.0, operator="inpainting"):
    return ProblemFacts(operator, frozenset(capabilities), sigma)


def refused(needs, problem, **values):
    """Return why a method of these needs is refused."""
    return refusal({"name": "mine", "needs": needs, **values}, problem)


@pytest.mark.parametrize(
    ("need", "holds", "fails", "sentence"),
    [
        (
            "NOISE_FREE",
            facts(),
            facts(sigma=0.2),
            r"noisy measurements \(sigma_y=0\.2\); set operator\.sig",
        ),
        ("LEVEL", facts(sigma=0.2), facts(), "divides by sigma_y.2 and sigma_y is 0$"),
        ("RANDOM", facts(), facts(BLUR, operator="blur"), "with one fixed blur"),
        ("FURTHER", facts(), facts(BLUR, operator="blur"), "no further corruption for blur"),
        ("NOISY", facts(sigma=0.2), facts(), r"sigma_y is 0; set operator\.sigma above 0"),
        ("IDENTITY", facts(("identity",)), facts(), "inpainting is not the identity"),
        ("MASK", facts(), facts(BLUR, operator="blur"), "blur is not a mask"),
        ("SVD", facts(), facts(()), "inpainting has none"),
        ("SHAPE", facts(), facts(()), "with inpainting it has not"),
        ("GAUSS", facts(), facts(()), "inpainting has another"),
    ],
)
def test_a_need_that_does_not_hold_is_the_reason(need, holds, fails, sentence):
    assert refused([need], holds) is None
    found = refused([need], fails)
    assert found.code == need
    assert found.reason.startswith("mine ")
    assert re.search(sentence, found.reason)


def test_every_need_has_its_own_sentence_and_a_known_capability():
    assert len({n.text for n in NEEDS.values()}) == len(NEEDS)
    assert {n.condition for n in NEEDS.values() if isinstance(n.condition, str)} <= set(
        CAPABILITIES
    )


def test_the_first_need_that_fails_is_shown():
    blurred = ProblemFacts("blur", frozenset(BLUR), 0.1)
    assert refused(["NOISE_FREE", "RANDOM"], blurred).code == "NOISE_FREE"
    assert refused(["RANDOM", "NOISE_FREE"], blurred).code == "RANDOM"


def test_an_unknown_need_is_an_error():
    with pytest.raises(ValueError, match="unknown need 'NOSE' of mine; allowed: RANDOM"):
        refused(["NOSE"], facts())


def test_a_value_waives_a_need():
    waived = {"LEVEL": "floor=(0, inf)", "IDENTITY": "mode=ignore"}
    for value, code in ((0.1, None), (0, "LEVEL"), (None, "LEVEL"), ("none", "LEVEL")):
        found = refused(["LEVEL"], facts(), unless=waived, floor=value)
        assert (found.code if found else None) == code, value
    assert refused(["LEVEL"], facts(), unless=waived, floor=0).reason.endswith(
        "sigma_y is 0; set method.floor above 0"
    )
    assert refused(["IDENTITY"], facts(), unless=waived, mode="ignore") is None
    assert refused(["IDENTITY"], facts(), unless=waived, mode="refuse").code == "IDENTITY"
    assert refused(["IDENTITY", "SVD"], facts(()), unless=waived, mode="ignore").code == "SVD"


def test_clean_images_need_a_data_set_that_has_them():
    given = ProblemFacts("inpainting", frozenset(INPAINTING), 0.0, "mine", has_clean=False)
    found = refused([], given, clean_images=50)
    assert found.code == CLEAN and "starts from clean images (50), and data=mine" in found.reason
    for count, problem in ((0, given), ("0", given), (50, facts()), ("all", facts())):
        assert refused([], problem, clean_images=count) is None


def test_earlier_names_of_needs_are_known_and_are_those_of_cells_on_disk():
    blurred = facts(BLUR, 0.1)
    for now, then in EARLIER.items():
        assert then not in NEEDS and earlier([now, "SVD"]) == [then, "SVD"]
        for problem in (blurred, facts()):
            assert refused([then], problem) == refused([now], problem)


@pytest.mark.parametrize("sigma", ["0", "0.1"])
def test_warnings_name_what_is_not_identifiable_and_the_floor(make_operator, make_problem, sigma):
    floor = "floor" if sigma == "0" else ""
    for method, operator, told in (
        ("naive", "denoising", ""),
        ("naive", "blur", "null"),
        ("flowdiff", "inpainting", floor),
        ("em_mmps", "blur", f"null+{floor}".rstrip("+")),
        ("em", "blur", "null"),  # its floor is 0
    ):
        built = build(compose([f"method={method}"])["method"])
        problem = make_problem(make_operator(operator, (1, 8, 8), f"sigma={sigma}"))
        assert codes(built.warnings(problem)) == told, (method, operator)


@pytest.mark.parametrize("method", sorted(registry.methods().keys() - registry.presets().keys()))
@pytest.mark.parametrize("operator", sorted(registry.options("operator")))
def test_the_class_and_its_yaml_refuse_the_same(make_operator, make_problem, method, operator):
    for sigma in ("0", "0.1"):
        part = compose([f"method={method}"])["method"]
        built = build(part)
        shape = (2 if operator.startswith("mri") else 1, 8, 8)
        made = make_operator(operator, shape, f"sigma={sigma}")
        described = registry.read("operator", operator)
        light = refusal(
            part, ProblemFacts.of({**described, "name": operator, "sigma": float(sigma)})
        )
        assert (built.supports(make_problem(made)) is None) == (light is None)
