"""Random inputs for the op tests. Everything follows from a seed, which the report of a failure names."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fdpp import reference
from fdpp._host import HEAD_DIMS

from .numeric import ROUNDOFF, UNDERFLOW, oracle

GROUPS = (1, 2, 3, 4, 5, 7, 8, 16)
PAGE_SIZES = (8, 16, 24, 64)
BOGUS_PAGES = (-1, -(2**31), 2**31 - 1, 123_456_789)
POISONS = (float("nan"), float("inf"), float("-inf"))


@dataclass
class AttentionCase:
    """Inputs of one ``decode_attention``: ``inputs`` by position, ``options`` by keyword, contiguous on the CPU."""

    inputs: dict[str, Tensor | None]
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def expected(self) -> Tensor:
        return oracle(reference.decode_attention, *self.inputs.values(), **self.options)

    def run(self, ops, device: str = "cpu", rng: random.Random | None = None, alignment: int = 1) -> Tensor:
        """The result of the op; with ``rng``, on views of q, k and v whose outer strides and offsets it draws.

        Strides and offsets are multiples of ``alignment`` elements.
        """
        inputs = {name: on_device(x, device) for name, x in self.inputs.items()}
        if rng is not None:
            inputs |= {name: strided(inputs[name], rng, alignment) for name in ("q", "k_cache", "v_cache")}
        options = {name: on_device(x, device) for name, x in self.options.items()}
        return ops.decode_attention(*inputs.values(), **options)

    def tolerance(self, expected: Tensor) -> Tensor:
        """Rounding of the result, of the probabilities (which may feed a matrix unit) and of the logits.

        An absolute error d of a logit is a relative error d of its weight. float32 logits err by a few roundings of the
        largest number on the way to them. All of it counts relative to ``sum p |v|``.
        """
        q, k, v = (self.inputs[name] for name in ("q", "k_cache", "v_cache"))
        inputs, options = self.inputs | {"v_cache": v.abs()}, self.options
        gathered = oracle(reference.decode_attention, *inputs.values(), **options)
        scale = options.get("softmax_scale") or q.shape[-1] ** -0.5
        product = scale * _largest(q.double().norm(dim=-1)) * _largest(k.double().norm(dim=-1))
        capped = min(options.get("softcap", 0.0), product)  # tanh rounds relative to what it gives
        largest = 8 + product + 2 * capped + _largest(options.get("sinks"))
        probability = 0.0 if q.dtype == torch.float32 else ROUNDOFF[q.dtype]
        relative = probability + 2 * ROUNDOFF[torch.float32] * largest
        return ROUNDOFF[q.dtype] * expected.abs() + relative * gathered.nan_to_num(0, 0, 0) + UNDERFLOW[q.dtype]

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in self.inputs.items() if x is not None)
        lengths = self.inputs["cache_seqlens"].tolist()
        options = {name: "given" if isinstance(x, Tensor) else x for name, x in self.options.items()}
        return f"seed {self.seed}: {self.inputs['q'].dtype}, {shapes}, cache_seqlens {lengths}, {options}"


def random_attention_case(seed: int, dtypes: tuple[torch.dtype, ...]) -> AttentionCase:
    """A case with any mix of shapes, lengths, pages and options; NaN or infinities wherever nothing may be read."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    dtype = rng.choice(dtypes)
    batch, kv_heads = rng.choice([1, 1, 2, 3, 4, 8]), rng.choice([1, 1, 2, 3, 4, 8])
    q_heads, head_dim = kv_heads * rng.choice(GROUPS), rng.choice(HEAD_DIMS)
    new_tokens = rng.choice([1, 1, 1, rng.randint(2, 16)])
    page_size = rng.choice([None, rng.choice(PAGE_SIZES)])
    longest = min(4096, 2**22 // (batch * kv_heads * head_dim), 2**26 // (batch * q_heads * head_dim * new_tokens))
    lengths = [_random_length(rng, longest, new_tokens, page_size or 64) for _ in range(batch)]

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    q = randn(batch, new_tokens, q_heads, head_dim).to(dtype)
    shape, block_table, used = cache_layout(rng, lengths, page_size)
    k_cache, v_cache = (randn(*shape, kv_heads, head_dim).to(dtype) for _ in range(2))
    for cache in (k_cache, v_cache):
        cache[~used] = rng.choice(POISONS)

    options = {
        "softmax_scale": rng.choice([None, None, rng.uniform(0.02, 0.3)]),
        "phi": rng.choice([None, 5 * randn(q_heads)]),
        "window": rng.choice([-1, -1, 0, rng.randint(1, 64), rng.randint(1, max(lengths) + 1)]),
        "softcap": rng.choice([0.0, 0.0, 5.0, 30.0]),
        "alibi_slopes": rng.choice([None, None, randn(q_heads).abs() * rng.choice([0.01, 1.0])]),
        "sinks": rng.choice([None, None, 3 * randn(q_heads)]),
        "num_splits": rng.randint(0, 7),
        "rereference_count": rng.choice([None, torch.zeros(q_heads, dtype=torch.int64)]),
    }
    inputs = {
        "q": q,
        "k_cache": k_cache,
        "v_cache": v_cache,
        "cache_seqlens": torch.tensor(lengths, dtype=torch.int32),
        "block_table": block_table,
    }
    return AttentionCase(inputs, options, seed)


def cache_layout(
    rng: random.Random, lengths: list[int], page_size: int | None
) -> tuple[tuple[int, int], Tensor | None, Tensor]:
    """The first two dimensions of a cache for these lengths, its block table (if paged), and which slots are in use.

    Pages stand in random order, some unused; sequences may begin with the same pages; ids past the end are bogus.
    """
    if page_size is None:
        capacity = max(1, max(lengths) + rng.choice([0, 1, rng.randint(0, 70)]))
        return (len(lengths), capacity), None, torch.arange(capacity) < torch.tensor(lengths).unsqueeze(1)

    counts = [-(-length // page_size) for length in lengths]
    num_blocks = sum(counts) + rng.randint(1, 5)
    pages = iter(rng.sample(range(num_blocks), num_blocks))
    used = torch.zeros(num_blocks, page_size, dtype=torch.bool)
    block_table = torch.empty(len(lengths), max(1, max(counts) + rng.randint(0, 3)), dtype=torch.int32)
    block_table.apply_(lambda _: rng.choice(BOGUS_PAGES))
    for b, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        shared = rng.randint(0, min(counts[0], count)) if b and rng.random() < 0.5 else 0
        row = block_table[0, :shared].tolist() + [next(pages) for _ in range(count - shared)]
        block_table[b, :count] = torch.tensor(row, dtype=torch.int32)
        for i, page in enumerate(row):
            used[page, : length - i * page_size] = True
    return (num_blocks, page_size), block_table, used


def strided(x: Tensor, rng: random.Random, alignment: int = 1) -> Tensor:
    """``x`` as a view into a larger tensor of NaN: outer dimensions in any order, any offset, last one contiguous.

    The last dimension is padded by multiples of ``alignment``.
    """
    order = [*rng.sample(range(x.dim() - 1), x.dim() - 1), x.dim() - 1]
    units = [1] * (x.dim() - 1) + [alignment]
    before, after = ([unit * rng.choice([0, 0, 1, 2]) for unit in units] for _ in range(2))
    padded = [x.shape[d] + before[d] + after[d] for d in order]
    storage = torch.full(padded, float("nan"), dtype=x.dtype, device=x.device)
    view = storage.permute([order.index(d) for d in range(x.dim())])
    for d in range(x.dim()):
        view = view.narrow(d, before[d], x.shape[d])
    return view.copy_(x)


def on_device(x: Any, device: str) -> Any:
    """Tensors moved, anything else as it is."""
    return x.to(device) if isinstance(x, Tensor) else x


def _largest(x: Tensor | None) -> float:
    """The largest finite magnitude, 0 where there is none."""
    return 0.0 if x is None or x.numel() == 0 else x.nan_to_num(0, 0, 0).abs().max().item()


def _random_length(rng: random.Random, longest: int, new_tokens: int, page_size: int) -> int:
    boundary = page_size * rng.randint(1, 8) + rng.choice([-1, 0, 1])
    kinds = [0, 1, rng.randint(0, new_tokens), boundary, rng.randint(1, 200), rng.randint(1, max(1, longest))]
    return min(rng.choices(kinds, weights=[1, 1, 1, 3, 3, 3])[0], max(longest, 1))


def case_with_logits(
    logits: Tensor, kv_heads: int, dtype: torch.dtype, values: float = 1.0, **options: Any
) -> AttentionCase:
    """One sequence whose query head h gives key j the logit ``logits[h, j]`` (rounded to the dtype).

    A query is a unit vector, which picks its own element of the keys; the elements that no query picks are noise.
    """
    heads, length = logits.shape
    group, head_dim = heads // kv_heads, 64
    generator = torch.Generator().manual_seed(length)
    q = torch.eye(group, head_dim).repeat(kv_heads, 1)
    k = torch.randn(length, kv_heads, head_dim, generator=generator)
    k[..., :group] = logits.T.reshape(length, kv_heads, group)
    v = values * torch.randn(length, kv_heads, head_dim, generator=generator)
    inputs = {
        "q": q[None, None].to(dtype),
        "k_cache": k[None].to(dtype),
        "v_cache": v[None].to(dtype),
        "cache_seqlens": torch.tensor([length], dtype=torch.int32),
        "block_table": None,
    }
    return AttentionCase(inputs, {"softmax_scale": 1.0, **options})
