"""fdpp.LLM from the outside: what comes back for prompts, options, stop strings, streams, and for mistakes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fdpp.engine.sampling_options import SamplingOptions
from fdpp.errors import RequestError
from fdpp.llm import LLM

PROMPTS = [[5, 6, 7], list(range(20, 60)), [9], [200, 100, 50, 25], list(range(5, 30))]


@pytest.fixture(scope="module")
def llama(checkpoints):
    return LLM(checkpoints("llama")[0], dtype="float32")


@pytest.mark.parametrize(
    "options", [{}, {"max_batch_size": 2}, {"page_size": 4}, {"page_size": 4, "max_batch_size": 3}]
)
def test_greedy_equals_transformers(checkpoints, options):
    path, model = checkpoints("llama")
    completions = LLM(path, dtype="float32", **options).generate(PROMPTS, max_new_tokens=20, ignore_eos=True)
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=20, min_new_tokens=20, do_sample=False, eos_token_id=None
        )
        assert completion.token_ids == expected[0, len(prompt) :].tolist()
        assert completion.prompt_token_ids == prompt
        assert completion.finish_reason == "length"
        assert completion.timings.prompt_tokens == len(prompt)
        assert completion.timings.decode_tokens == 19


@pytest.mark.parametrize("page_size", [None, 4])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.8, "seed": 3}, {"temperature": 1.5, "top_p": 0.9, "seed": 4}]
)
def test_a_sequence_does_not_depend_on_its_neighbours(checkpoints, options, page_size):
    llm = LLM(checkpoints("mistral-window")[0], dtype="float32", page_size=page_size)
    alone = llm.generate(PROMPTS[1], max_new_tokens=16, **options)[0]
    llm.eos_token_ids = frozenset({alone.token_ids[0], 17})  # others end early; the first one goes on
    first, *others = llm.generate([PROMPTS[1], *PROMPTS], max_new_tokens=16, ignore_eos=True, **options)
    assert first.token_ids == alone.token_ids
    ended = llm.generate([PROMPTS[1], *PROMPTS], max_new_tokens=16, **options)
    for full, short in zip([first, *others], ended, strict=True):
        assert full.token_ids[: len(short.token_ids)] == short.token_ids


def test_a_prompt_is_a_text_or_ids_or_a_list(llama):
    ids = llama.tokenizer.encode("the end")
    results = [llama.generate(p, max_new_tokens=3)[0] for p in ("the end", ["the end"], ids, [ids])]
    assert all(result.token_ids == results[0].token_ids for result in results)
    assert results[0].prompt_token_ids == ids


def test_autocast_changes_nothing(llama):
    """The dtype is that of the model; a prompt long enough for every implementation of a linear layer."""
    prompt = [1 + i % 50 for i in range(125)]
    (expected,) = llama.generate(prompt, max_new_tokens=8)
    with torch.autocast("cpu", torch.bfloat16):
        (actual,) = llama.generate(prompt, max_new_tokens=8)
    assert actual.token_ids == expected.token_ids


def test_seed(llama):
    draw = {"max_new_tokens": 12, "temperature": 2.0, "ignore_eos": True}
    first, again, other = (llama.generate([[5, 6]] * 2, seed=seed, **draw) for seed in (1, 1, 2))
    assert [c.token_ids for c in first] == [c.token_ids for c in again]
    assert first[0].token_ids != other[0].token_ids
    assert first[0].token_ids != first[1].token_ids  # equal prompts of one request still differ
    torch.manual_seed(5)
    unseeded = llama.generate([5, 6], **draw)[0].token_ids
    torch.manual_seed(5)
    assert llama.generate([5, 6], **draw)[0].token_ids == unseeded


def test_top_k_of_one_is_greedy(llama):
    greedy = llama.generate([5, 6], max_new_tokens=10)[0].token_ids
    assert llama.generate([5, 6], max_new_tokens=10, temperature=3.0, top_k=1, seed=0)[0].token_ids == greedy
    assert llama.generate([5, 6], max_new_tokens=10, temperature=3.0, top_p=1e-9, seed=0)[0].token_ids == greedy
    assert llama.generate([5, 6], max_new_tokens=10, temperature=1e-30, seed=0)[0].token_ids == greedy


def test_end_of_text(checkpoints):
    llm = LLM(checkpoints("llama")[0], dtype="float32")
    free = llm.generate(PROMPTS[1], max_new_tokens=12, ignore_eos=True)[0]
    llm.eos_token_ids = frozenset({free.token_ids[5]})
    position = free.token_ids.index(free.token_ids[5])
    ended = llm.generate(PROMPTS[1], max_new_tokens=12)[0]
    assert ended.finish_reason == "stop"
    assert ended.token_ids == free.token_ids[: position + 1]
    assert ended.text == llm.tokenizer.decode(ended.token_ids[:-1]).rstrip("\ufffd")


def test_several_end_of_text_ids(checkpoints, tmp_path):
    import json
    import shutil

    path, _ = checkpoints("llama")
    shutil.copytree(path, tmp_path, dirs_exist_ok=True)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert LLM(tmp_path).eos_token_ids == {2, 7, 9}  # 2: config.json and the tokenizer


def test_stop_strings(llama):
    free = llama.generate(PROMPTS[0], max_new_tokens=40, ignore_eos=True)[0]
    stop = free.text[8:11]
    cut = llama.generate(PROMPTS[0], max_new_tokens=40, ignore_eos=True, stop=["never in there", stop])[0]
    assert cut.finish_reason == "stop"
    assert cut.text == free.text[: free.text.index(stop)]
    assert len(cut.token_ids) < len(free.token_ids)


@pytest.mark.parametrize("stop", [(), ("an",), ("\ufffd", "e")])
def test_what_is_streamed_is_the_text(llama, stop):
    shown: dict[int, str] = {}

    def stream(index: int, text: str) -> None:
        assert text
        shown[index] = shown.get(index, "") + text

    completions = llama.generate(PROMPTS, max_new_tokens=40, temperature=1.0, seed=0, stop=stop, stream=stream)
    for index, completion in enumerate(completions):
        assert shown.get(index, "") == completion.text
        assert not any(string in completion.text for string in stop)


def test_context_bounds_the_answer(checkpoints):
    llm = LLM(checkpoints("llama")[0], dtype="float32", max_seq_len=20)
    (completion,) = llm.generate(list(range(5, 20)), max_new_tokens=100, ignore_eos=True)
    assert len(completion.token_ids) == 5 and completion.finish_reason == "length"
    with pytest.raises(RequestError, match="1..19 tokens, got 20"):
        llm.generate(list(range(5, 25)))
    assert LLM(checkpoints("llama")[0], max_seq_len=10**6).max_seq_len == 512


def test_no_new_tokens(llama):
    (completion,) = llama.generate([5, 6], max_new_tokens=0)
    assert completion.text == "" and completion.token_ids == [] and completion.finish_reason == "length"
    assert completion.timings.decode_tokens_per_second == 0


@pytest.mark.parametrize(
    "make",
    [np.array, torch.tensor, lambda ids: list(np.array(ids)), lambda ids: [torch.tensor(i) for i in ids], tuple,
     lambda ids: np.array([ids]), lambda ids: torch.tensor([ids], dtype=torch.int32), lambda ids: [np.array(ids)],
     lambda ids: np.array(ids, dtype=np.uint16)],
)  # fmt: skip
def test_ids_of_numpy_and_torch(llama, make):
    expected = llama.generate(PROMPTS[0], max_new_tokens=3)[0]
    (completion,) = llama.generate(make(PROMPTS[0]), max_new_tokens=np.int64(3))
    assert completion.token_ids == expected.token_ids
    assert completion.prompt_token_ids == PROMPTS[0]
    assert {type(token) for token in completion.prompt_token_ids} == {int}


def test_a_range_and_texts_of_numpy_are_prompts(llama):
    assert llama.generate(range(20, 60), max_new_tokens=1)[0].prompt_token_ids == PROMPTS[1]
    (completion,) = llama.generate(np.array(["the end"]), max_new_tokens=1)
    assert completion.prompt_token_ids == llama.tokenizer.encode("the end")


def test_options_for_each_prompt(llama):
    options = [SamplingOptions(), SamplingOptions(1.0, seed=3), SamplingOptions(2.0, 40, 0.9, 4, 0.01, 1.2)]
    batch = llama.generate(PROMPTS[:3], max_new_tokens=9, sampling=options, ignore_eos=True)
    for prompt, row, completion in zip(PROMPTS, options, batch, strict=False):
        (alone,) = llama.generate(prompt, max_new_tokens=30, sampling=row, ignore_eos=True)
        assert completion.token_ids == alone.token_ids[:9]  # draws depend on the seed and the step alone
        assert completion.sampling == row


def test_a_drawn_seed_repeats_the_completion(llama):
    draw = {"max_new_tokens": 9, "ignore_eos": True}
    first, second = llama.generate(PROMPTS[:2], temperature=1.5, **draw)
    assert first.sampling.seed == second.sampling.seed is not None
    again = llama.generate(PROMPTS[:2], sampling=first.sampling, **draw)
    assert [c.token_ids for c in again] == [first.token_ids, second.token_ids]


def test_several_completions_of_a_prompt(llama):
    shown: dict[int, str] = {}
    completions = llama.generate(
        PROMPTS[:2],
        max_new_tokens=9,
        temperature=1.5,
        seed=0,
        n=3,
        ignore_eos=True,
        stream=lambda index, text: shown.__setitem__(index, shown.get(index, "") + text),
    )
    assert [c.prompt_token_ids for c in completions] == [PROMPTS[0]] * 3 + [PROMPTS[1]] * 3
    assert len({tuple(c.token_ids) for c in completions}) == 6
    assert [shown.get(index, "") for index in range(6)] == [c.text for c in completions]
    rows = [SamplingOptions(1.5, seed=seed) for seed in (8, 9)]
    for_each = llama.generate(PROMPTS[:2], max_new_tokens=9, sampling=rows, n=2, ignore_eos=True)
    for row, prompt, pair in zip(rows, PROMPTS, (for_each[:2], for_each[2:]), strict=False):
        alone = llama.generate(prompt, max_new_tokens=9, sampling=row, n=2, ignore_eos=True)
        assert [c.token_ids for c in pair] == [c.token_ids for c in alone]


@pytest.mark.parametrize("page_size", [None, 4])
def test_several_completions_share_the_prefill(checkpoints, page_size):
    llm = LLM(checkpoints("mistral-window")[0], dtype="float32", page_size=page_size, max_batch_size=4)
    options = {"max_new_tokens": 9, "temperature": 1.5, "seed": 0, "ignore_eos": True}
    apart = llm.generate([PROMPTS[1]] * 3 + [PROMPTS[0]] * 3, **options)
    together = llm.generate([PROMPTS[1], PROMPTS[0]], n=3, **options)
    assert [c.token_ids for c in together] == [c.token_ids for c in apart]
    # The second group begins within the second prompt.
    assert [c.timings.prompt_tokens_computed for c in together] == [40, 0, 0, 3, 3, 0]


def test_stop_token_ids(llama):
    free = llama.generate(PROMPTS[1], max_new_tokens=12, ignore_eos=True)[0]
    end = free.token_ids[5]
    position = free.token_ids.index(end)
    for ids in ([end, 3], np.array([end]), {"ignore_eos": True}):
        options = {"stop_token_ids": [end]} | ids if isinstance(ids, dict) else {"stop_token_ids": ids}
        ended = llama.generate(PROMPTS[1], max_new_tokens=12, **options)[0]
        assert ended.finish_reason == "stop"
        assert ended.token_ids == free.token_ids[: position + 1]


@pytest.mark.parametrize("sampling", [SamplingOptions(), SamplingOptions(1.5, 20, seed=1, repetition_penalty=1.5)])
def test_logprobs(checkpoints, sampling):
    """The model's own, whatever the options, against float64."""
    path, model = checkpoints("llama")
    llm = LLM(path, dtype="float32", max_batch_size=2)
    completions = llm.generate(PROMPTS[:3], max_new_tokens=6, sampling=sampling, logprobs=4, ignore_eos=True)
    plain = llm.generate(PROMPTS[:3], max_new_tokens=6, sampling=sampling, ignore_eos=True)
    assert [c.token_ids for c in plain] == [c.token_ids for c in completions]
    assert plain[0].logprobs is None
    for prompt, completion in zip(PROMPTS, completions, strict=False):
        ids = torch.tensor([prompt + completion.token_ids])
        with torch.inference_mode():
            expected = model(ids).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        assert len(completion.logprobs) == len(completion.token_ids)
        for chosen, kept, row in zip(completion.token_ids, completion.logprobs, expected, strict=True):
            assert list(kept)[:4] == row.topk(4).indices.tolist()
            assert len(kept) == 4 + (chosen not in list(kept)[:4])
            for token in (chosen, *kept):
                assert kept[token] == pytest.approx(row[token].item(), abs=1e-4)


