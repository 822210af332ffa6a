"""Which method may be trained on what, and the sentence shown where it may not."""

import re

import pytest

from cleanprior import registry
from cleanprior.capabilities import CAPABILITIES, NEEDS, Facts, facts_of, refusal, warning
from cleanprior.config import build, compose

INPAINTING = ("random", "mask", "further", "svd", "same_shape", "gaussian")
BLUR = ("fixed", "svd", "same_shape", "gaussian", "null_space")


def facts(capabilities=INPAINTING, sigma=0.0, floor=0.0, operator="inpainting"):
    return facts_of(operator, capabilities, sigma, floor)


@pytest.mark.parametrize(
    ("need", "holds", "fails", "sentence"),
    [
        (
            "NOISE",
            facts(),
            facts(sigma=0.2),
            r"noisy measurements \(sigma_y=0\.2\); set operator\.sig",
        ),
        ("SIGMA0", facts(sigma=0.2), facts(), r"sigma_y is 0; set method\.sigma_floor"),
        ("SIGMA0", facts(floor=0.1), facts(), "divides by sigma_y"),
        ("FIXED", facts(), facts(BLUR, operator="blur"), "with one fixed blur"),
        ("FURTHER", facts(), facts(BLUR, operator="blur"), "no further corruption for blur"),
        ("NOISY", facts(sigma=0.2), facts(floor=0.1), r"sigma_y is 0; set operator\.sigma above 0"),
        ("IDENTITY", facts(("identity",)), facts(), "inpainting is not the identity"),
        ("MASK", facts(), facts(BLUR, operator="blur"), "blur is not a mask"),
        ("SVD", facts(), facts(()), "inpainting has none"),
        ("SHAPE", facts(), facts(()), "with inpainting it has not"),
        ("GAUSS", facts(), facts(()), "inpainting has another"),
    ],
)
def test_a_need_that_does_not_hold_is_the_reason(need, holds, fails, sentence):
    assert refusal("mine", [need], holds) is None
    with_reason = refusal("mine", [need], fails)
    assert with_reason is not None
    assert with_reason.startswith("mine ")
    assert re.search(sentence, with_reason)


def test_every_need_has_its_own_sentence_and_a_known_capability():
    assert len({n.text for n in NEEDS.values()}) == len(NEEDS)
    assert {n.capability for n in NEEDS.values()} - {None} <= set(CAPABILITIES)


def test_the_first_need_that_fails_is_shown():
    blurred = Facts("blur", frozenset(BLUR), 0.1)
    assert "noisy" in refusal("mine", ["NOISE", "FIXED"], blurred)
    assert "fixed" in refusal("mine", ["FIXED", "NOISE"], blurred)


def test_an_unknown_need_is_an_error():
    with pytest.raises(ValueError, match="unknown need 'NOSE' of mine; allowed: FIXED"):
        refusal("mine", ["NOSE"], facts())


def test_warnings_name_what_is_not_identifiable_and_the_floor():
    assert warning([], facts()) == ""
    assert warning([], facts(BLUR, 0.1)) == "null"
    assert warning([], facts(floor=0.1)) == "floor"
    assert warning([], facts(BLUR, 0.0, 0.1)) == "null+floor"


@pytest.mark.parametrize("method", sorted(registry.methods()))
@pytest.mark.parametrize("operator", sorted(registry.options("operator")))
def test_the_class_and_its_yaml_refuse_the_same(make_operator, make_problem, method, operator):
    for sigma in ("0", "0.1"):
        part = compose([f"method={method}"])["method"]
        built = build(part)
        shape = (2 if operator == "mri" else 1, 8, 8)
        made = make_operator(operator, shape, f"sigma={sigma}")
        described = registry.read("operator", operator)["capabilities"]
        floor = part.get("sigma_floor", 0.0)
        light = refusal(method, part["needs"], facts_of(operator, described, float(sigma), floor))
        assert (built.supports(make_problem(made)) is None) == (light is None)
