"""Generate text with a model.

The text streams to stdout; the figures come last, on stderr.

With a chat model (one that has a chat template) the prompt is sent as a user's message, like LLM.chat. With any other
model, and with --raw, the text is continued as it stands, like LLM.generate. --chat makes a missing template an error.
"""

from __future__ import annotations

import argparse
import sys
import time

from fdpp.cli.options import MAX_TOKENS, add_model, integer, load_model, number
from fdpp.cli.summary import render_summary
from fdpp.errors import RequestError
from fdpp.timing import memory_bandwidth

MAX_PROMPT_BYTES = 64 * 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    prompt = parser.add_argument_group("prompt").add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt")
    prompt.add_argument("--prompt-file", metavar="FILE", help="read the prompt from a UTF-8 file; - is stdin")
    template = parser.add_mutually_exclusive_group()
    template.add_argument("--chat", action="store_true", help="insist on the model's chat template")
    template.add_argument("--raw", action="store_true", help="continue the text without a chat template")
    parser.add_argument("--system", metavar="TEXT", help="a system message before the prompt; implies --chat")

    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--max-new-tokens", type=integer(1, MAX_TOKENS), default=128, metavar="N", help="default: %(default)s"
    )
    group.add_argument(
        "--temperature", type=number(0, 1e6), default=0.0, metavar="T", help="0 is greedy (default: %(default)s)"
    )
    group.add_argument("--top-k", type=integer(0, MAX_TOKENS), default=0, metavar="K", help="0: no limit (the default)")
    group.add_argument("--top-p", type=number(0, 1), default=1.0, metavar="P", help="default: %(default)s")
    group.add_argument("--seed", type=integer(0, 2**63 - 1), metavar="S", help="make sampling repeatable")
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times"
    )
    group.add_argument("--ignore-eos", action="store_true", help="go on past the end-of-sequence token")


def run(arguments: argparse.Namespace) -> None:
    prompt = read_prompt(arguments)
    llm = load_model(arguments, max_batch_size=1)
    clock = StreamClock()
    options = {
        "max_new_tokens": arguments.max_new_tokens,
        "temperature": arguments.temperature,
        "top_k": arguments.top_k,
        "top_p": arguments.top_p,
        "seed": arguments.seed,
        "stop": tuple(arguments.stop),
        "ignore_eos": arguments.ignore_eos,
        "stream": clock.stream,
    }
    try:
        (completion,) = llm.generate(encode_prompt(llm, prompt, arguments), **options)
    except KeyboardInterrupt:
        print(flush=True)
        print(f"\ninterrupted {clock.report()}", file=sys.stderr)
        raise
    print(flush=True)
    timings = completion.timings
    bytes_per_step = llm.decode_bytes_per_token(timings.prompt_tokens + timings.decode_tokens // 2)
    print(f"\n{render_summary([timings], bytes_per_step, memory_bandwidth(arguments.device))}", file=sys.stderr)


def encode_prompt(llm, prompt: str, arguments: argparse.Namespace) -> str | list[int]:
    """What goes to ``LLM.generate``: the ids of a conversation, or the prompt itself."""
    if arguments.raw or llm.tokenizer is None:  # generate() says what is wrong when there is no tokenizer
        return prompt
    messages = [{"role": "user", "content": prompt}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    try:
        return llm.tokenizer.encode_chat(messages)
    except RequestError as error:
        if arguments.chat or arguments.system is not None:
            raise
        print(f"fdpp: note: {error}: the text is continued as it stands", file=sys.stderr)
        return prompt


def read_prompt(arguments: argparse.Namespace) -> str:
    """The text of ``--prompt`` or ``--prompt-file``."""
    if arguments.prompt is not None:
        data = arguments.prompt.encode("utf-8", "surrogateescape")
    elif arguments.prompt_file == "-":
        data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    else:
        with open(arguments.prompt_file, "rb") as file:
            data = file.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise RequestError(f"expected a prompt of at most {MAX_PROMPT_BYTES >> 20} MiB, got more")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"expected a prompt in UTF-8, got byte 0x{data[error.start]:02x} at {error.start}") from None
    if not text:
        raise RequestError("expected a prompt, got an empty text")
    return text


class StreamClock:
    """Prints the pieces of text as they come, and remembers when, for a generation that is interrupted."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.times: list[float] = []

    def stream(self, index: int, text: str) -> None:
        self.times.append(time.perf_counter())
        sys.stdout.write(text)
        sys.stdout.flush()

    def report(self) -> str:
        if len(self.times) < 2:
            return f"in the first {time.perf_counter() - self.start:.2f} s"
        first, last, count = self.times[0], self.times[-1], len(self.times)
        return (
            f"after {count} pieces of text: the first came after {first - self.start:.2f} s, "
            f"then {(count - 1) / (last - first):.1f} pieces/s"
        )
