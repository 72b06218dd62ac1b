"""The clock of the tuner and the benches."""

from __future__ import annotations

from fdpp import timing


def test_copies_exceed_the_last_level_cache_several_times(monkeypatch):
    monkeypatch.setattr(timing, "last_level_cache_bytes", lambda device: 32 << 20)
    for num_bytes in (1, 1000, 1 << 20, 33 << 20, 1 << 30):
        copies = timing.cold_copies(num_bytes)
        # One that is far larger than the cache has pushed its own beginning out when it ends.
        assert (copies - 1) * num_bytes >= 4 * 32 << 20 or num_bytes >= 4 * 32 << 20


def test_interleaving_gives_everybody_every_round_and_takes_copies_in_turn():
    calls = []
    candidates = {name: lambda copy, name=name: calls.append((name, copy)) for name in "abc"}
    times = timing.interleave(candidates, copies=4, seconds=0, min_rounds=6)
    assert {name: len(values) for name, values in times.items()} == dict.fromkeys("abc", 6)
    measured = calls[3:]  # after the warm-up
    assert [copy for _, copy in measured] == [(1 + i) % 4 for i in range(18)]
    for start in range(0, 18, 3):
        assert {name for name, _ in measured[start : start + 3]} == set("abc")
