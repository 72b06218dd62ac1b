"""Generate text with a model.

The text streams to stdout; the figures come last, on stderr.

With a chat model (one that has a chat template) the prompt is sent as a user's message, like LLM.chat. With any other
model, and with --raw, the text is continued as it stands, like LLM.generate. --chat makes a missing template an error.

Tokens are chosen as the model's generation_config.json says, else greedily; each option below wins over that.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from fdpp.cli.options import add_decoding, add_model, add_template, decoding_options, load_model
from fdpp.cli.summary import describe_guesses, describe_softmax, render_summary
from fdpp.cli.text_files import decode, read_text
from fdpp.errors import RequestError, one_line
from fdpp.timing import memory_bandwidth

if TYPE_CHECKING:
    from fdpp import LLM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    prompt = parser.add_argument_group("prompt").add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt")
    prompt.add_argument("--prompt-file", metavar="FILE", help="read the prompt from a UTF-8 file; - is stdin")

    chat = parser.add_argument_group("chat; all but --raw imply --chat")
    template = chat.add_mutually_exclusive_group()
    template.add_argument("--chat", action="store_true", help="insist on the model's chat template")
    template.add_argument("--raw", action="store_true", help="continue the text without a chat template")
    add_template(chat)
    chat.add_argument("--tools", metavar="FILE", help="the tools that the model may call: a JSON list of schemas")

    add_decoding(parser)


def run(arguments: argparse.Namespace) -> None:
    from fdpp.engine.sampling_options import SamplingOptions

    prompt = read_prompt(arguments)
    variables = read_variables(arguments)
    llm = load_model(arguments, max_batch_size=1, generation_config=not arguments.no_generation_config)
    clock = StreamClock()
    options = {**decoding_options(arguments), "stream": clock.stream}
    try:
        (completion,) = llm.generate(encode_prompt(llm, prompt, variables, arguments), **options)
    except KeyboardInterrupt:
        print(flush=True)
        print(f"\ninterrupted {clock.report()}", file=sys.stderr)
        raise
    print(flush=True)
    timings = completion.timings
    bytes_per_step = llm.model.step_bytes(timings.prompt_tokens + timings.decode_tokens // 2)
    sampling = completion.sampling if llm.default_sampling != SamplingOptions() else None
    bandwidth = memory_bandwidth(arguments.device)
    guesses = describe_guesses(timings) if arguments.speculate or arguments.draft else None
    softmax = describe_softmax(llm, [timings])
    summary = render_summary([timings], bytes_per_step, bandwidth, sampling, softmax, guesses)
    print(f"\n{summary}", file=sys.stderr)


def encode_prompt(llm: LLM, prompt: str, variables: dict[str, Any], arguments: argparse.Namespace) -> str | list[int]:
    """What goes to ``LLM.generate``: the ids of a conversation, or the prompt itself."""
    if arguments.raw or llm.tokenizer is None:  # generate() says what is wrong when there is no tokenizer
        return prompt
    messages = [{"role": "user", "content": prompt}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    try:
        return llm.tokenizer.encode_chat(messages, **variables)
    except RequestError as error:
        if arguments.chat or arguments.system is not None or variables:
            raise
        print(f"fdpp: note: {error}: the text is continued as it stands", file=sys.stderr)
        return prompt


def read_prompt(arguments: argparse.Namespace) -> str:
    """The text of ``--prompt`` or ``--prompt-file``."""
    if arguments.prompt is None:
        prompt = read_text(arguments.prompt_file, "prompt")
    else:
        prompt = decode(arguments.prompt.encode("utf-8", "surrogateescape"), "prompt")
    if not prompt:
        raise RequestError("expected a prompt, got an empty text")
    return prompt


def read_variables(arguments: argparse.Namespace) -> dict[str, Any]:
    """The variables of the chat template: ``--template-arg`` and ``--tools``."""
    variables = dict(arguments.template_arg)
    if arguments.tools is not None:
        try:
            variables["tools"] = json.loads(read_text(arguments.tools, "file of tools"))
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{arguments.tools}: expected a JSON list of tools: {one_line(error)}") from error
    if variables and arguments.raw:
        raise RequestError(f"--raw: expected no variables of a chat template beside it, got {', '.join(variables)}")
    return variables


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
