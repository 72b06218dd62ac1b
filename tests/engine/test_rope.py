"""Rotary tables of every kind of scaling and every spelling, in float32, against those of transformers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from fdpp._host import HEAD_DIMS
from fdpp.engine import rope
from fdpp.errors import CheckpointError
from fdpp.llm import LLM
from fdpp.models import family_of
from fdpp.models.config import read_config
from fdpp.models.rope import rope_config
from tests.engine.models import LENGTH_DEPENDENT, VOCAB

ORIGINAL = 64
BASE = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 4 * ORIGINAL,
    "rms_norm_eps": 1e-6,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALINGS = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.5},
    "llama3": LLAMA3,
    "llama3 of another original length": LLAMA3 | {"original_max_position_embeddings": ORIGINAL},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": ORIGINAL},
    "yarn with bounds": {"factor": 16.0, "original_max_position_embeddings": 4096, "beta_fast": 24, "beta_slow": 2.5},
    "yarn not truncated": {"factor": 4.0, "original_max_position_embeddings": 4096, "truncate": False},
    "yarn with its own attention": {"factor": 4.0, "attention_factor": 1.25},
    "yarn with mscale": {"factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.0},
    "yarn by the grown context": {"factor": None, "original_max_position_embeddings": ORIGINAL},
    "longrope": {"original_max_position_embeddings": ORIGINAL},
    "longrope with a factor": {"original_max_position_embeddings": ORIGINAL, "factor": 32.0},
    "longrope with its own attention": {"original_max_position_embeddings": ORIGINAL, "attention_factor": 1.5},
}


def parameters(name: str, head_dim: int) -> dict:
    kind = name.split()[0]
    half = head_dim // 2
    lists = {"short_factor": [1.0 + i / half for i in range(half)], "long_factor": [1.5 + i for i in range(half)]}
    return {"rope_type": kind, **SCALINGS[name], **(lists if kind == "longrope" else {})}


def their_tables(config: dict, length: int, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of positions ``first`` to ``length``, taken at once."""
    embedding = LlamaRotaryEmbedding(transformers.LlamaConfig(**config))
    cos, sin = embedding(torch.zeros(1), torch.arange(first, length)[None])
    half = cos.shape[-1] // 2
    return cos[0, :, :half], sin[0, :, :half]


def check(config: dict, lengths: tuple[int, ...] = (1, ORIGINAL, ORIGINAL + 1, 300)) -> None:
    read = rope_config(config)
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    for length in lengths:
        ours = rope.prompt_tables(read, head_dim, length)
        for mine, theirs in zip(ours, their_tables(config, length), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=3e-5)  # angles up to 300: 2^-24 of them
        last = [table[-1:] for table in rope.step_tables(read, head_dim, length)]
        for mine, theirs in zip(last, their_tables(config, length, length - 1), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=3e-5)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("name", SCALINGS)
def test_tables(name, head_dim):
    check(BASE | {"head_dim": head_dim, "rope_parameters": {"rope_theta": 5e5} | parameters(name, head_dim)})


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_equal_to_the_last_bit_but_two(name):
    config = BASE | {"rope_parameters": {"rope_theta": 10000.0} | parameters(name, 64)}
    ours = rope.inverse_frequencies(rope_config(config), 64)[0]
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**config)).inv_freq
    torch.testing.assert_close(ours, theirs, rtol=4 * 2.0**-24, atol=0)


@pytest.fixture
def other_defaults():
    """What a program may have set for its own tensors."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(dtype)


@pytest.mark.parametrize("name", SCALINGS)
def test_tables_do_not_depend_on_the_defaults_of_the_process(name, request):
    read = rope_config(BASE | {"rope_parameters": parameters(name, 64)})
    functions = (rope.step_tables, rope.prompt_tables)
    expected = [function(read, 64, 100) for function in functions]
    request.getfixturevalue("other_defaults")
    torch.testing.assert_close([function(read, 64, 100) for function in functions], expected, rtol=0, atol=0)


PLACES = {
    "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e4},
    "rope_scaling": {"type": "linear", "factor": 3.0},
    "rope_theta": 7e4,
    "original_max_position_embeddings": ORIGINAL,
}


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn", "dynamic", "longrope"])
@pytest.mark.parametrize("present", list(itertools.product([False, True], repeat=len(PLACES))))
def test_every_combination_of_places(present, kind):
    """A key inside and at the top level, the old and the new object, the old and the new name of the kind."""
    config = BASE | {key: value for (key, value), there in zip(PLACES.items(), present, strict=True) if there}
    for place, name in (("rope_parameters", "rope_type"), ("rope_scaling", "type")):
        if place in config:
            added = {key: value for key, value in parameters(kind, 64).items() if key not in ("rope_type", "factor")}
            config[place] = config[place] | added | {name: kind}
    check(config)


def test_scaling_that_was_added_by_hand_replaces_what_transformers_wrote():
    written = BASE | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    read = rope_config(written | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}})
    assert read.linear_factor == 4.0
    check(written | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}})


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),  # not yet in the config
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256),  # in the config already
        ({"rope_type": "dynamic", "factor": 2.0}, 512),
        ({"rope_type": "linear", "factor": 2.0}, 256),
    ],
)
def test_context_length(scaling, context):
    assert read_config(BASE | {"rope_scaling": scaling}).max_positions == context


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "dynamic"}, "rope factor"),
        ({"rope_type": "yarn", "factor": 0.0}, "rope factor"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": math.inf}, "rope beta_fast"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": 1}, "rope truncate"),
        ({"rope_type": "yarn", "factor": 4.0, "mscale": "x", "mscale_all_dim": 1.0}, "rope mscale"),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": -1.0}, "rope attention_factor"),
        ({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1.0}, "rope_theta"),
        ({"rope_type": "longrope", "short_factor": [1.0] * 32}, "rope long_factor: expected a list"),
        (
            {"rope_type": "longrope", "short_factor": [1.0] * 31, "long_factor": [1.0] * 32},
            "expected 32 numbers, got 31",
        ),
        ({"rope_type": "longrope", "short_factor": [1.0] * 32, "long_factor": [0] * 32}, "rope long_factors"),
        ({"rope_type": "mrope"}, "rope_type"),
        ({"full_attention": {"rope_type": "default"}}, "expected one set for all layers"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_what_is_wrong_is_said(scaling, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        family_of(BASE).build(BASE | {"rope_scaling": scaling}, ())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variant", [*LENGTH_DEPENDENT, "yarn-rope"])
@pytest.mark.parametrize("length", [50, 70])
def test_generation_across_the_original_context(checkpoints, variant, length):
    """Prompts on either side of it, and answers that cross it, token for token as transformers decodes them."""
    path, _ = checkpoints(variant)
    model = transformers.AutoModelForCausalLM.from_pretrained(path)  # a new one: it remembers the longest sequence
    ids = torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    options = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = model.generate(torch.tensor([ids]), **options)[0, length:].tolist()
    (completion,) = LLM(path, dtype="float32").generate([ids], max_new_tokens=30, ignore_eos=True)
    assert completion.token_ids == expected
