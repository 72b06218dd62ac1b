"""``fdpp generate`` on a tiny model: what goes where, and that options reach the engine."""

from __future__ import annotations

import re
import shutil

import pytest

from tests.cli.conftest import LONG, TEXT

TOKENS = ("--max-new-tokens", 6, "--ignore-eos", "--dtype", "float32")
RAW = ("--raw", *TOKENS)


@pytest.fixture(scope="module")
def llm(tiny_model):
    from fdpp import LLM

    return LLM(tiny_model, dtype="float32")


def test_text_goes_to_stdout_and_figures_to_stderr(fdpp, tiny_model, llm):
    outcome = fdpp("generate", "--model", tiny_model, "--prompt", TEXT, *RAW)
    (expected,) = llm.generate(TEXT, max_new_tokens=6, ignore_eos=True)
    assert (outcome.code, outcome.out) == (0, expected.text + "\n")
    prompt, decode, memory, softmax = outcome.err.strip().splitlines()
    assert re.fullmatch(rf"prompt +{len(expected.prompt_token_ids)} tokens in [\d.]+ s, [\d.]+ tokens/s", prompt)
    assert re.fullmatch(r"decode +5 tokens in [\d.]+ s, [\d.]+ tokens/s, [\d.]+ ms/token", decode)
    assert re.fullmatch(r"memory +[\d.]+ MB/token, [\d.]+ GB/s: \d+% of the bandwidth bound \([\d.]+ GB/s\)", memory)
    assert re.fullmatch(
        r"softmax +guard moved \d+ times \([\d.]+% of rows and heads\); phi: 0; see `fdpp calibrate`", softmax
    )


def test_a_chat_model_gets_its_template(fdpp, tiny_model, llm):
    messages = [{"role": "system", "content": "short"}, {"role": "user", "content": TEXT}]
    (with_system,) = llm.chat(messages, max_new_tokens=6, ignore_eos=True)
    (without,) = llm.chat(messages[1:], max_new_tokens=6, ignore_eos=True)
    prompt = ("generate", "--model", tiny_model, "--prompt", TEXT, *TOKENS)
    assert fdpp(*prompt).out == fdpp(*prompt, "--chat").out == without.text + "\n"
    system = fdpp(*prompt, "--system", "short")
    assert system.out == with_system.text + "\n"
    assert f"prompt   {len(with_system.prompt_token_ids)} tokens" in system.err


def test_a_model_without_a_template_continues_the_text_and_says_so(fdpp, tiny_model, plain_model):
    outcome = fdpp("generate", "--model", plain_model, "--prompt", TEXT, *TOKENS)
    assert outcome.out == fdpp("generate", "--model", tiny_model, "--prompt", TEXT, *RAW).out
    assert outcome.err.startswith("fdpp: note: this model has no chat template")


def test_prompt_from_a_file_and_from_stdin(fdpp, tiny_model, tmp_path, monkeypatch):
    file = tmp_path / "prompt.txt"
    file.write_text(TEXT)
    direct = fdpp("generate", "--model", tiny_model, "--prompt", TEXT, *RAW)
    assert fdpp("generate", "--model", tiny_model, "--prompt-file", file, *RAW).out == direct.out
    with file.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert fdpp("generate", "--model", tiny_model, "--prompt-file", "-", *RAW).out == direct.out


def test_every_option_reaches_the_engine(fdpp, monkeypatch):
    seen = {}

    class FakeLLM:
        tokenizer = None

        def __init__(self, model, **options):
            seen.update(options, model=model)

        def generate(self, prompt, **options):
            seen.update(options, prompt=prompt)
            raise MemoryError("far enough")

    monkeypatch.setattr("fdpp.LLM", FakeLLM, raising=False)
    outcome = fdpp(
        *("generate", "--model", "m", "--prompt", "p", "--device", "cpu", "--dtype", "float16", "--threads", 1),
        *("--no-capture", "--phi", "none", "--weights", "dequantised"),
        *("--max-seq-len", 99, "--page-size", 16, "--max-new-tokens", 7, "--temperature", 0.5, "--top-k", 3),
        *("--top-p", 0.25, "--seed", 11, "--stop", "a", "--stop", "b", "--ignore-eos", "--min-p", 0.125),
        *("--repetition-penalty", 1.5, "--stop-token-id", 4, "--stop-token-id", 5, "--no-generation-config"),
        *("--draft", "d"),
    )
    assert (outcome.code, outcome.err) == (2, "fdpp: error: MemoryError: far enough\n")
    del seen["stream"]
    assert seen == {
        "capture": False, "phi": "none", "weights": "dequantised",
        "model": "m", "device": "cpu", "dtype": "float16", "num_threads": 1, "max_seq_len": 99, "page_size": 16,
        "max_batch_size": 1, "progress": None, "prompt": "p", "max_new_tokens": 7, "temperature": 0.5, "top_k": 3,
        "top_p": 0.25, "seed": 11, "stop": ("a", "b"), "ignore_eos": True, "min_p": 0.125, "repetition_penalty": 1.5,
        "stop_token_ids": (4, 5), "generation_config": False, "draft": "d", "speculate": None,
    }  # fmt: skip


TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.name }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if enable_thinking is false %}no{% endif %}{{ mood }}"
)


@pytest.fixture(scope="module")
def tool_model(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tools"
    shutil.copytree(tiny_model, path, ignore=shutil.ignore_patterns("chat_template*"))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


def test_variables_of_the_chat_template(fdpp, tool_model, tmp_path, llm):
    tools = tmp_path / "tools.json"
    tools.write_text('[{"name": "weather"}, {"name": "é"}]', encoding="utf-8")
    outcome = fdpp(
        *("generate", "--model", tool_model, "--prompt", TEXT, *TOKENS, "--tools", tools),
        *("--template-arg", "enable_thinking=false", "--template-arg", "mood=sunny=1"),
    )
    (expected,) = llm.generate(f"weatheré{TEXT}nosunny=1", max_new_tokens=6, ignore_eos=True)
    assert (outcome.code, outcome.out) == (0, expected.text + "\n")
    assert f"prompt   {len(expected.prompt_token_ids)} tokens" in outcome.err


def test_sampling_options_of_the_model(fdpp, tiny_model, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(tiny_model, path)
    (path / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.5, "top_k": 9}')
    prompt = ("generate", "--prompt", TEXT, *RAW, "--seed", 1, "--model")
    sampled, plain = fdpp(*prompt, path), fdpp(*prompt, tiny_model)
    line = "sampling temperature 0.5, top_k 9 (defaults of generation_config.json; --no-generation-config)"
    assert line in sampled.err.splitlines()
    assert sampled.out == fdpp(*prompt, tiny_model, "--temperature", 0.5, "--top-k", 9).out
    assert fdpp(*prompt, path, "--temperature", 0).out == plain.out
    without = fdpp(*prompt, path, "--no-generation-config")
    assert without.out == plain.out
    assert "sampling" not in without.err + plain.err
    assert "sampling temperature 2, top_k 9 " in fdpp(*prompt, path, "--temperature", 2).err


def test_more_new_tokens_than_the_context_has_is_no_error(fdpp, tiny_model):
    outcome = fdpp(
        "generate",
        "--model",
        tiny_model,
        "--raw",
        "--prompt",
        "a",
        "--ignore-eos",
        "--max-seq-len",
        9,
        "--max-new-tokens",
        LONG,
    )
    assert outcome.code == 0
    assert "decode   7 tokens" in outcome.err  # 1 of the prompt, 1 with the prefill


def test_stop_ends_the_text(fdpp, tiny_model):
    whole = fdpp("generate", "--model", tiny_model, "--prompt", TEXT, *RAW).out.rstrip("\n")
    stop = whole[2:4]
    cut = fdpp("generate", "--model", tiny_model, "--prompt", TEXT, "--stop", stop, *RAW)
    assert cut.out == whole[: whole.index(stop)] + "\n"


@pytest.mark.parametrize("way", ["--speculate", "--draft"])
def test_guesses(fdpp, tiny_model, way):
    """The same text, and a line of figures more."""
    options = ("generate", "--model", tiny_model, "--prompt", "the and the and the and", *RAW, "--max-new-tokens", 60)
    plain, guessed = fdpp(*options), fdpp(*options, way, "ngram" if way == "--speculate" else tiny_model)
    assert (guessed.code, guessed.out) == (0, plain.out)
    found = re.search(r"^guesses +(\d+) of (\d+) tokens accepted, [\d.]+ tokens/step$", guessed.err, re.MULTILINE)
    assert found is not None and 0 <= int(found[1]) <= int(found[2])
    assert way == "--speculate" or found[1] == found[2]  # a model that drafts for itself
    assert "guesses" not in plain.err


def test_two_ways_to_guess(fdpp, tiny_model):
    outcome = fdpp("generate", "--model", tiny_model, "--prompt", "a", "--speculate", "ngram", "--draft", tiny_model)
    assert outcome.code == 2 and "not allowed with" in outcome.err
    outcome = fdpp("generate", "--model", tiny_model, "--prompt", "a", "--draft", "nowhere/at-all")
    assert outcome.code == 2 and "nowhere/at-all" in outcome.err
