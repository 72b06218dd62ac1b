"""Sampling: the distribution that the options promise, and their corners."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transformers.generation import logits_process

from fdpp.engine.sampling import NOT_FINITE, Sampler, _uniform
from fdpp.engine.sampling_options import SamplingOptions
from fdpp.errors import RequestError

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
    sampler._draws = {0: np.array([0.0, 1.0])}
    assert [int(sampler(logits, 0)), int(sampler(logits, 1))] == [1, 2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    sampler = Sampler(SamplingOptions(temperature=1e-4, seed=0), [0], 1, CPU)
    assert int(sampler(LOGITS[None].to(dtype), 0)) == 1


def transformers_probabilities(options: SamplingOptions, logits: torch.Tensor) -> torch.Tensor:
    """float64 ``[V]`` by the warpers of transformers, in the order of its ``_get_logits_processor``."""
    processors = [logits_process.TemperatureLogitsWarper(options.temperature)]
    if options.top_k:
        processors.append(logits_process.TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        processors.append(logits_process.TopPLogitsWarper(options.top_p))
    if options.min_p:
        processors.append(logits_process.MinPLogitsWarper(options.min_p))
    scores = logits[None].double()
    for processor in processors:
        scores = processor(None, scores)
    return scores[0].softmax(-1)


def sampler_probabilities(sampler: Sampler, logits: torch.Tensor, monkeypatch) -> torch.Tensor:
    """float64 ``[B, V]``: the weights that the sampler draws from."""
    seen = []

    def keep(weights, uniform):
        seen.append(weights / weights.sum(-1, keepdim=True))
        return weights.argmax(-1)

    monkeypatch.setattr("fdpp.engine.sampling._inverse_transform", keep)
    sampler(logits, 0)
    return seen[0]


def random_options(rng: random.Random) -> SamplingOptions:
    return SamplingOptions(
        temperature=rng.choice([0.1, 0.7, 1.0, 3.0]),
        top_k=rng.choice([0, 1, 3, 20, 1000]),
        top_p=rng.choice([1.0, 1.0, 0.9, 0.5, 0.01]),
        min_p=rng.choice([0.0, 0.0, 0.05, 0.5, 1.0]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3, 0.8]),
        seed=rng.randrange(100),
    )


@pytest.mark.parametrize("seed", range(60))
def test_the_same_distribution_as_transformers(seed, monkeypatch):
    """A batch of rows with options of their own, against each row by itself in transformers."""
    rng, vocabulary = random.Random(seed), 97
    rows = [random_options(rng) for _ in range(4)]
    prompts = [[rng.randrange(vocabulary) for _ in range(rng.randint(1, 40))] for _ in rows]
    logits = 4 * torch.randn(len(rows), vocabulary, generator=torch.Generator().manual_seed(seed))
    actual = sampler_probabilities(Sampler(rows, [0] * len(rows), 1, CPU, prompts), logits, monkeypatch)
    for row, (options, prompt) in enumerate(zip(rows, prompts, strict=True)):
        scores = logits[row]
        if options.repetition_penalty != 1:  # in float32, as transformers applies it to the logits of a model
            processor = logits_process.RepetitionPenaltyLogitsProcessor(options.repetition_penalty)
            scores = processor(torch.tensor([prompt]), scores[None])[0]
        others = SamplingOptions(options.temperature, options.top_k, options.top_p, min_p=options.min_p)
        expected = transformers_probabilities(others, scores)
        torch.testing.assert_close(actual[row], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_what_is_as_likely_as_the_last_of_top_k_stays(top_k, monkeypatch):
    options, logits = SamplingOptions(1.0, top_k, seed=0), torch.tensor([1.0, 3.0, 3.0, 2.0, 3.0, 2.0])
    actual = sampler_probabilities(Sampler(options, [0], 1, CPU), logits[None], monkeypatch)
    torch.testing.assert_close(actual[0], transformers_probabilities(options, logits))


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_a_penalty_counts_the_prompt_and_the_answer(penalty):
    """Greedy, against transformers' processor; the rows around it have other penalties."""
    logits = torch.randn(30, 3, 20, generator=torch.Generator().manual_seed(1))
    prompts = [[3, 3, 5], [1], [0, 19]]
    options = [SamplingOptions(repetition_penalty=value) for value in (1.0, penalty, 2.0)]
    sampler = Sampler(options, [0] * 3, 30, CPU, prompts)
    processor = logits_process.RepetitionPenaltyLogitsProcessor(penalty)
    history = list(prompts[1])
    for step, scores in enumerate(logits):
        tokens = sampler(scores, step).tolist()
        assert tokens[1] == int(processor(torch.tensor([history]), scores[1:2]).argmax())
        assert tokens[0] == int(scores[0].argmax())
        history.append(tokens[1])


