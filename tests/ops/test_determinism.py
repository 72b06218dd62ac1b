"""The same inputs give the same bits: again, with another number of threads, and with other sequences around."""

from __future__ import annotations

import pytest
import torch

from .cases import AttentionCase, random_attention_case
from .numeric import num_threads
from .valid import CALLS, call_op, valid_arguments


@pytest.mark.parametrize("call", CALLS)
def test_twice(backend, dtype, ops, call):
    first, second = (call_op(ops, call, valid_arguments(call, backend.device, dtype)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("seed", range(30))
def test_attention_twice(backend, ops, seed):
    """Whoever comes first."""
    case = random_attention_case(seed, backend.dtypes)
    first = case.run(ops, backend.device)
    for order in range(3):
        backend.set_seed(order)
        assert torch.equal(case.run(ops, backend.device), first), case


@pytest.mark.parametrize("seed", range(30))
def test_attention_with_any_number_of_threads(backend, ops, seed):
    """A given ``num_splits`` fixes the order of every sum."""
    case = random_attention_case(seed, backend.dtypes)
    case.options["num_splits"] = case.options["num_splits"] or 3
    results = []
    for count in (1, 2):
        with num_threads(count):
            results.append(case.run(ops, backend.device))
    assert torch.equal(*results), case


@pytest.mark.parametrize("seed", range(30))
def test_attention_of_a_sequence_alone(backend, ops, seed):
    """With a given ``num_splits`` a sequence's result does not depend on the batch that it stands in."""
    case = random_attention_case(seed, backend.dtypes)
    case.options["num_splits"] = case.options["num_splits"] or 3
    together = case.run(ops, backend.device)
    paged = case.inputs["block_table"] is not None
    for b in range(together.shape[0]):
        names = [name for name in case.inputs if not (paged and name in ("k_cache", "v_cache"))]
        alone = {name: x[b : b + 1] for name, x in case.inputs.items() if name in names and x is not None}
        single = AttentionCase(case.inputs | alone, case.options, seed)
        assert torch.equal(single.run(ops, backend.device)[0], together[b]), f"sequence {b} of {case}"


@pytest.mark.parametrize("m", [1, 4, 11, 40])
@pytest.mark.parametrize("name", ["gemv", "flat_gemm", "linear"])
def test_linear_twice(backend, dtype, ops, name, m):
    """Whoever comes first, also where blocks share the sums of a tile."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 1096, generator=generator).to(dtype).to(backend.device) for n in (m, 90))
    library, index = backend.library()
    count = library.flat_gemm_configs(str(dtype).removeprefix("torch."), index)
    configs = range(count) if name == "flat_gemm" else [None]
    for config in configs:
        options = {} if config is None else {"config": config}
        first = getattr(ops, name)(x, weight, **options)
        for order in range(3):
            backend.set_seed(order)
            assert torch.equal(getattr(ops, name)(x, weight, **options), first), options


@pytest.mark.parametrize("name", ["gemv", "flat_gemm", "linear"])
def test_linear_with_any_number_of_threads(backend, dtype, ops, name):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 577, generator=generator).to(dtype).to(backend.device) for n in (5, 1001))
    results = []
    for count in (1, 2):
        with num_threads(count):
            results.append(getattr(ops, name)(x, weight))
    assert torch.equal(*results)
