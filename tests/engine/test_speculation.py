"""Tokens that are guessed ahead: the text is the one without guesses, in fewer steps."""

from __future__ import annotations

import copy
import pickle
import random
from collections import Counter

import pytest
import torch

from fdpp import PromptCache
from fdpp.engine import kv_cache
from fdpp.engine.guessers import Draft, Ngrams
from fdpp.engine.prefill import prefill
from fdpp.engine.recording import RecordedStep
from fdpp.engine.sampling_options import SamplingOptions
from fdpp.engine.slots import MIN_STEPS, Slots
from fdpp.engine.speculation import WIDTHS, Trust, same_splits, step_width
from fdpp.errors import RequestError
from fdpp.llm import LLM
from tests.engine.models import LENGTH_DEPENDENT, VARIANTS, VOCAB
from tests.engine.test_runner import mixed_requests, tensors_alive

LONG = {"max_new_tokens": 90, "ignore_eos": True}


@pytest.fixture(params=["ngram", "itself", "other"])
def options(request, checkpoints) -> dict[str, object]:
    """Ways to guess: the text, the same model, and a model that is mostly wrong."""
    drafts = {"itself": "llama", "other": "qwen2"}
    return {"draft": checkpoints(drafts[request.param])[0]} if request.param in drafts else {"speculate": "ngram"}


def knowing(monkeypatch, whole: list[list[int]], wrong: float) -> None:
    """Let the whole texts be known to who guesses, but for a share of their tokens."""
    rng = random.Random(0)

    def guess(self, texts, count):
        guesses = {number: whole[number][len(text) : len(text) + count] for number, text in texts.items()}
        return {n: [token if rng.random() > wrong else 5 for token in found] for n, found in guesses.items() if found}

    monkeypatch.setattr(Ngrams, "guess", guess)


@pytest.mark.parametrize("variant", [*VARIANTS, *LENGTH_DEPENDENT])
def test_every_family_says_the_same(checkpoints, variant, monkeypatch):
    """In bfloat16: the bits are the same. (A window cuts keys elsewhere when several tokens come: float32 there.)"""
    path, has_window = checkpoints(variant)[0], LLM(checkpoints(variant)[0]).model.attentions[0].window >= 0
    options = {"max_new_tokens": 50 if variant in LENGTH_DEPENDENT else 90, "ignore_eos": True}
    options |= {"prompts": [5, 6, 7, 8, 9], "logprobs": None}
    dtype = "float32" if has_window else "bfloat16"
    (expected,) = LLM(path, dtype=dtype).generate(**options)
    knowing(monkeypatch, [expected.prompt_token_ids + expected.token_ids], wrong=0.15)
    for page_size, capture in ((None, False), (None, True), (8, False), (8, True)):
        llm = LLM(path, dtype=dtype, page_size=page_size, capture=capture, speculate="ngram")
        (actual,) = llm.generate(**options)
        assert actual.token_ids == expected.token_ids, (page_size, capture)
        assert 20 < actual.timings.accepted_tokens < actual.timings.guessed_tokens


@pytest.mark.parametrize("page_size", [None, 8])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 5}, {"repetition_penalty": 1.3}])
def test_rows_that_refill(checkpoints, options, page_size, sampling):
    """More prompts than rows: each says what it says alone, without guesses, with its log-probabilities."""
    prompts, ends = mixed_requests(0, 23)
    request = {"max_new_tokens": 40, "stop_token_ids": ends, **sampling}
    path = checkpoints("llama")[0]
    expected = LLM(path, dtype="float32", max_batch_size=len(prompts)).generate(prompts, logprobs=1, **request)
    llm = LLM(path, dtype="float32", page_size=page_size, max_batch_size=4, **options)
    for logprobs in (None, 1, None):
        actual = llm.generate(prompts, logprobs=logprobs, **request)
        for one, other in zip(actual, expected, strict=True):
            assert (one.token_ids, one.text, one.finish_reason) == (other.token_ids, other.text, other.finish_reason)
            assert one.timings.decode_tokens == len(one.token_ids) - 1
            if logprobs:
                assert [list(step) for step in one.logprobs] == [list(step) for step in other.logprobs]


