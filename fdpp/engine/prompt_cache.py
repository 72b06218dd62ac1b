"""Keys and values of one sequence that outlive a request: the next one computes only what it adds."""

from __future__ import annotations

import weakref

from fdpp import dataflow
from fdpp.engine import kv_cache
from fdpp.engine.kv_cache import KVCache
from fdpp.engine.model import Model
from fdpp.engine.prefill import common_length
from fdpp.engine.slots import Capture, Slots
from fdpp.errors import RequestError

_LEAST_CAPACITY = 256  # tokens


class PromptCache:
    """Of the last request that was given it. It serves one prompt and one thread at a time.

    Attributes:
        token_ids: the tokens whose keys and values it holds.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.token_ids: list[int] = []
        self._cache: KVCache | None = None
        self._slots: Slots | None = None
        self._capacity, self._kind = 0, 0
        self._model: weakref.ref[Model] | None = None

    def begin(
        self, model: Model, prompt: list[int], length: int, page_size: int | None, capture: Capture | None
    ) -> tuple[Slots, int]:
        """A row for ``length`` tokens, and how many of the prompt's first ones its cache holds: never its last.

        Raises:
            RequestError: the cache would not fit into memory.
        """
        if self._model is None or self._model() is not model:
            self._forget()
        kind = model.prompt_kind(len(prompt))
        held = min(common_length(self.token_ids, prompt), len(prompt) - 1)
        # The length of a prompt can change how all of its keys are rotated; and kept bits depend on what came before.
        if kind or self._kind or dataflow.is_batch_invariant():
            held = 0
        if self._cache is None or length > self._capacity:
            capacity = max(length, min(max(2 * self._capacity, _LEAST_CAPACITY), model.max_positions))
            try:
                grown = kv_cache.allocate(model.attentions, [capacity], model.dtype, model.device, page_size)
            except RequestError:  # then without room for more
                capacity = length
                grown = kv_cache.allocate(model.attentions, [capacity], model.dtype, model.device, page_size)
            if self._cache is not None:
                grown.fill_from(self._cache, held)
            self._cache, self._capacity, self._slots = grown, capacity, Slots(model, grown, capture)
        self._model, self._kind, self.token_ids = weakref.ref(model), kind, prompt[:held]
        self._cache.rereferences.zero_()
        assert self._slots is not None
        return self._slots, held

    def __reduce__(self) -> tuple[type[PromptCache], tuple[()]]:
        return PromptCache, ()  # a copy begins empty: what this one holds can be computed again