def test_rows_do_not_depend_on_the_options_of_others():
    rng = random.Random(0)
    logits = 3 * torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    rows = [SamplingOptions(), *(random_options(rng) for _ in range(5))]
    prompts = [[row] for row in range(6)]
    together = Sampler(rows, range(6), 4, CPU, prompts)
    alone = [Sampler(options, [row], 9, CPU, [prompts[row]]) for row, options in enumerate(rows)]
    for step in range(4):
        expected = [int(sampler(logits[row : row + 1], step)) for row, sampler in enumerate(alone)]
        assert together(logits, step).tolist() == expected


def test_draws_depend_on_seed_index_and_step_alone():
    assert _uniform(5, 2, 100)[:7].tolist() == _uniform(5, 2, 7).tolist()
    starts = [tuple(_uniform(seed, index, 4)) for seed in (0, 1, 2, 2**63 - 1) for index in range(4)]
    assert len(set(starts)) == len(starts)  # seed 1 and index 0 are not seed 0 and index 1


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "seed": 3}, {"repetition_penalty": 1.1}])
def test_torch_generator_is_left_alone(options):
    before = torch.get_rng_state()
    Sampler(SamplingOptions(**options), [0], 5, CPU)(LOGITS[None], 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45, 1e-46, 1e-300, 5e-324])
@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"repetition_penalty": 1.0001}])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e37])
def test_a_temperature_towards_0_is_greedy(temperature, options, scale):
    logits = scale * torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(SamplingOptions(temperature, seed=1, **options), range(3), 1, CPU)
    if temperature * 1e3 < scale:
        assert sampler(logits, 0).tolist() == logits.argmax(-1).tolist()


def test_the_largest_temperature_is_uniform():
    counts = frequencies(SamplingOptions(1e308, seed=0))
    torch.testing.assert_close(counts, torch.full((6,), 1 / 6), atol=0.012, rtol=0)


def test_numbers_of_numpy_and_torch():
    options = SamplingOptions(np.float64(0.5), torch.tensor(3), np.float32(0.25), np.uint64(7), torch.tensor(0.5))
    assert options == SamplingOptions(0.5, 3, 0.25, 7, 0.5)
    assert all(type(value) in (int, float) for value in vars(options).values())


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 10**400},
        {"temperature": True},
        {"temperature": np.array([0.5, 0.5])},
        {"temperature": None},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": float("inf")},
        {"top_p": 5e-324, "top_k": torch.tensor(1.0)},
        {"seed": 10**400},
        {"top_k": np.arange(40)},
    ],
    ids=repr,
)
def test_options_out_of_range_are_one_short_line(options):
    with pytest.raises(RequestError, match=f"^{list(options)[-1]}: expected") as caught:
        SamplingOptions(**options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 150


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "greedy"),
        ({"repetition_penalty": 1.3, "top_k": 5}, "greedy, repetition_penalty 1.3"),
        ({"temperature": 1, "seed": 3}, "temperature 1"),
        (
            {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.05},
            "temperature 0.6, top_k 20, top_p 0.95, min_p 0.1, repetition_penalty 1.05",
        ),
    ],
)
def test_options_as_text(options, text):
    assert str(SamplingOptions(**options)) == text