def test_logprobs_end_with_the_sequence(llama):
    assert llama.generate(PROMPTS[0], max_new_tokens=0, logprobs=2)[0].logprobs == []
    free = llama.generate(PROMPTS[:2], max_new_tokens=12, ignore_eos=True)
    ends = [free[0].token_ids[3]]
    for completion in llama.generate(PROMPTS[:2], max_new_tokens=12, stop_token_ids=ends, logprobs=0):
        assert [list(kept) for kept in completion.logprobs] == [[token] for token in completion.token_ids]


def test_a_stop_string_that_is_a_special_token(checkpoints):
    llm = LLM(checkpoints("llama")[0], dtype="float32")
    free = llm.generate(PROMPTS[1], max_new_tokens=12, ignore_eos=True)[0]
    token = free.token_ids[5]
    position = free.token_ids.index(token)
    spelling = llm.tokenizer._tokenizer.convert_ids_to_tokens(token)
    llm.tokenizer._tokenizer.add_special_tokens({"additional_special_tokens": [spelling]})
    llm.tokenizer = type(llm.tokenizer)(llm.tokenizer._tokenizer)
    shown: list[str] = []
    options = {"max_new_tokens": 12, "ignore_eos": True, "stream": lambda index, text: shown.append(text)}
    ended = llm.generate(PROMPTS[1], stop=[spelling], **options)[0]
    assert ended.finish_reason == "stop"
    assert ended.token_ids == free.token_ids[: position + 1]
    assert ended.text == "".join(shown)
    assert spelling not in ended.text


