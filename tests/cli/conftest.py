"""A tiny chat model with a tokenizer, and ways to run the command line on it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from fdpp.cli import main  # noqa: E402

TEXT = "What is the capital of France? The quick brown fox jumps over the lazy dog. "
CHAT_TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}<|assistant|>"
LONG = 1 << 17  # a context in which a generation lasts until somebody ends it


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """The directory of a random Llama of two layers with a long context, a trained tokenizer and a chat template."""
    import tokenizers
    import torch
    import transformers

    path = tmp_path_factory.mktemp("tiny")
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet)
    bpe.train_from_iterator([TEXT], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<eos>")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(path)
    config = transformers.LlamaConfig(
        vocab_size=bpe.get_vocab_size(),
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=LONG,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def plain_model(tiny_model, tmp_path_factory) -> Path:
    """The same model without a chat template."""
    path = tmp_path_factory.mktemp("models") / "plain"
    shutil.copytree(tiny_model, path, ignore=shutil.ignore_patterns("chat_template*"))
    return path


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def fdpp(capsys, monkeypatch):
    """Run the command line in this process."""
    monkeypatch.delenv("FDPP_TRACEBACK", raising=False)

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:  # argparse: --help, --version, usage
            code = end.code
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def start_fdpp():
    """Start the command line in a process of its own; it is ended with the test."""
    processes = []

    def start(*arguments: object, **streams) -> subprocess.Popen:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
        process = subprocess.Popen(
            [sys.executable, "-m", "fdpp", *map(str, arguments)],
            env={**os.environ, "FDPP_TRACEBACK": "0"},
            # A test run in the background ignores SIGINT, and its children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **streams,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()
