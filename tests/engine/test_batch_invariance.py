"""A sequence decodes to the same bits alone and in a batch, once that is asked for."""

from __future__ import annotations

import pytest
import torch

from tests.engine.helpers import forced_logits, load_on
from tests.engine.models import VOCAB
from tests.ops.backends import BACKENDS

PREFILL = (150, 1, 70)  # long enough for splits


@pytest.mark.parametrize("page", [None, 8])
@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_alone_and_in_a_batch(checkpoints, monkeypatch, batch_invariant, backend, page):
    llm = load_on(backend, monkeypatch, checkpoints("llama")[0], dtype="bfloat16")
    generator = torch.Generator().manual_seed(1)
    sequences = [torch.randint(3, VOCAB, (count + 3,), generator=generator).tolist() for count in PREFILL]
    together = forced_logits(llm, sequences, PREFILL, page)
    for ids, count, logits in zip(sequences, PREFILL, together, strict=True):
        (alone,) = forced_logits(llm, [ids], [count], page)
        assert torch.equal(alone, logits)