def test_chat(llama):
    messages = [{"role": "user", "content": "the end"}]
    (completion,) = llama.chat(messages, max_new_tokens=2)
    text = "<|im_start|>user\nthe end<|im_end|>\n<|im_start|>assistant\n"
    assert completion.prompt_token_ids == llama.tokenizer.encode(text)


def test_a_model_without_tokenizer(checkpoints, tmp_path):
    checkpoints("llama")[1].save_pretrained(tmp_path)
    llm = LLM(tmp_path)
    assert len(llm.generate([5, 6], max_new_tokens=3, ignore_eos=True)[0].token_ids) == 3
    for call in (lambda: llm.generate("text"), lambda: llm.generate([5], stop="x"), lambda: llm.chat([])):
        with pytest.raises(RequestError, match="no tokenizer"):
            call()


def test_step_bytes(checkpoints):
    _, model = checkpoints("llama-tied")
    llm = LLM(checkpoints("llama-tied")[0], dtype="bfloat16")
    weights = 2 * sum(parameter.numel() for parameter in model.parameters())
    assert llm.model.step_bytes(0) == weights
    assert llm.model.step_bytes(100, batch=3) == weights + 3 * 100 * 2 * 3 * 4 * 64 * 2
    windowed = LLM(checkpoints("mistral-window")[0], dtype="float32")
    assert windowed.model.step_bytes(100) == windowed.model.step_bytes(11)