def test_every_draw_is_that_of_its_place(checkpoints, options, monkeypatch):
    """So sampled text has not only the distribution of text without guesses: it is the same."""
    path, count = checkpoints("llama")[0], 300
    rows = [SamplingOptions(temperature=1.5, top_k=4, seed=seed) for seed in range(count)]
    request = {"max_new_tokens": 12, "ignore_eos": True, "sampling": rows}
    prompts = [[5, 6, 7, 8]] * count
    plain = LLM(path, dtype="float32", max_batch_size=2).generate(prompts, **request)
    knowing(monkeypatch, [c.prompt_token_ids + c.token_ids for c in plain], wrong=0.3)
    guessed = LLM(path, dtype="float32", max_batch_size=2, **options).generate(prompts, **request)
    assert [c.token_ids for c in guessed] == [c.token_ids for c in plain]
    assert sum(c.timings.guessed_tokens for c in guessed) > count
    assert len(Counter(tuple(c.token_ids) for c in plain)) > count // 2


def test_a_model_that_drafts_for_itself_is_always_right(checkpoints):
    path = checkpoints("llama")[0]
    llm = LLM(path, dtype="float32", draft=path)
    (one,) = llm.generate([5, 6, 7], max_new_tokens=120, ignore_eos=True)
    assert one.timings.accepted_tokens == one.timings.guessed_tokens
    assert one.timings.decode_tokens - one.timings.accepted_tokens < 120 / 4
    ((runner,), steps) = llm._runners, set()
    for slots in (*runner._slots.values(), runner._guesser._slots):
        steps |= set(slots._captured)
    assert steps == {(1, 8, True), (1, 1, True)}  # the draft's is of one token


def test_guesses_that_are_wrong_stop(checkpoints, monkeypatch):
    """For a while, which gets longer."""
    llm, asked = LLM(checkpoints("llama")[0], dtype="float32", speculate="ngram"), []

    def guess(self, texts, count):
        asked.append(len(texts[0]))
        return {0: [VOCAB - 1] * count}

    monkeypatch.setattr(Ngrams, "guess", guess)
    (one,) = llm.generate([5, 6, 7], max_new_tokens=300, ignore_eos=True)
    assert one.timings.accepted_tokens == 0 and one.timings.guessed_tokens < 40
    pauses = [after - before for before, after in zip(asked, asked[1:], strict=False)]
    assert [pause for pause in pauses if pause > 30] == sorted(pause for pause in pauses if pause > 30)
    assert max(pauses) > 100


@pytest.mark.parametrize("invariant", [False, True])
@torch.inference_mode()
def test_a_step_of_several_tokens_has_the_bits_of_steps_of_one(checkpoints, invariant, request):
    """As long as it stays where attention cuts the keys alike; otherwise, this also finds, it need not."""
    if invariant:
        request.getfixturevalue("batch_invariant")
    llm = LLM(checkpoints("qwen3-wide")[0])  # bfloat16; one head of keys, which two threads split
    ids = torch.randint(3, VOCAB, (400,), generator=torch.Generator().manual_seed(3)).tolist()

    def start(length: int):
        cache = kv_cache.allocate(llm.model.attentions, [len(ids)], llm.dtype, llm.device)
        llm.model.reserve(len(ids))
        prefill(llm.model, [ids[:length]], cache)
        return cache

    differ = 0
    for held in (1, 5, 60, 61, 62, 63, 64, 120, 126, 127, 128, 190, 300, 319, 320):
        for width in WIDTHS:
            one, several = start(held), start(held)

            slots, wide = Slots(llm.model, one, None), Slots(llm.model, several, None)
            steps = []
            for place in range(held, held + width):
                slots.seat([0], [place], torch.tensor(ids[place : place + 1]))
                steps.append(slots.step(1, is_greedy=False, steps_left=0)[0].clone())
            found = wide.extend([ids[held : held + width]], [held], is_greedy=False, steps_left=0)[0]
            if width <= same_splits(held + 1):
                assert torch.equal(found, torch.stack(steps)), (held, width)
            differ += not torch.equal(found, torch.stack(steps))
    assert differ > 0 or invariant


@pytest.mark.parametrize("is_greedy", [False, True])
@pytest.mark.parametrize("page_size", [None, 8])
@pytest.mark.parametrize("variant", ["llama", "gemma3", "bloom", "opt"])
@torch.inference_mode()
def test_a_captured_step_has_the_bits_of_an_eager_one(checkpoints, variant, page_size, is_greedy):
    """With a row that idles, and after rows that went on from elsewhere."""

    llm, found = LLM(checkpoints(variant)[0]), []
    for capture in (None, RecordedStep):
        cache = kv_cache.allocate(llm.model.attentions, [100] * 3, llm.dtype, llm.device, page_size)
        llm.model.reserve(100)
        prefill(llm.model, [[5, 6, 7], [8] * 20], cache, rows=[0, 2])
        slots, kept, lengths = Slots(llm.model, cache, capture), [], [3, -1, 20]
        for count in (4, 1, 3, 4):
            tokens = [[row + count + i for i in range(4)] for row in range(3)]
            result = slots.extend(tokens, lengths, is_greedy, MIN_STEPS)
            kept.append(result[[0, 2]].clone())
            lengths = [lengths[0] + count, -1, lengths[2] + count]
        found.append(kept)
    for eager, captured in zip(*found, strict=True):
        assert torch.equal(eager, captured)


