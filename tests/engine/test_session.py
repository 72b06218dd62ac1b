"""A conversation that keeps its keys and values: the answers of ``chat``, and only new tokens computed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from fdpp.engine.prompt_cache import PromptCache
from fdpp.errors import RequestError
from fdpp.llm import LLM
from tests.engine.helpers import load_on
from tests.engine.models import VOCAB
from tests.ops.backends import BACKENDS

IDS = torch.randint(5, VOCAB, (200,), generator=torch.Generator().manual_seed(1)).tolist()
OPTIONS = {"max_new_tokens": 7, "ignore_eos": True}


@pytest.mark.parametrize("page_size", [None, 8])
@pytest.mark.parametrize("variant", ["llama", "mistral-window", "gemma2", "bloom"])
def test_a_prompt_that_goes_on_computes_what_is_new(checkpoints, variant, page_size):
    llm, cache = LLM(checkpoints(variant)[0], dtype="float32", page_size=page_size), PromptCache()
    prompt: list[int] = IDS[:9]
    for turn in range(4):
        (kept,) = llm.generate(prompt, cache=cache, **OPTIONS)
        (alone,) = llm.generate(prompt, **OPTIONS)
        assert kept.token_ids == alone.token_ids
        assert kept.timings.prompt_tokens == len(prompt)
        # The last token of an answer was never fed.
        assert kept.timings.prompt_tokens_computed == (len(prompt) if turn == 0 else 21)
        prompt = prompt + kept.token_ids + IDS[20 * turn : 20 * turn + 20]


def test_what_changes_is_computed_again(checkpoints):
    llm, cache = LLM(checkpoints("llama")[0], dtype="float32"), PromptCache()
    llm.generate(IDS[:50], cache=cache, **OPTIONS)
    for prompt, computed in (
        (IDS[:30], 1),  # all of it is there, and the last token gives the logits
        (IDS[:20] + [7] * 30, 30),
        ([7, 7], 2),
        (IDS[:80], 80),
        (IDS[:180], 100),  # in a larger cache
    ):
        (kept,) = llm.generate(prompt, cache=cache, **OPTIONS)
        assert kept.timings.prompt_tokens_computed == computed
        assert kept.token_ids == llm.generate(prompt, **OPTIONS)[0].token_ids


def test_the_cache_grows_up_to_the_context(checkpoints):
    llm, cache = LLM(checkpoints("llama")[0], dtype="float32"), PromptCache()
    prompt = list(IDS[:5])
    for _ in range(12):
        prompt += [7] * 37
        (kept,) = llm.generate(prompt, cache=cache, max_new_tokens=3, ignore_eos=True)
        assert kept.timings.prompt_tokens_computed < 50
        prompt += kept.token_ids
    assert len(prompt) > 450


@pytest.mark.parametrize("variant", ["longrope", "dynamic-rope"])
def test_rotations_that_depend_on_the_length(checkpoints, variant):
    """Beyond the original context all keys are rotated anew."""
    llm, cache = LLM(checkpoints(variant)[0], dtype="float32"), PromptCache()
    for length in (30, 60, 90, 120, 40, 50):
        (kept,) = llm.generate(IDS[:length], cache=cache, **OPTIONS)
        assert kept.token_ids == llm.generate(IDS[:length], **OPTIONS)[0].token_ids


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
def test_on_every_backend(checkpoints, monkeypatch, backend):
    llm = load_on(backend, monkeypatch, checkpoints("llama")[0], dtype="bfloat16")
    cache, prompt = PromptCache(), list(IDS[:30])
    for _ in range(3):
        (kept,) = llm.generate(prompt, cache=cache, max_new_tokens=20, ignore_eos=True)
        assert len(kept.token_ids) == 20
        prompt += kept.token_ids + IDS[:10]
    assert kept.timings.prompt_tokens_computed == 11


def test_another_model_begins_anew(checkpoints):
    cache = PromptCache()
    for variant in ("llama", "qwen3", "llama"):
        llm = LLM(checkpoints(variant)[0], dtype="float32")
        (kept,) = llm.generate(IDS[:40], cache=cache, **OPTIONS)
        assert kept.timings.prompt_tokens_computed == 40
        assert kept.token_ids == llm.generate(IDS[:40], **OPTIONS)[0].token_ids


def test_a_cache_that_would_not_grow_twice(checkpoints, monkeypatch):
    llm, cache = LLM(checkpoints("llama")[0], dtype="float32"), PromptCache()
    llm.generate(IDS[:40], cache=cache, **OPTIONS)
    token = 2 * 4 * sum(a.num_kv_heads * a.head_dim for a in llm.model.attentions)
    monkeypatch.setattr("fdpp.engine.kv_cache.memory_bytes", lambda device: 400 * token)
    (kept,) = llm.generate(IDS + IDS[:100], cache=cache, **OPTIONS)
    assert kept.timings.prompt_tokens_computed == 260


def test_bits_that_must_not_depend_on_what_came_before(checkpoints, batch_invariant):
    llm, cache = LLM(checkpoints("llama")[0], dtype="bfloat16"), PromptCache()
    llm.generate(IDS[:70], cache=cache, **OPTIONS)
    (kept,) = llm.generate(IDS[:100], cache=cache, logprobs=3, **OPTIONS)
    (alone,) = llm.generate(IDS[:100], logprobs=3, **OPTIONS)
    assert kept.timings.prompt_tokens_computed == 100 and kept.logprobs == alone.logprobs


def test_no_cache(checkpoints):
    with pytest.raises(RequestError, match="cache: expected a PromptCache, got 5"):
        LLM(checkpoints("llama")[0], dtype="float32").generate(IDS[:3], cache=5)


def test_one_prompt_at_a_time(checkpoints):
    llm = LLM(checkpoints("llama")[0], dtype="float32")
    for prompts, n in (([IDS[:3], IDS[:4]], 1), ([IDS[:3]], 2)):
        with pytest.raises(RequestError, match="cache: expected one prompt and one completion with it, got 2"):
            llm.generate(prompts, n=n, cache=PromptCache())


def test_an_interrupted_answer_leaves_a_cache_that_is_right(checkpoints):
    llm, cache = LLM(checkpoints("llama")[0], dtype="float32"), PromptCache()
    seen = []

    def stop(index: int, text: str) -> None:
        seen.append(text)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llm.generate(IDS[:40], cache=cache, stream=stop, max_new_tokens=60, ignore_eos=True)
    assert cache.token_ids[:40] == IDS[:40] and len(cache.token_ids) >= 40
    prompt = cache.token_ids + [9, 8]
    (kept,) = llm.generate(prompt, cache=cache, **OPTIONS)
    assert kept.timings.prompt_tokens_computed == 2
    assert kept.token_ids == llm.generate(prompt, **OPTIONS)[0].token_ids


def test_copies_hold_nothing(checkpoints):
    llm, cache = LLM(checkpoints("llama")[0], dtype="float32"), PromptCache()
    llm.generate(IDS[:20], cache=cache, **OPTIONS)
    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert llm.generate(IDS[:20], cache=twin, **OPTIONS)[0].timings.prompt_tokens_computed == 20


@pytest.fixture
def chat_model(real_model):
    return LLM(real_model, dtype="float32", phi=None)


def test_three_turns_of_a_real_model(chat_model):
    session = chat_model.session(max_new_tokens=30)
    said: list[str] = []
    computed = []
    for question in ("What is the capital of France?", "And of Italy?", "Name a river there."):
        answer = session.send(question, stream=said.append)
        assert answer.token_ids == chat_model.chat(session.messages[:-1], max_new_tokens=30)[0].token_ids
        assert session.messages[-1] == {"role": "assistant", "content": answer.text}
        computed.append(answer.timings.prompt_tokens_computed)
        new = answer.timings.prompt_tokens
    assert "".join(said) == "".join(m["content"] for m in session.messages if m["role"] == "assistant")
    # A question, the marks of its turn, and the end of the answer before it, which was never fed.
    questions = [len(chat_model.tokenizer.encode(text)) for text in ("And of Italy?", "Name a river there.")]
    assert computed[0] == 37 and [n - q for n, q in zip(computed[1:], questions, strict=True)] == [11, 11]
    assert new > sum(computed[1:]) + 37

    session.system = "Answer with one word."
    assert [m["role"] for m in session.messages] == ["system"] + ["user", "assistant"] * 3
    session.reset()
    assert session.messages == [{"role": "system", "content": "Answer with one word."}]
    session.system = None
    assert session.messages == []


def test_an_interrupted_turn(chat_model):
    session = chat_model.session(max_new_tokens=200, ignore_eos=True)

    def stop_at_once(text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.send("Tell me a story.", stream=stop_at_once)
    assert [m["role"] for m in session.messages] == ["user", "assistant"]
    told = session.messages[-1]["content"]
    assert told
    answer = session.send("Go on.", max_new_tokens=5)
    assert answer.timings.prompt_tokens_computed < answer.timings.prompt_tokens - 30
    assert session.messages[1]["content"] == told and len(session.messages) == 4


def test_a_refused_turn_changes_nothing(chat_model):
    session = chat_model.session("Be brief.", max_new_tokens=5)
    before = list(session.messages)
    with pytest.raises(RequestError, match="neither an option nor a variable"):
        session.send("Hello", nonsense=1)
    with pytest.raises(RequestError, match=r"prompt: expected 1\.\.8191 tokens"):
        session.send("word " * 9000)
    assert session.messages == before
