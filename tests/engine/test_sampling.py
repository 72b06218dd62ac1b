"""Sampling: the distribution that the options promise, and their corners."""

from __future__ import annotations

import pytest
import torch

from fdpp.engine.sampling import NOT_FINITE, Sampler, SamplingOptions

CPU = torch.device("cpu")
LOGITS = torch.tensor([0.1, 2.0, -1.0, 1.5, 0.7, -3.0])


def frequencies(options: SamplingOptions, rows: int = 1000, steps: int = 20) -> torch.Tensor:
    sampler = Sampler(options, range(rows), steps, CPU)
    tokens = torch.cat([sampler(LOGITS.expand(rows, -1), step) for step in range(steps)])
    return tokens.bincount(minlength=len(LOGITS)) / len(tokens)


def renormalised(probabilities: torch.Tensor, kept: list[int]) -> torch.Tensor:
    mask = torch.zeros_like(probabilities)
    mask[kept] = 1
    return probabilities * mask / (probabilities * mask).sum()


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"temperature": 1.0}, [0, 1, 2, 3, 4, 5]),
        ({"temperature": 0.5}, [0, 1, 2, 3, 4, 5]),
        ({"temperature": 2.0, "top_k": 3}, [1, 3, 4]),
        ({"temperature": 1.0, "top_k": 100}, [0, 1, 2, 3, 4, 5]),
        ({"temperature": 1.0, "top_p": 0.7}, [1, 3]),  # 0.48, 0.29, then 0.13
        ({"temperature": 1.0, "top_p": 0.8}, [1, 3, 4]),
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.6}, [1]),  # top_p counts what top_k has left: 0.62
    ],
)
def test_distribution(options, kept):
    expected = renormalised((LOGITS / options["temperature"]).softmax(-1), kept)
    torch.testing.assert_close(frequencies(SamplingOptions(seed=1, **options)), expected, atol=0.012, rtol=0)


def test_greedy():
    sampler = Sampler(SamplingOptions(), [0, 1], 1, CPU)
    assert sampler(torch.stack([LOGITS, -LOGITS]), 0).tolist() == [1, 5]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 2, "top_p": 0.5}])
def test_rows_that_are_not_finite(bad, options):
    sampler = Sampler(SamplingOptions(seed=0, **options), [0, 1], 1, CPU)
    damaged = LOGITS.clone()
    damaged[2] = bad
    good, found = sampler(torch.stack([LOGITS, damaged]), 0).tolist()
    assert found == NOT_FINITE and 0 <= good < len(LOGITS)


def test_minus_infinity_is_never_chosen():
    logits = torch.full((1, 4), -torch.inf)
    logits[0, 2] = 0.0
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=0), [0], 50, CPU)
    assert {int(sampler(logits, step)) for step in range(50)} == {2}
    assert int(sampler(torch.full((1, 4), -torch.inf), 0)) == NOT_FINITE


def test_draws_at_the_ends_of_the_interval():
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=0), [0], 2, CPU)
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    sampler._draws = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    assert [int(sampler(logits, 0)), int(sampler(logits, 1))] == [1, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    sampler = Sampler(SamplingOptions(temperature=1e-4, seed=0), [0], 1, CPU)
    assert int(sampler(LOGITS[None].to(dtype), 0)) == 1
