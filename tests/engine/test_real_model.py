"""SmolLM2-135M-Instruct from its GGUF file against transformers with the weights of the same file."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
import transformers

from fdpp.engine import kv_cache
from fdpp.engine.prefill import prefill
from fdpp.llm import LLM
from tests.engine.helpers import forced_logits, reference_logits

NEW_TOKENS = 64
PROMPTS = [
    "What is the capital of France?",
    "The three primary colours are",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village by the sea, there lived an old fisherman who",
    "2, 4, 8, 16,",
    "Dear Sir or Madam,\n\nI am writing to",
    "Der schnelle braune Fuchs springt über",
    "Q: Why is the sky blue?\nA:",
]


@pytest.fixture(scope="module")
def llm(real_model):
    return LLM(real_model, dtype="float32")


@pytest.fixture(scope="module")
def reference(real_model):
    """The model of transformers, with the weights as the reader of the gguf package gives them."""
    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
    )
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(real_model).tensors}
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = stored[names.get_name(name, (".weight",))]
            values = torch.from_numpy(gguf.quants.dequantize(np.array(tensor.data), tensor.tensor_type))
            if "q_proj" in name or "k_proj" in name:  # rows of a head: (pair, half) to (half, pair)
                values = values.view(-1, 32, 2, config.hidden_size).transpose(1, 2)
            parameter.copy_(values.reshape(parameter.shape))
    return model


@pytest.fixture(scope="module")
def expected(llm, reference):
    """The greedy continuations by transformers: one batch, padded on the left."""
    prompts = [llm.tokenizer.encode(prompt) for prompt in PROMPTS]
    longest = max(map(len, prompts))
    tokens = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None}
    return reference.generate(tokens, attention_mask=mask, pad_token_id=0, **options)[:, longest:].tolist()


@pytest.mark.parametrize("page_size", [None, 16])
def test_greedy_tokens_equal_those_of_transformers(llm, expected, page_size):
    llm.page_size = page_size
    completions = llm.generate(PROMPTS, max_new_tokens=NEW_TOKENS, ignore_eos=True)
    assert [completion.token_ids for completion in completions] == expected


def test_one_prompt_at_a_time(llm, expected):
    llm.page_size = None
    for prompt, tokens in zip(PROMPTS[:2], expected, strict=False):
        assert llm.generate(prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True)[0].token_ids == tokens


@pytest.mark.parametrize("batch", [1, 8])
def test_bfloat16_logits_stay_near_float32(real_model, llm, reference, expected, batch):
    sequences = [llm.tokenizer.encode(p) + t for p, t in zip(PROMPTS[:batch], expected, strict=False)]
    prefill = [len(ids) - NEW_TOKENS for ids in sequences]
    ours = forced_logits(LLM(real_model, dtype="bfloat16"), sequences, prefill, None)
    for ids, count, logits in zip(sequences, prefill, ours, strict=True):
        oracle = reference_logits(reference, ids)[count - 1 :]
        assert (logits - oracle).norm() / oracle.norm() < 2e-2


def test_it_answers(llm):
    (completion,) = llm.chat([{"role": "user", "content": "What is the capital of France?"}])
    assert "Paris" in completion.text
    assert completion.finish_reason == "stop" and completion.token_ids[-1] == 2
    assert "<|im_end|>" not in completion.text


def test_step_bytes(real_model, llm):
    parameters, norms = 134_515_008, 61 * 576
    stored = (parameters - norms - 49152 * 576) * 20 // 32 + 49152 * 576 * 34 // 32  # Q4_1, and Q8_0 for the head
    assert llm.model.step_bytes(0) == stored + norms * 4
    dequantised = LLM(real_model, dtype="float32", weights="dequantised")
    assert dequantised.model.step_bytes(0) == parameters * 4
    assert dequantised.model.step_bytes(10, batch=2) == parameters * 4 + 2 * 10 * 30 * 2 * 3 * 64 * 4


@pytest.mark.parametrize(("dtype", "divergence"), [("float32", 1e-6), ("float16", 2e-5), ("bfloat16", 1e-3)])
def test_what_stored_weights_cost_in_accuracy(real_model, reference, dtype, divergence):
    """Over 768 tokens: the mean divergence from the model with the exact values of the file in float32.

    With 16-bit activations it is their own rounding, and that of keys, values and logits, that is seen.
    """
    llm = LLM(real_model, dtype=dtype)
    ids = llm.tokenizer.encode(HELD_OUT * 3)[:768]
    (ours,) = forced_logits(llm, [ids], [1], None)
    exact = reference_logits(reference, ids)[: len(ours)].log_softmax(-1)
    ours = ours[: len(exact)].log_softmax(-1)
    assert len(exact) == 768
    assert (exact.exp() * (exact - ours)).sum(-1).mean() < divergence
    assert (ours.argmax(-1) == exact.argmax(-1)).double().mean() >= 0.99


def test_tokens_equal_those_of_the_hugging_face_tokenizer(llm):
    """Ids from HuggingFaceTB/SmolLM2-135M-Instruct: digits one by one, then GPT-2's expression."""
    encode = llm.tokenizer.encode
    assert encode("What is 12345?") == [1780, 314, 216, 33, 34, 35, 36, 37, 47]
    assert encode("x2000y") == [104, *encode("2"), *encode("0") * 3, 105]
    text = "Hello  world\n\n x'll 42 é 日本 😀 ok"
    assert llm.tokenizer.decode(encode(text)) == text
    assert encode("a<|im_end|>b")[1] == 2


# Not in the text that ships with fdpp: the beginnings of Moby Dick and of A Tale of Two Cities, and a program.
HELD_OUT = """Call me Ishmael. Some years ago--never mind how long precisely--having little or no money in my purse, and
nothing particular to interest me on shore, I thought I would sail about a little and see the watery part of the world.
It is a way I have of driving off the spleen and regulating the circulation. Whenever I find myself growing grim about
the mouth; whenever it is a damp, drizzly November in my soul; whenever I find myself involuntarily pausing before
coffin warehouses, and bringing up the rear of every funeral I meet; then, I account it high time to get to sea.

It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it was the
epoch of belief, it was the epoch of incredulity, it was the season of Light, it was the season of Darkness, it was the
spring of hope, it was the winter of despair, we had everything before us, we had nothing before us.

def primes(limit):
    sieve = [True] * (limit + 1)
    for n in range(2, int(limit**0.5) + 1):
        if sieve[n]:
            sieve[n * n :: n] = [False] * len(sieve[n * n :: n])
    return [n for n in range(2, limit + 1) if sieve[n]]
"""


def test_a_calibration_keeps_references_where_they_are(real_model):
    """On text that the calibration has not seen, fed token by token, as decoding does."""
    llm = LLM(real_model, dtype="bfloat16", phi=None)
    ids = llm.tokenizer.encode(HELD_OUT)

    def moves() -> int:
        cache = kv_cache.allocate(llm.model.attentions, [len(ids)], llm.dtype, llm.device)
        llm.model.reserve(len(ids))
        with torch.inference_mode():
            prefill(llm.model, [ids[:1]], cache)
            for place, token in enumerate(ids[1:], start=1):
                position = torch.tensor([place], dtype=torch.int32)
                llm.model.step(torch.tensor([token]), position[:, None], position + 1, cache)
        return int(cache.rereferences.sum())

    softmaxes = (len(ids) - 1) * 30 * 9
    before = moves()
    found = llm.calibrate()
    assert found.tokens > 1500
    after = moves()
    assert after < 0.01 * softmaxes  # the goal
    assert after < 0.6 * before
