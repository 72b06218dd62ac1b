"""decode_attention where a maximum shared without a guard breaks: logits, references, sinks, values out of range."""

from __future__ import annotations

import math

import pytest
import torch

from .cases import AttentionCase, case_with_logits
from .numeric import ROUNDOFF, assert_close

LENGTH, HEADS, KV_HEADS, TILE = 300, 6, 2, 64


def _noise(scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(HEADS, LENGTH, generator=torch.Generator().manual_seed(0))


def _with(logits: torch.Tensor, key: int, value: float) -> torch.Tensor:
    logits[:, key] = value
    return logits


LOGITS = {
    "ordinary": _noise(),
    "up to 500": 500 * torch.rand(HEADS, LENGTH, generator=torch.Generator().manual_seed(1)) * 2 - 500,
    "up to 5000": 5000 * torch.rand(HEADS, LENGTH, generator=torch.Generator().manual_seed(2)) * 2 - 5000,
    "all about -60": -60 + _noise(),
    "all about -300": -300 + _noise(),
    "all about -5000": -5000 + _noise(20),
    "all about 60": 60 + _noise(),
    "all about 300": 300 + _noise(),
    "all about 5000": 5000 + _noise(20),
    "all equal": torch.full((HEADS, LENGTH), 300.0),
    "last key jumps": _with(_noise(), -1, 400.0),
    "last key jumps from far below": _with(-400 + _noise(), -1, 400.0),
    "first key dominates": _with(_noise(), 0, 400.0),
    "one key in the middle": _with(-300 + _noise(), LENGTH // 2, 50.0),
    "rising": torch.linspace(-500, 500, LENGTH).repeat(HEADS, 1),
    "falling": torch.linspace(500, -500, LENGTH).repeat(HEADS, 1),
    "rising through the bounds": torch.linspace(-110, 110, LENGTH).repeat(HEADS, 1),
    "alternating tiles": torch.where(torch.arange(LENGTH) // TILE % 2 == 0, 400.0, -400.0) + _noise(),
    "alternating keys": torch.where(torch.arange(LENGTH) % 2 == 0, 400.0, -400.0) + _noise(),
    "heads apart": torch.linspace(-600, 600, HEADS)[:, None] + _noise(),
}
FAR_FROM_ZERO = [name for name in LOGITS if name not in ("ordinary", "all about -60", "all about 60")]


def check(case: AttentionCase, ops, device: str, what: str) -> None:
    expected = case.expected()
    assert_close(case.run(ops, device), expected, case.tolerance(expected), what)


@pytest.mark.parametrize("num_splits", [1, 2, 7])
@pytest.mark.parametrize("phi", [0.0, 300.0, -300.0])
@pytest.mark.parametrize("logits", LOGITS)
def test_logits(backend, dtype, ops, logits, phi, num_splits):
    case = case_with_logits(LOGITS[logits], KV_HEADS, dtype, phi=torch.full((HEADS,), phi), num_splits=num_splits)
    check(case, ops, backend.device, f"logits {logits}, phi {phi}, {num_splits} splits")


@pytest.mark.parametrize("sink", [-math.inf, -400.0, -60.0, 0.0, 60.0, 290.0, 310.0, 400.0])
@pytest.mark.parametrize("logits", ["ordinary", "all about 300", "all about -300", "alternating tiles", "heads apart"])
def test_sinks(backend, dtype, ops, logits, sink):
    """One sink dominates, weighs as much as the keys, or does not count; each head has a slightly different one."""
    sinks = sink + torch.linspace(0, 5, HEADS)
    case = case_with_logits(LOGITS[logits], KV_HEADS, dtype, sinks=sinks, num_splits=3)
    check(case, ops, backend.device, f"logits {logits}, sinks from {sink}")


@pytest.mark.parametrize("logits", ["up to 500", "all about 5000", "alternating tiles"])
@pytest.mark.parametrize("options", [{"softcap": 30.0}, {"softcap": 2000.0}, {"window": 0}, {"window": 70}], ids=str)
def test_logits_with_options(backend, dtype, ops, logits, options):
    check(case_with_logits(LOGITS[logits], KV_HEADS, dtype, **options), ops, backend.device, f"{logits}, {options}")


@pytest.mark.parametrize("softcap", [1e-6, 1.0, 5.0, 30.0, 50.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e9, 1e30])
@pytest.mark.parametrize("scale", [None, 1.0])
def test_softcaps_of_any_size(backend, dtype, ops, softcap, scale):
    """tanh keeps the digits of small arguments, which a large cap gives back."""
    generator = torch.Generator().manual_seed(5)
    q = torch.randn(2, 1, 4, 64, generator=generator).to(dtype)
    k_cache, v_cache = (torch.randn(2, 200, 2, 64, generator=generator).to(dtype) for _ in range(2))
    inputs = {"q": q, "k_cache": k_cache, "v_cache": v_cache}
    inputs |= {"cache_seqlens": torch.tensor([200, 61], dtype=torch.int32), "block_table": None}
    options = {"softcap": softcap, "softmax_scale": scale, "num_splits": 2}
    check(AttentionCase(inputs, options), ops, backend.device, f"softcap {softcap}")


@pytest.mark.parametrize("phi", [1e4, -1e4, 1e6, -1e6, 3e38, -3e38, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("logits", ["ordinary", "all about 300", "all about -5000", "alternating tiles"])
def test_phi_never_changes_the_result(backend, dtype, ops, logits, phi):
    """Far from every logit, or no number at all; in one of the heads."""
    phis = torch.zeros(HEADS)
    phis[2] = phi
    case = case_with_logits(LOGITS[logits], KV_HEADS, dtype, phi=phis, num_splits=3, sinks=torch.full((HEADS,), 1.0))
    check(case, ops, backend.device, f"logits {logits}, phi {phi}")


@pytest.mark.parametrize("phi", [0.0, 300.0, math.nan])
def test_a_sink_that_is_nan_makes_its_head_nan(backend, dtype, ops, phi):
    for logits in ("ordinary", "all about 300", "all about -5000"):
        sinks = torch.full((HEADS,), 1.0)
        sinks[1] = math.nan
        options = {"sinks": sinks, "phi": torch.full((HEADS,), phi), "num_splits": 3}
        case = case_with_logits(LOGITS[logits], KV_HEADS, dtype, **options)
        assert case.expected()[0, 0].isnan().all(dim=-1).tolist() == [False, True] + [False] * 4
        check(case, ops, backend.device, logits)


def test_equal_keys_share_their_weight_whatever_their_logits(backend, dtype, ops):
    """The oracle's, too: sums of 1e31 that differ by where their key stands would decide between equal keys."""
    generator = torch.Generator().manual_seed(6)
    magnitude = 1e4 if dtype == torch.float16 else 1e15
    q, key = (magnitude * torch.randn(1, 1, heads, 64, generator=generator) for heads in (4, 2))
    v_cache = torch.randn(1, 301, 2, 64, generator=generator).to(dtype)
    inputs = {"q": q.to(dtype), "k_cache": key.to(dtype).expand(1, 301, 2, 64).contiguous(), "v_cache": v_cache}
    inputs |= {"cache_seqlens": torch.tensor([301], dtype=torch.int32), "block_table": None}
    case = AttentionCase(inputs, {"num_splits": 2})
    mean = v_cache.double().mean(dim=1).repeat_interleave(2, dim=1).unsqueeze(1)
    assert_close(case.expected(), mean, 1e-14, "the oracle")
    assert_close(case.run(ops, backend.device), mean, 4 * ROUNDOFF[dtype], "the operator")


@pytest.mark.parametrize("slope", [0.5, 10.0, 1000.0, -10.0])
def test_steep_alibi(backend, dtype, ops, slope):
    """Slopes that carry all but the newest keys out of range; a negative one lifts the oldest key instead."""
    slopes = torch.full((HEADS,), slope)
    case = case_with_logits(LOGITS["ordinary"], KV_HEADS, dtype, alibi_slopes=slopes, num_splits=4)
    expected = case.expected()
    rounding = 4 * ROUNDOFF[torch.float32] * max(0.0, -slope * LENGTH)  # of the largest bias that weighs
    tolerance = case.tolerance(expected) + rounding * case.inputs["v_cache"].double().abs().max()
    assert_close(case.run(ops, backend.device), expected, tolerance, f"slope {slope}")


@pytest.mark.parametrize("logits", [-90.0, -60.0, -41.0, -30.0, 0.0, 30.0, 41.0, 60.0, 90.0])
@pytest.mark.parametrize("magnitude", ["large", "small"])
def test_values_of_any_magnitude(backend, dtype, ops, logits, magnitude):
    """Probabilities times values stay inside float32 although either alone is near its end."""
    exponent = (4 if dtype == torch.float16 else 30) * (1 if magnitude == "large" else -1)
    value = 10.0**exponent
    case = case_with_logits(logits + LOGITS["ordinary"], KV_HEADS, dtype, value, num_splits=2)
    check(case, ops, backend.device, f"logits about {logits}, values about {value}")


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("page_size", [None, 16])
def test_what_lies_beyond_the_end_is_never_read(backend, dtype, ops, poison, page_size):
    """The same bits whatever stands after a sequence's end, in its last page and in pages of nobody."""
    lengths = torch.tensor([0, 1, 15, 17, 64], dtype=torch.int32)
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(5, 3, 4, 64, generator=generator).to(dtype)
    block_table = None if page_size is None else torch.randperm(25, generator=generator).view(5, 5).int()
    shape = (5, 80) if page_size is None else (25, page_size)
    clean = [torch.randn(*shape, 2, 64, generator=generator).to(dtype) for _ in range(2)]
    poisoned = [cache.clone() for cache in clean]
    for b, length in enumerate(lengths.tolist()):
        for position in range(length, 80):
            slot = (b, position) if page_size is None else (block_table[b, position // 16], position % 16)
            for cache in poisoned:
                cache[slot] = poison
    bogus = block_table
    if page_size is not None:
        beyond = torch.arange(5) >= torch.div(lengths.unsqueeze(1) + 15, 16, rounding_mode="floor")
        bogus = block_table.masked_fill(beyond, 2**31 - 1)
    names = ("q", "k_cache", "v_cache", "cache_seqlens", "block_table")
    expected = AttentionCase(dict(zip(names, (q, *clean, lengths, block_table), strict=True))).run(ops, backend.device)
    actual = AttentionCase(dict(zip(names, (q, *poisoned, lengths, bogus), strict=True))).run(ops, backend.device)
    assert torch.equal(actual, expected)
    assert not actual[0].any() and not actual[1, :2].any(), "queries before the start of their sequence give zeros"


@pytest.mark.parametrize("sinks", [None, 400.0, math.inf, math.nan])
def test_rows_without_keys_give_zeros(backend, dtype, ops, sinks):
    q = torch.ones(3, 4, 4, 64, dtype=dtype)
    cache = torch.ones(3, 8, 2, 64, dtype=dtype)
    lengths = torch.tensor([0, 2, 4], dtype=torch.int32)
    inputs = {"q": q, "k_cache": cache, "v_cache": cache.clone(), "cache_seqlens": lengths, "block_table": None}
    options = {"sinks": None if sinks is None else torch.full((4,), sinks), "num_splits": 5}
    out = AttentionCase(inputs, options).run(ops, backend.device).cpu()
    seen = torch.arange(4) >= 4 - lengths.unsqueeze(1)
    assert not out[~seen].any()
    if sinks is not None and math.isnan(sinks):
        assert out[seen].isnan().all()
        return
    # A matrix unit gets rounded probabilities, while their sum is that of the unrounded ones.
    assert ((out[seen] - (1 if sinks is None else 0)).abs() <= 2 * ROUNDOFF[dtype]).all()


@pytest.mark.where(lambda backend: not backend.checks_values)
@pytest.mark.parametrize("paged", [False, True], ids=["contiguous", "paged"])
@pytest.mark.parametrize("num_splits", [1, 3])
def test_values_that_cannot_be_checked_give_nan(backend, dtype, ops, num_splits, paged):
    """Lengths and pages that lie on a device raise nothing; their sequence shows them, and no other."""
    generator = torch.Generator().manual_seed(4)
    q = torch.randn(3, 2, 6, 64, generator=generator).to(dtype)
    shape = (15, 16) if paged else (3, 80)
    k_cache, v_cache = (torch.randn(*shape, 2, 64, generator=generator).to(dtype) for _ in range(2))
    inputs = {"q": q, "k_cache": k_cache, "v_cache": v_cache}
    inputs |= {"cache_seqlens": torch.tensor([80, 61, 33], dtype=torch.int32)}
    inputs |= {"block_table": torch.randperm(15, generator=generator).view(3, 5).int() if paged else None}
    expected = AttentionCase(inputs, {"num_splits": num_splits}).run(ops, backend.device).cpu()
    wrong = [("cache_seqlens", (1,), n) for n in (81, -1, 2**31 - 1, -(2**31))]
    wrong += [("block_table", (1, i), n) for i in (0, 3) for n in (15, -1, 2**31 - 1, -(2**31)) if paged]
    for name, index, value in wrong:
        changed = inputs[name].clone()
        changed[index] = value
        actual = AttentionCase(inputs | {name: changed}, {"num_splits": num_splits}).run(ops, backend.device).cpu()
        assert actual[1].isnan().all(), (name, index, value)
        assert torch.equal(actual[[0, 2]], expected[[0, 2]]), (name, index, value)


def _clean_case(dtype: torch.dtype, **options) -> AttentionCase:
    return case_with_logits(LOGITS["ordinary"], KV_HEADS, dtype, num_splits=3, **options)


@pytest.mark.parametrize("name", ["q", "k_cache", "v_cache"])
@pytest.mark.parametrize("key", [0, 100, LENGTH - 1])
def test_nan_in_the_valid_region_shows_in_its_heads_only(backend, dtype, ops, name, key):
    clean, broken = _clean_case(dtype), _clean_case(dtype)
    where = (0, 0, 4, 7) if name == "q" else (0, key, 1, 7)
    broken.inputs[name][where] = math.nan
    expected, actual = clean.run(ops, backend.device).cpu(), broken.run(ops, backend.device).cpu()
    affected = torch.zeros_like(expected, dtype=torch.bool)
    affected[{"q": (0, 0, 4), "k_cache": (0, 0, slice(3, 6)), "v_cache": (0, 0, slice(3, 6), 7)}[name]] = True
    assert actual[affected].isnan().all(), "a NaN that was seen must not vanish"
    assert torch.equal(actual[~affected], expected[~affected])


def _moves(case: AttentionCase, ops, device: str) -> list[int]:
    count = torch.zeros(case.inputs["q"].shape[2], dtype=torch.int64, device=device)
    case.options["rereference_count"] = count
    case.run(ops, device)
    return count.tolist()


@pytest.mark.parametrize("length", [1, 63, 64, 1000])
def test_the_reference_stays_on_ordinary_data(backend, dtype, ops, length):
    generator = torch.Generator().manual_seed(length)
    q = torch.randn(2, 2, 4, 128, generator=generator).to(dtype)
    k_cache, v_cache = (torch.randn(2, length, 2, 128, generator=generator).to(dtype) for _ in range(2))
    lengths = torch.full((2,), length, dtype=torch.int32)
    inputs = {"q": q, "k_cache": k_cache, "v_cache": v_cache, "cache_seqlens": lengths, "block_table": None}
    assert _moves(AttentionCase(inputs), ops, backend.device) == [0] * 4


@pytest.mark.parametrize("num_splits", [1, 5])
@pytest.mark.parametrize("logits", FAR_FROM_ZERO)
def test_the_reference_moves_where_it_must(backend, dtype, ops, logits, num_splits):
    case = case_with_logits(LOGITS[logits], KV_HEADS, dtype, num_splits=num_splits)
    moves = _moves(case, ops, backend.device)
    far = LOGITS[logits].amax(dim=1).abs() > 150
    assert all(count > 0 for count, must in zip(moves, far.tolist(), strict=True) if must), moves


def test_a_right_phi_keeps_the_reference_and_a_wrong_one_moves_it(backend, dtype, ops):
    for logits, phi, moved in [(300, 300.0, False), (-300, -300.0, False), (0, 300.0, True), (0, -300.0, True)]:
        phis = torch.full((HEADS,), phi)
        case = case_with_logits(logits + LOGITS["ordinary"], KV_HEADS, dtype, phi=phis, num_splits=2)
        moves = _moves(case, ops, backend.device)
        assert all((count > 0) == moved for count in moves), (logits, phi, moves)


def test_counts_belong_to_their_heads_and_add_up_over_calls(backend, dtype, ops):
    logits = LOGITS["ordinary"].clone()
    logits[[1, 4]] += 400
    case = case_with_logits(logits, KV_HEADS, dtype, num_splits=2)
    once = _moves(case, ops, backend.device)
    assert [count > 0 for count in once] == [False, True, False, False, True, False]
    case.options["rereference_count"] = count = torch.full((HEADS,), 10, device=backend.device)
    case.run(ops, backend.device)
    case.run(ops, backend.device)
    assert count.tolist() == [10 + 2 * moves for moves in once]
