"""The dense flow: inverse, determinant, start, and what its layers see."""

import pytest
import torch
from cleanprior.methods.flowdiff.dense_flow import (
    Base,
    ConditionalAffine,
    ConditionalCoupling,
    PosteriorFlow,
    feature_count,
    gaussian_base,
    splits,
)
from flows import OPERATORS, make_measurements, randomise

from cleanprior.operators.likelihood import Likelihood
from cleanprior.seeding import generator_for


def jacobian_log_det(function, z):
    jacobian = torch.func.jacrev(function)(z)
    return torch.linalg.slogdet(jacobian)[1]


@pytest.mark.parametrize("kind", ["checkerboard", "random", "affine"])
def test_layers_invert_and_know_their_determinant(kind):
    if kind == "affine":
        layer = ConditionalAffine(6, 3, 8, 2.0)
    else:
        kept = splits((1, 2, 3), 4)[0 if kind == "checkerboard" else 2]
        layer = ConditionalCoupling(kept, 3, 8, 1.5)
    layer = layer.double()
    randomise(layer)
    z, c = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    out, log_det = layer(z, c)
    back, inverse_log_det = layer.inverse(out, c)
    assert (back - z).abs().max() < 1e-10
    torch.testing.assert_close(inverse_log_det, -log_det)
    for i in range(5):
        own = jacobian_log_det(lambda v, i=i: layer(v[None], c[i : i + 1])[0][0], z[i])
        torch.testing.assert_close(log_det[i], own, rtol=1e-5, atol=1e-9)


def test_a_coupling_changes_something_and_keeps_something():
    with pytest.raises(ValueError, match="keep some entries"):
        ConditionalCoupling(torch.ones(4, dtype=torch.bool), 2, 4, 1.0)


def small_case(make_operator, gaussian, name="inpainting", n=5):
    operator = make_operator(name, gaussian.image_shape, *(["kernel_size=1"] * (name == "blur")))
    data = make_measurements(operator, n)
    batch = data.batch(torch.arange(n))
    flow = PosteriorFlow(gaussian.image_shape, feature_count(operator), 4, 16, 8)
    flow.set_gaussian(gaussian.mean, gaussian.covariance)
    given = Likelihood.of(operator, batch).with_floor(0.1)
    return operator, batch, flow, gaussian_base(gaussian, given)


def test_whole_flow_inverts_and_knows_its_determinant(make_operator, gaussian):
    _, batch, flow, base = small_case(make_operator, gaussian)
    flow = flow.double()
    randomise(flow)
    base = base.to(torch.float64)
    u = torch.randn(len(batch), 6, dtype=torch.float64, generator=generator_for(0, "u"))
    x, log_det = flow(u, base)
    back, inverse_log_det = flow.inverse(x, base)
    assert (back - u).abs().max() < 1e-5
    torch.testing.assert_close(inverse_log_det, -log_det)
    for i in range(len(batch)):
        one = base.take(torch.tensor([i]))
        own = jacobian_log_det(lambda v, one=one: flow(v[None], one)[0].flatten(), u[i])
        # The base's own log-determinant was rounded to float32.
        torch.testing.assert_close(log_det[i], own, rtol=1e-5, atol=1e-5)


def test_flow_inverts_in_single_precision(make_operator, gaussian):
    _, batch, flow, base = small_case(make_operator, gaussian)
    randomise(flow)
    u = torch.randn(len(batch), 6, generator=generator_for(0, "u"))
    assert (flow.inverse(flow(u, base)[0], base)[0] - u).abs().max() < 1e-4


@pytest.mark.parametrize("name", OPERATORS)
def test_untrained_flow_is_the_exact_gaussian_posterior(make_operator, gaussian, name):
    operator, batch, flow, base = small_case(make_operator, gaussian, name)
    mean, covariance = gaussian.posterior(Likelihood.of(operator, batch).with_floor(0.1))
    torch.testing.assert_close(base.mean.double(), mean, atol=1e-5, rtol=1e-4)
    root = base.root.double()
    torch.testing.assert_close(
        (root @ root.mT).expand_as(covariance), covariance, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(root, root.mT)
    log_det = 0.5 * torch.linalg.slogdet(covariance)[1]
    torch.testing.assert_close(base.log_det.double(), log_det, atol=1e-4, rtol=1e-4)

    draws = 40_000
    one = base.take(torch.zeros(draws, dtype=torch.long))
    with torch.no_grad():
        x, _ = flow(torch.randn(draws, 6, generator=generator_for(0, "u")), one)
    x = x.flatten(1).double()
    deviation = covariance[0].diagonal().sqrt()
    assert ((x.mean(0) - mean[0]).abs() / deviation).max() < 4.5 / draws**0.5
    error = (torch.cov(x.T) - covariance[0]).norm() / covariance[0].norm()
    assert error < 0.03


def test_every_pixel_is_changed_by_some_coupling():
    for shape in [(1, 8, 8), (3, 4, 5)]:
        chosen = splits(shape, 8)
        assert len(chosen) == 8
        assert (~torch.stack(chosen)).any(0).all()
        assert all(torch.equal(a, b) for a, b in zip(chosen, splits(shape, 8), strict=True))


def test_the_mask_alone_changes_the_output(make_operator, gaussian):
    _, batch, flow, base = small_case(make_operator, gaussian)
    randomise(flow)
    features = base.features.clone()
    mask = features[:, 18:24]
    assert torch.equal(mask, batch.params["mask"].flatten(1))
    features[:, 18:24] = 1 - mask
    other = Base(base.mean, base.root, base.log_det, features)
    u = torch.randn(len(batch), 6, generator=generator_for(0, "u"))
    assert (flow(u, base)[0] - flow(u, other)[0]).abs().amax((1, 2, 3)).min() > 1e-3