def test_a_conversation_goes_on(checkpoints, options):
    """From the cache of the turns before, which guesses that were wrong have not harmed."""
    path = checkpoints("llama")[0]
    plain, llm = LLM(path, dtype="float32"), LLM(path, dtype="float32", **options)
    prompt, kept, cache = [5, 6, 7, 8, 9] * 3, PromptCache(), PromptCache()
    for turn in range(4):
        (expected,) = plain.generate(prompt, cache=kept, max_new_tokens=30, ignore_eos=True)
        (actual,) = llm.generate(prompt, cache=cache, max_new_tokens=30, ignore_eos=True)
        assert actual.token_ids == expected.token_ids
        assert actual.timings.prompt_tokens_computed == expected.timings.prompt_tokens_computed
        prompt = [*prompt, *expected.token_ids, 10 + turn, 11, 12]


def test_the_draft_computes_what_is_new(checkpoints, monkeypatch):
    """A turn of a conversation, and a prompt that begins like the one before."""
    import fdpp.engine.guessers as guessers

    path, computed = checkpoints("llama")[0], []
    llm, original = LLM(path, dtype="float32", draft=path), guessers.prefill

    def counted(model, prompts, cache, cached, rows):
        computed.append(sum(map(len, prompts)) - sum(cached))
        return original(model, prompts, cache, cached, rows)

    monkeypatch.setattr(guessers, "prefill", counted)
    (first,) = llm.generate([5] * 100, max_new_tokens=20, ignore_eos=True)
    assert sum(computed) >= 100
    computed.clear()
    llm.generate([*[5] * 100, *first.token_ids, 9, 9], max_new_tokens=1, ignore_eos=True)
    llm.generate([*[5] * 100, *first.token_ids, 9, 9], max_new_tokens=20, ignore_eos=True)
    assert sum(computed) < 40


def test_a_draft_that_was_interrupted_knows_what_it_holds(checkpoints, monkeypatch):
    """What it had begun to overwrite is computed again."""
    import fdpp.engine.guessers as guessers

    model, original = LLM(checkpoints("llama")[0], dtype="float32").model, guessers.prefill
    text, other = [5] * 30, [5] * 10 + [6] * 20
    draft = Draft(model, VOCAB, None)
    draft.begin([60], 1)
    expected = draft.guess({0: text}, 4)

    def interrupted(*arguments):
        original(*arguments)
        raise KeyboardInterrupt

    draft.forget(0)
    monkeypatch.setattr(guessers, "prefill", interrupted)
    with torch.inference_mode(), pytest.raises(KeyboardInterrupt):
        draft.guess({1: other}, 4)
    monkeypatch.setattr(guessers, "prefill", original)
    draft.begin([60], 1)
    assert draft.guess({2: text}, 4) == {2: expected[0]}


def test_a_draft_with_a_shorter_context_and_another_vocabulary(checkpoints, tmp_path):
    """Guesses as far as it can, and none that the large model does not know."""
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=VOCAB + 40, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=40, initializer_range=0.5,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    small, large = LLM(tmp_path, dtype="float32"), LLM(checkpoints("llama")[0], dtype="float32")
    draft = Draft(small.model, VOCAB, None)
    draft.begin([30, 100], 2)
    found = draft.guess({0: [5, 6, 7], 1: [8] * 38, 4: [VOCAB + 39]}, 4)
    assert set(found) <= {0, 4} and all(0 <= token < VOCAB for guess in found.values() for token in guess)
    (expected,) = small.generate([5, 6, 7], max_new_tokens=4, ignore_eos=True)
    known = next((i for i, token in enumerate(expected.token_ids) if token >= VOCAB), 4)
    assert found[0] == expected.token_ids[:known]
    assert large.model.vocab_size == VOCAB


def test_memory_does_not_grow(checkpoints, options):
    llm, rng = LLM(checkpoints("llama")[0], max_batch_size=4, **options), random.Random(1)
    prompts, ends = mixed_requests(2, 40)

    def requests(count: int) -> int:
        for _ in range(count):
            group = rng.sample(prompts, rng.randint(1, 6))
            llm.generate(group, max_new_tokens=rng.randint(1, 60), stop_token_ids=ends)
        return tensors_alive()

    llm.generate(prompts, max_new_tokens=60)  # the largest one first
    requests(80)
    settled = requests(60)
    assert requests(60) <= settled + 40


