"""Ways to run a model on given tokens that the tests share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fdpp.engine import attend, kv_cache, layers
from fdpp.engine.prefill import prefill as run_prompts
from fdpp.llm import LLM
from tests.ops.backends import Backend


def use_operators(monkeypatch: pytest.MonkeyPatch, operators: object) -> None:
    """Let the engine run on other kernels."""
    for module in (attend, layers):
        monkeypatch.setattr(module, "ops", operators)


def load_on(backend: Backend, monkeypatch: pytest.MonkeyPatch, path: Path, **options: object) -> LLM:
    """LLM on a device, or with the kernels of a kind of GPU, as the host executes them, in place of the CPU's."""
    if backend.namespace != "fdpp":
        use_operators(monkeypatch, backend.ops())
    return LLM(path, device=backend.device, **options)


@torch.inference_mode()
def forced_logits(
    llm: LLM, sequences: Sequence[Sequence[int]], prefill: Sequence[int], page: int | None
) -> list[Tensor]:
    """The logits ``[len - prefill + 1, V]`` of each sequence, from the end of its prefilled part on.

    The rest is fed token by token, all sequences side by side; those that have ended idle.
    """
    cache = kv_cache.allocate(llm.model.attentions, [len(ids) for ids in sequences], llm.dtype, llm.device, page)
    llm.model.reserve(max(len(ids) for ids in sequences))
    prompts = [list(ids[:count]) for ids, count in zip(sequences, prefill, strict=True)]
    collected = [[logits] for logits in run_prompts(llm.model, prompts, cache).logits]
    at = list(prefill)
    while any(position < len(ids) for position, ids in zip(at, sequences, strict=True)):
        running = [position < len(ids) for position, ids in zip(at, sequences, strict=True)]
        tokens = torch.tensor([ids[p] if on else 0 for ids, p, on in zip(sequences, at, running, strict=True)])
        positions = torch.tensor([[p if on else -1] for p, on in zip(at, running, strict=True)], dtype=torch.int32)
        tokens, positions = tokens.to(llm.device), positions.to(llm.device)
        logits = llm.model.step(tokens, positions, positions[:, 0] + 1, cache)
        for row, on in enumerate(running):
            if on:
                collected[row].append(logits[row])
                at[row] += 1
    return [torch.stack(rows).float().cpu() for rows in collected]


@torch.inference_mode()
def reference_logits(model: torch.nn.Module, ids: Sequence[int]) -> Tensor:
    """float32 ``[len, V]`` of a model of transformers."""
    return model(torch.tensor([list(ids)])).logits[0].float()


def assert_logits_close(actual: Tensor, expected: Tensor, share: float = 4e-5) -> None:
    """To a share of the largest logit: float32 sums in another order differ by what the largest terms round away."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=share * expected.abs().max().item())
