"""Tests masked moments, whitening and explained variance by hand, against Python's `statistics`, and over emulated
processes."""

import math
import statistics
import threading

import pytest
import torch

from erprm_trl.functional import explained_variance, masked_moments, masked_whiten


F64 = torch.float64


def example(seed, dtype=F64, shape=(6, 7)):
    """Random values and a mask. Masked values are NaN or infinite."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, dtype=F64, generator=generator) * 3 + 5
    mask = torch.rand(shape, generator=generator) < 0.6
    values[~mask] = math.nan if seed % 2 else math.inf
    return values.to(dtype), mask


def on_processes(function, shards):
    """Runs `function(*shard, all_reduce)` with one thread per shard. `all_reduce` sums over the threads."""
    barrier, slots, results = threading.Barrier(len(shards)), [None] * len(shards), [None] * len(shards)

    def work(rank):
        def all_reduce(tensor):
            slots[rank] = tensor
            barrier.wait()
            total = sum(slots[1:], slots[0].clone())
            barrier.wait()
            return total

        results[rank] = function(*shards[rank], all_reduce)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(shards))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(result is None for result in results)
    return results


def test_worked_by_hand():
    # 1, 3, 8: mean 4, squares 9 + 1 + 16 = 26, variance 26 / 2 = 13.
    values, mask = (
        torch.tensor([[1.0, math.nan, 3.0], [math.inf, 8.0, -math.inf]]),
        torch.tensor([[1, 0, 1], [0, 1, 0]]),
    )
    assert [moment.item() for moment in masked_moments(values, mask)] == [3.0, 4.0, 13.0]
    white = masked_whiten(values, mask)
    expected = [-3 / math.sqrt(13), 0.0, -1 / math.sqrt(13), 0.0, 4 / math.sqrt(13), 0.0]
    assert white.flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_against_pythons_statistics(seed):
    values, mask = example(seed)
    kept = values[mask].tolist()
    count, mean, variance = (moment.item() for moment in masked_moments(values, mask))
    assert count == len(kept)
    assert mean == pytest.approx(statistics.fmean(kept), abs=1e-12)
    assert variance == pytest.approx(statistics.variance(kept), abs=1e-12)
    white = masked_whiten(values, mask)
    assert (white[~mask] == 0).all()
    assert statistics.fmean(white[mask].tolist()) == pytest.approx(0, abs=1e-12)
    assert statistics.stdev(white[mask].tolist()) == pytest.approx(1, abs=1e-8)


def test_few_values():
    values = torch.tensor([7.0, math.nan])
    empty, single = torch.tensor([False, False]), torch.tensor([True, False])
    assert [moment.item() for moment in masked_moments(values, empty)] == [0.0, 0.0, 0.0]
    assert [moment.item() for moment in masked_moments(values, single)] == [1.0, 7.0, 0.0]
    assert masked_whiten(values, empty).tolist() == [0.0, 0.0]
    assert masked_whiten(values, single).tolist() == [0.0, 0.0]  # (7 - 7) / sqrt(0 + eps)
    assert masked_whiten(torch.tensor([2.0, 2.0]), single | True).tolist() == [0.0, 0.0]


def test_small_variance_of_large_values():
    # 4096 and 4097 alternate: mean 4096.5, variance 250 / 999. Squares exceed 2^24, where float32 loses integers.
    values = 4096 + torch.arange(1000) % 2
    _, mean, variance = masked_moments(values.float(), torch.ones(1000, dtype=torch.bool))
    assert mean.item() == 4096.5 and variance.item() == pytest.approx(250 / 999, rel=1e-6)


@pytest.mark.parametrize("sizes", [[6], [2, 4], [1, 2, 3], [3, 0, 3]])
@pytest.mark.parametrize("seed", range(3))
def test_all_processes_together_equal_a_single_process(sizes, seed):
    values, mask = example(seed)
    mask[0] = False  # with sizes 1, 2, 3 the first process has no values
    predictions = torch.randn(6, 7, dtype=F64, generator=torch.Generator().manual_seed(99)) + values
    value_shards, mask_shards, prediction_shards = (tensor.split(sizes) for tensor in (values, mask, predictions))

    for moments in on_processes(masked_moments, list(zip(value_shards, mask_shards, strict=True))):
        assert torch.stack(moments).tolist() == pytest.approx(torch.stack(masked_moments(values, mask)).tolist())
    white = torch.cat(on_processes(masked_whiten, list(zip(value_shards, mask_shards, strict=True))))
    assert torch.allclose(white, masked_whiten(values, mask), atol=1e-12)
    shards = list(zip(prediction_shards, value_shards, mask_shards, strict=True))
    for explained in on_processes(explained_variance, shards):
        assert explained.item() == pytest.approx(explained_variance(predictions, values, mask).item())


def test_whitening_ignores_shift_and_scale():
    values, mask = example(2)
    assert torch.allclose(masked_whiten(values * 10 + 3, mask), masked_whiten(values, mask), atol=1e-8)
    # eps bounds the amplification: deviations far below sqrt(eps) stay small.
    tiny = masked_whiten(torch.tensor([1e-6, -1e-6], dtype=F64), torch.ones(2).bool())
    assert tiny.abs().max() < 0.02


def test_explained_variance_worked_by_hand():
    # Targets 0, 2, 4: variance 4. Errors 0, 1, -1 (mean 0): variance 1. 1 - 1/4.
    targets, mask = torch.tensor([0.0, 2.0, 4.0, math.nan]), torch.tensor([True, True, True, False])
    predictions = torch.tensor([0.0, 1.0, 5.0, math.inf])
    assert explained_variance(predictions, targets, mask).item() == 0.75
    assert explained_variance(targets, targets, mask).item() == 1.0
    assert explained_variance(targets + 7, targets, mask).item() == 1.0  # a constant offset is not variance
    assert explained_variance(torch.full((4,), 3.0), targets, mask).item() == 0.0
    assert explained_variance(-targets, targets, mask).item() == -3.0  # errors 2 R: 1 - 4


@pytest.mark.parametrize("value", [0.0, 0.1, -0.7, 1 / 3, 1e4])
@pytest.mark.parametrize("count", [1, 3, 7, 10, 1001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_targets_give_nan_explained_variance(value, count, dtype):
    targets, mask = torch.full((count,), value, dtype=dtype), torch.ones(count, dtype=torch.bool)
    predictions = torch.randn(count, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert explained_variance(predictions, targets, mask).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_types(dtype):
    values, mask = example(3, dtype)
    out = torch.float64 if dtype == torch.float64 else torch.float32
    results = [
        *masked_moments(values, mask),
        masked_whiten(values, mask),
        explained_variance(values + 1, values, mask),
    ]
    assert {result.dtype for result in results} == {out}
    exact = masked_whiten(values.double(), mask)
    assert torch.allclose(masked_whiten(values, mask).double(), exact, atol=1e-5)
    # Differences are computed after the cast to float32: 4 and 3.98 are equal in bfloat16.
    explained = explained_variance(values.double().sin().to(dtype), values, mask)
    assert explained.item() == pytest.approx(
        explained_variance(values.double().sin().to(dtype).double(), values.double(), mask).item(), abs=1e-5
    )


def test_moments_of_each_row_by_hand():
    # Row 0 has 1 and 3: mean 2, variance 2. Row 1 has 8 only. Row 2 has no values.
    values = torch.tensor([[1.0, math.nan, 3.0], [math.inf, 8.0, -math.inf], [math.nan] * 3])
    mask = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]])
    counts, means, variances = masked_moments(values, mask, dim=-1)
    assert counts.tolist() == [[2.0], [1.0], [0.0]]
    assert means.tolist() == [[2.0], [8.0], [0.0]]
    assert variances.tolist() == [[2.0], [0.0], [0.0]]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dim", [0, -1])
def test_moments_along_an_axis_equal_the_moments_of_each_slice(seed, dim):
    values, mask = example(seed)
    along = masked_moments(values, mask, dim=dim)
    slices = [masked_moments(*pair) for pair in zip(values.unbind(1 - dim % 2), mask.unbind(1 - dim % 2), strict=True)]
    for moment, expected in zip(along, zip(*slices, strict=True), strict=True):
        torch.testing.assert_close(moment.flatten(), torch.stack(expected))