def test_copies_guess_as_well(checkpoints, options):
    llm = LLM(checkpoints("llama")[0], dtype="float32", **options)
    (expected,) = llm.generate([5] * 40, **LONG)
    for other in (copy.deepcopy(llm), pickle.loads(pickle.dumps(llm))):
        (actual,) = other.generate([5] * 40, **LONG)
        assert actual.token_ids == expected.token_ids
        assert actual.timings.guessed_tokens == expected.timings.guessed_tokens


def test_what_cannot_be(checkpoints, tmp_path):
    path = checkpoints("llama")[0]
    with pytest.raises(RequestError, match="speculate: expected \"ngram\" or None, got 'fast'"):
        LLM(path, speculate="fast")
    with pytest.raises(RequestError, match="draft: expected no speculate beside it"):
        LLM(path, speculate="ngram", draft=path)
    other = copy.deepcopy(LLM(path))
    other.tokenizer.encode = lambda text: [7]
    from fdpp.drafts import check_draft

    with pytest.raises(RequestError, match="draft: expected a model with the tokenizer of the large one"):
        check_draft(LLM(path), other)


def test_ngrams():
    """Against a search through the whole text."""
    rng, ngrams = random.Random(0), Ngrams()
    text: list[int] = []
    for _ in range(400):
        text.append(rng.randrange(3))
        ends = [i for i in range(3, len(text)) if text[i - 3 : i] == text[-3:]][-16:]

        def common(place: int) -> int:
            return next((i for i in range(min(32, place)) if text[place - 1 - i] != text[-1 - i]), min(32, place))

        expected = max(ends, key=lambda place: (common(place), place), default=None)
        found = ngrams.guess({7: list(text)}, 5)
        if expected is None:
            assert found == {}
        else:
            goes_on = (text[expected:] * 5)[:5]
            assert found == {7: goes_on}
    ngrams.forget(7)
    assert ngrams.guess({7: [1, 2, 3]}, 5) == {}
    assert ngrams.guess({7: [1, 2, 1, 2, 1, 2]}, 5) == {7: [1, 2, 1, 2, 1]}


def test_how_many_tokens_a_step_has():
    assert [step_width([count], 1, 9) for count in range(8)] == [1, 2, 4, 4, 8, 8, 8, 8]
    assert [step_width([7], 1, room) for room in range(1, 9)] == [1, 2, 2, 4, 4, 4, 4, 8]
    assert step_width([7, 7, 7, 7], 4, 9) == 4  # 16 tokens at most
    assert step_width([7, 0, 0, 0], 4, 9) == 1  # three quarters would be filled up
    assert step_width([7, 7, 0, 0], 4, 9) == 4
    assert step_width([7] * 8, 8, 9) == 2 and step_width([7] * 16, 16, 9) == 1 and step_width([], 1, 9) == 1


def test_trust():
    trust = Trust()
    assert trust.count(0) == 3
    trust.learn(3, 3, 10)
    assert trust.count(10) == 7
    trust.learn(7, 7, 20)
    assert trust.count(20) == 7
    trust.learn(7, 4, 30)
    assert trust.count(30) == 7
    trust.learn(7, 1, 40)
    assert trust.count(40) == 3
    length = 41
    while trust.count(length):
        trust.learn(trust.count(length), 0, length)
        length += 1
    assert length < 50 and trust.count(length + 30) == 0 and trust.count(length + 40) == 1


def test_tokens_after_the_end_are_dropped(checkpoints):
    """An end-of-text token, a stop string, and the last token that a request may have, amid guesses that were right."""
    path = checkpoints("llama")[0]
    plain, llm = LLM(path, dtype="float32"), LLM(path, dtype="float32", draft=path)
    (free,) = plain.generate([5, 6, 7], max_new_tokens=40, ignore_eos=True)
    for place in range(1, 20):
        request = {"max_new_tokens": 40, "stop_token_ids": [free.token_ids[place]], "ignore_eos": True}
        (expected,), (actual,) = (one.generate([5, 6, 7], **request) for one in (plain, llm))
        assert (actual.token_ids, actual.text) == (expected.token_ids, expected.text)
        (short,) = llm.generate([5, 6, 7], max_new_tokens=place, ignore_eos=True)
        assert short.token_ids == free.token_ids[:place] and short.finish_reason == "length"
