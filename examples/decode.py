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
from fdpp.engine import rope
from fdpp.engine.checkpoint import open_checkpoint
from fdpp.engine.weights import load_weights
from fdpp.errors import FdppError

DTYPE = torch.bfloat16
ops = torch.ops.fdpp


class Model:
    """Weights, rotary tables and a contiguous cache ``[1, length, Hkv, D]`` of keys and of values per layer."""

    def __init__(self, checkpoint, length: int) -> None:
        self.config = checkpoint.config
        self.weights = load_weights(checkpoint, DTYPE, torch.device("cpu"))
        self.cos, self.sin = rope.step_tables(
            self.config.rope, self.config.head_dim, length, self.weights.rope_divisors
        )
        shape = (1, length, self.config.num_kv_heads, self.config.head_dim)
        self.keys = [torch.empty(shape, dtype=DTYPE) for _ in self.weights.layers]
        self.values = [torch.empty(shape, dtype=DTYPE) for _ in self.weights.layers]

    def step(self, tokens: torch.Tensor, first: int) -> torch.Tensor:
        """Logits ``[V]`` after tokens ``[S]``, S up to 16, that stand at positions ``first``, ``first + 1``, ..."""
        c, w = self.config, self.weights
        count, heads = len(tokens), (c.num_heads, c.num_kv_heads, c.num_kv_heads)
        positions = torch.arange(first, first + count, dtype=torch.int32)[None]
        cache_seqlens = torch.tensor([first + count], dtype=torch.int32)
        x = w.embedding[tokens][None]  # [1, S, H]
        residual = torch.zeros(x.shape)  # the stream that every block adds to, in float32
        for i, layer in enumerate(w.layers):
            x = ops.add_rms_norm(x, residual, layer.input_norm, c.norm_eps)
            # Attention: one product for q, k and v; rotate q and k; store k and v; attend to the cache.
            qkv = ops.linear(x, layer.qkv, layer.qkv_bias).view(1, count, -1, c.head_dim)
            q, k, v = qkv.split(heads, dim=2)
            if c.qk_norm:
                q, k = ops.rms_norm(q, layer.q_norm, c.norm_eps), ops.rms_norm(k, layer.k_norm, c.norm_eps)
            q = ops.rope_append(q, k, v, self.cos, self.sin, positions, self.keys[i], self.values[i])
            x = ops.decode_attention(q, self.keys[i], self.values[i], cache_seqlens, window=c.windows[i])
            x = ops.linear(x.view(1, count, -1), layer.o, layer.o_bias)
            # MLP: one product for gate and up, which becomes silu(gate) * up; back down.
            x = ops.add_rms_norm(x, residual, layer.post_norm, c.norm_eps)
            x = ops.linear(x, layer.gate_up, layer.gate_up_bias, gated=True)
            x = ops.linear(x, layer.down, layer.down_bias)
        x = ops.add_rms_norm(x, residual, w.final_norm, c.norm_eps)
        return ops.linear(x[0, -1:], w.lm_head)[0]


@torch.inference_mode()
def main(path: str, prompt: str, new_tokens: int) -> None:
    checkpoint = open_checkpoint(path)
    tokenizer = checkpoint.load_tokenizer()
    if tokenizer is None:
        raise FdppError(f"{path}: no tokenizer")
    ids = tokenizer.encode(prompt)
    model = Model(checkpoint, len(ids) + new_tokens)
    for first in range(0, len(ids), 16):
        logits = model.step(torch.tensor(ids[first : first + 16]), first)
    start, made = time.perf_counter(), 0
    while made < new_tokens and (token := int(logits.argmax())) not in checkpoint.eos_token_ids:
        logits = model.step(torch.tensor([token]), len(ids))
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
