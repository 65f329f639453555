"""The fitted scale and shift against distortions that are known."""

import pytest
import torch

from erprm_trl.functional.value_noise import fit_recalibration, recalibrate


@pytest.mark.parametrize(
    ("scale", "shift"), [(1.0, 0.0), (0.4, 0.0), (2.5, 0.0), (1.0, -1.5), (0.6, 2.0), (-1.0, 0.5)]
)
def test_a_known_distortion_is_undone(scale, shift):
    p = torch.linspace(0.02, 0.98, 97, dtype=torch.float64)
    distorted = ((p.logit() - shift) / scale).sigmoid()
    fitted = fit_recalibration(distorted, p, penalty=0.0)
    assert fitted == pytest.approx((scale, shift), abs=1e-6)
    torch.testing.assert_close(recalibrate(distorted, *fitted), p, atol=1e-6, rtol=0)


def test_constant_scores_give_the_mean():
    labels = torch.tensor([1.0, 0.0, 0.0, 0.0])
    fitted = fit_recalibration(torch.full((4,), 0.9), labels, penalty=1e-9)
    assert recalibrate(torch.tensor(0.9), *fitted).item() == pytest.approx(0.25, abs=1e-4)


def test_the_gradient_vanishes_on_hard_labels():
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(300, generator=generator, dtype=torch.float64)
    labels = (torch.rand(300, generator=generator) < 0.5 * scores).double()
    scale, shift = (
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in fit_recalibration(scores, labels)
    )
    p = (scale * torch.log(scores / (1 - scores)) + shift).sigmoid()
    loss = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    loss = loss + 0.0005 * ((scale - 1) ** 2 + shift**2)
    for gradient in torch.autograd.grad(loss, [scale, shift]):
        assert abs(gradient.item()) < 1e-7


def test_scores_that_part_the_labels_stay_finite():
    scores = torch.tensor([0.0, 0.1, 0.9, 1.0])
    scale, shift = fit_recalibration(scores, torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert 1.0 < scale < 100.0 and abs(shift) < 0.1
    mended = recalibrate(scores, scale, shift)
    assert mended.isfinite().all() and (mended.diff() > 0).all()
