"""A decode step under torch.compile(fullgraph=True): one graph, the same tokens."""

from __future__ import annotations

import pytest
import torch

from fdpp.engine import kv_cache
from fdpp.engine.prefill import prefill
from fdpp.llm import LLM
from tests.engine.models import VOCAB

PROMPTS = [[5, 6, 7, 8], list(range(20, 50)), [9]]


def greedy(llm, step, page_size, count=8):
    """Tokens ``[count, B]`` and the graph's inputs as plain tensors, as a server would run it."""
    cache = kv_cache.allocate(llm.model.attentions, [len(p) + count for p in PROMPTS], llm.dtype, llm.device, page_size)
    llm.model.reserve(64)
    logits = prefill(llm.model, PROMPTS, cache).logits
    tokens, seqlens = logits.argmax(-1), torch.tensor([len(p) for p in PROMPTS], dtype=torch.int32)
    history = [tokens]
    for _ in range(count - 1):
        seqlens = seqlens + 1
        tokens = step(tokens, (seqlens - 1)[:, None], seqlens, cache).argmax(-1)
        history.append(tokens)
    return torch.stack(history)


@pytest.mark.parametrize("page_size", [None, 4])
@pytest.mark.parametrize("variant", ["llama", "mistral-window", "qwen3"])
def test_the_same_tokens(checkpoints, variant, page_size):
    llm = LLM(checkpoints(variant)[0], dtype="float32")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch.no_grad():
        compiled = torch.compile(llm.model.step, fullgraph=True)
        expected = greedy(llm, llm.model.step, page_size)
        assert torch.equal(greedy(llm, compiled, page_size), expected)
    assert expected.max() < VOCAB and len(expected.unique()) > 3
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1  # compiled once, and really compiled
