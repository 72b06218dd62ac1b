"""What decode attention sees: the logits of every layer and head over a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fdpp.engine import kv_cache
from fdpp.engine.attend import attend_prompt
from fdpp.engine.layers import Attention, Pass
from fdpp.engine.model import Model

See = Callable[[int, int, Tensor], None]
"""Called with the numbers of a layer and a head, and its logits float32 ``[S, S]``: query by key, -inf where masked."""


@torch.inference_mode()
def observe_logits(model: Model, ids: Sequence[int], see: See) -> None:
    """Run a text through the model in one piece and show the logits of each head, in natural units, to ``see``.

    Args:
        model: with its weights.
        ids: S tokens.
        see: whoever looks at them; a head's logits take ``4 * S * S`` bytes, one head at a time.
    """
    device, length = model.device, len(ids)
    cache = kv_cache.allocate(model.attentions, [length], model.dtype, device)
    model.reserve(length)
    layers = {id(attention): layer for layer, attention in enumerate(model.attentions)}
    attend = attend_prompt(cache, 0, length, device)

    def observe(attention: Attention, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        for head, logits in enumerate(_logits(attention, q[0], keys[0])):
            see(layers[id(attention)], head, logits)
        return attend(attention, q, keys, values)

    tables = model.prompt_tables(length)
    positions = torch.arange(length, dtype=torch.int32, device=device)[None]
    tokens = torch.tensor([list(ids)], dtype=torch.int64, device=device)
    model.forward(tokens, cache, Pass(positions, cache.block_table, tables, observe))


def _logits(attention: Attention, q: Tensor, keys: Tensor) -> Iterator[Tensor]:
    """Head by head, from q ``[S, Hq, D]`` and keys ``[S, Hkv, D]``."""
    place = torch.arange(len(q), dtype=torch.int64, device=q.device)
    distance = place[None, :] - place[:, None]
    hidden = distance > 0
    if attention.window >= 0:
        hidden |= distance < -attention.window
    scale = attention.head_dim**-0.5 if attention.softmax_scale is None else attention.softmax_scale
    for head in range(attention.num_heads):
        key = keys[:, head * attention.num_kv_heads // attention.num_heads]
        logits = q[:, head].float() @ key.float().T * scale
        if attention.softcap:
            logits = attention.softcap * torch.tanh(logits / attention.softcap)
        if attention.alibi_slopes is not None:
            logits = logits + attention.alibi_slopes[head] * distance
        yield logits.masked_fill(hidden, -torch.inf)
