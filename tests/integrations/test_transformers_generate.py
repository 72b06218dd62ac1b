"""``generate`` of an accelerated model, in each of its ways, and torch.compile."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from transformers import DynamicCache, StaticCache

from fdpp.integrations.transformers import accelerate, append_in_place
from fdpp.integrations.transformers.cache import AppendingLayer, AppendingWindowLayer
from tests.engine.models import tiny_model
from tests.integrations.families import VOCAB, error, tokens

GREEDY = {"do_sample": False}
# name: (rows of the batch, arguments of generate)
WAYS = {
    "greedy": (2, GREEDY),
    "sampled": (2, {"do_sample": True, "top_k": 20}),
    "several of each": (2, {"do_sample": True, "num_return_sequences": 3}),
    "beams": (2, GREEDY | {"num_beams": 3}),
    "sampled beams": (2, {"do_sample": True, "num_beams": 2}),
    "static cache": (2, GREEDY | {"cache_implementation": "static"}),
    "no cache": (1, GREEDY | {"use_cache": False}),
    "prompt in pieces": (2, GREEDY | {"prefill_chunk_size": 7}),
    "look-up in the prompt": (1, GREEDY | {"prompt_lookup_num_tokens": 3}),
}


def _generate(model: torch.nn.Module, prompt: torch.Tensor, **options: object) -> torch.Tensor:
    torch.manual_seed(3)
    return model.generate(prompt, max_new_tokens=14, min_new_tokens=14, pad_token_id=0, **options)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "mistral-window"])
def test_ways(pair, steps, family, way):
    model, accelerated = pair(family)
    rows, options = WAYS[way]
    prompt = tokens(rows, 17)
    assert torch.equal(_generate(accelerated, prompt, **options), _generate(model, prompt, **options))
    assert bool(steps) == (way != "no cache")


def test_assisted(pair):
    """The assistant's cache goes back to where the model agreed, also where a window has left tokens behind."""
    for family in ("llama", "mistral-window"):
        model, accelerated = pair(family)
        prompt = tokens(1, 17)
        assistant = copy.deepcopy(model)
        with torch.no_grad():
            assistant.lm_head.weight.add_(torch.randn_like(assistant.lm_head.weight), alpha=0.05)
        expected = _generate(model, prompt, do_sample=False)
        got = _generate(accelerated, prompt, do_sample=False, assistant_model=accelerate(assistant))
        assert torch.equal(got, expected)


def test_a_cache_of_the_user_is_continued(pair):
    model, accelerated = pair("llama")
    prompt = tokens(1, 9)
    found = []
    for each in (model, accelerated):
        cache = DynamicCache(config=each.config)
        first = _generate(each, prompt, do_sample=False, past_key_values=cache)
        found.append(
            _generate(each, torch.cat((first, tokens(1, 4, seed=1)), 1), do_sample=False, past_key_values=cache)
        )
        assert not isinstance(cache.layers[0], AppendingLayer)  # it is the user's
    assert torch.equal(*found)


def test_generate_appends_in_place(pair):
    for family, kinds in (("llama", {AppendingLayer}), ("ministral", {AppendingLayer, AppendingWindowLayer})):
        _, accelerated = pair(family)
        result = accelerated.generate(tokens(1, 5), max_new_tokens=2, return_dict_in_generate=True, pad_token_id=0)
        assert {type(layer) for layer in result.past_key_values.layers} == kinds


@pytest.mark.parametrize("name", ["BartConfig", "T5Config"])
def test_encoder_and_decoder(name):
    sizes = {"vocab_size": VOCAB, "d_model": 256, "pad_token_id": 0, "decoder_start_token_id": 1, "num_layers": 2}
    sizes |= {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_ff": 64, "num_heads": 4, "init_std": 0.2}
    sizes |= {"forced_eos_token_id": None}
    torch.manual_seed(0)
    model = transformers.AutoModelForSeq2SeqLM.from_config(getattr(transformers, name)(**sizes)).eval()
    prompt, mask = tokens(2, 11), torch.ones(2, 11, dtype=torch.int64)
    mask[0, 8:] = 0
    expected = _generate(model, prompt, do_sample=False, attention_mask=mask)
    assert torch.equal(_generate(accelerate(model), prompt, do_sample=False, attention_mask=mask), expected)


@pytest.fixture
def compiled():
    """A function from a family to a small model, and an accelerated and compiled copy of it."""
    torch._dynamo.reset()

    def make(family: str) -> tuple[torch.nn.Module, torch.nn.Module]:
        model = tiny_model(family, num_hidden_layers=1)
        return model, torch.compile(accelerate(copy.deepcopy(model)), fullgraph=True, backend="eager")

    yield make
    torch._dynamo.reset()


@pytest.mark.parametrize(("family", "cache"), [("llama", "dynamic"), ("mistral-window", "static")])
def test_compiled_in_one_graph(compiled, steps, family, cache):
    """Without a mask of padding, which a compiler cannot read, steps stay decode_attention's."""
    found = []
    for model in compiled(family):
        past = StaticCache(model.config, max_cache_len=30) if cache == "static" else DynamicCache(config=model.config)
        append_in_place(past)
        getattr(model, "_orig_mod", model)(tokens(1, 17), past_key_values=past)
        steps.clear()
        found.append(torch.cat([model(tokens(1, 1, seed), past_key_values=past).logits for seed in range(3)], dim=1))
    assert error(found[1], found[0]) < 1e-4
    assert steps


def test_compiled_with_padding(compiled):
    model, accelerated = compiled("llama")
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[0, :5] = 0
    expected = model(tokens(2, 12), attention_mask=mask).logits
    assert error(accelerated(tokens(2, 12), attention_mask=mask).logits[:, 5:], expected[:, 5:]) < 1e-4
