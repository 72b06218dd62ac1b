"""A decode step in the open: greedy continuation of a text with nothing but ``torch.ops.fdpp.*``.

    python examples/decode.py MODEL "The capital of France is" [NEW_TOKENS]

MODEL is a GGUF file, a Hugging Face directory or a hub id. The weights come from fdpp's loader; everything after that
stands on this page. For batches, sampling, chat and long prompts use ``fdpp.LLM``.
"""

from __future__ import annotations

import sys
import time

import torch

import fdpp  # noqa: F401  (registers torch.ops.fdpp)
from fdpp.checkpoints.loading import load_weights
from fdpp.errors import FdppError
from fdpp.llm import open_model

DTYPE = torch.bfloat16
ops = torch.ops.fdpp


class Decoder:
    """A model's parts with a contiguous cache ``[1, length, Hkv, D]`` of keys and of values per layer."""

    def __init__(self, model, length: int) -> None:
        self.model = model
        model.reserve(length)  # the cosines and sines of so many positions
        self.cache = [
            [torch.empty(1, length, a.num_kv_heads, a.head_dim, dtype=DTYPE) for _ in "kv"] for a in model.attentions
        ]

    def step(self, tokens: torch.Tensor, first: int) -> torch.Tensor:
        """Logits ``[V]`` after tokens ``[S]``, S up to 16, that stand at positions ``first``, ``first + 1``, ..."""
        count = len(tokens)
        positions = torch.arange(first, first + count, dtype=torch.int32)[None]
        cache_seqlens = torch.tensor([first + count], dtype=torch.int32)
        x = self.model.embedding.weight.tensor[tokens][None]  # [1, S, H]
        residual = torch.zeros(x.shape)  # the stream that every block adds to, in float32
        for block, (keys, values) in zip(self.model.blocks, self.cache, strict=True):
            x = add_norm(x, residual, block.attention_norm)
            # Attention: one product for q, k and v; rotate q and k; store k and v; attend to the cache.
            a = block.attention
            qkv = linear(x, a.qkv).view(1, count, -1, a.head_dim)
            q, k, v = qkv.split((a.num_heads, a.num_kv_heads, a.num_kv_heads), dim=2)
            if a.q_norm is not None:
                q, k = (ops.rms_norm(heads, n.weight.tensor, n.eps) for heads, n in ((q, a.q_norm), (k, a.k_norm)))
            q = ops.rope_append(q, k, v, *a.rotary.tables, positions, keys, values)
            x = ops.decode_attention(q, keys, values, cache_seqlens, window=a.window)
            x = linear(x.view(1, count, -1), a.o)
            # MLP: one product for gate and up, which becomes silu(gate) * up; back down.
            x = add_norm(x, residual, block.mlp_norm)
            x = linear(linear(x, block.mlp.gate_up, gated=True), block.mlp.down)
        x = add_norm(x, residual, self.model.norm)
        return linear(x[0, -1:], self.model.head)[0]


def add_norm(x, residual, norm):
    """Adds x to the residual, in place, and norms the sum."""
    return ops.add_rms_norm(x, residual, norm.weight.tensor, norm.eps)


def linear(x, part, **options):
    return ops.linear(x, part.weight.tensor, None if part.bias is None else part.bias.tensor, **options)


@torch.inference_mode()
def main(path: str, prompt: str, new_tokens: int) -> None:
    checkpoint, model = open_model(path)
    tokenizer = checkpoint.tokenizer
    if tokenizer is None:
        raise FdppError(f"{path}: no tokenizer")
    ids = tokenizer.encode(prompt)
    load_weights(checkpoint, model.weights(), DTYPE, torch.device("cpu"))
    decoder = Decoder(model, len(ids) + new_tokens)
    for first in range(0, len(ids), 16):
        logits = decoder.step(torch.tensor(ids[first : first + 16]), first)
    start, made = time.perf_counter(), 0
    while made < new_tokens and (token := int(logits.argmax())) not in checkpoint.eos_token_ids:
        logits = decoder.step(torch.tensor([token]), len(ids))
        ids.append(token)
        made += 1
    seconds = time.perf_counter() - start
    print(tokenizer.decode(ids))
    print(f"{made} tokens, {made / seconds:.1f} tokens/s", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) == 4 else 32)
    except (FdppError, ValueError) as error:
        sys.exit(f"error: {error}")
