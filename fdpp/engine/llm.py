"""``fdpp.LLM``: a model, its tokenizer, and text out of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fdpp import native
from fdpp.engine.checkpoint import open_checkpoint
from fdpp.engine.decode_loop import Generation, Timings, run_batch
from fdpp.engine.decoder import Decoder
from fdpp.engine.sampling import SamplingOptions
from fdpp.engine.text_stream import TextStream
from fdpp.engine.weights import Progress, load_weights
from fdpp.errors import FdppError, RequestError, about, one_line

Stream = Callable[[int, str], None]
Prompts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
_REQUIRED = {"jinja2", "gguf", "safetensors", "transformers", "tokenizers", "huggingface_hub"}


@dataclass(frozen=True)
class Completion:
    """What a model made of one prompt.

    Attributes:
        text: the new text, up to the stop string or the end-of-text token, neither of them included.
        token_ids: the new tokens; all of them, the end-of-text token included.
        prompt_token_ids: the tokens of the prompt.
        finish_reason: ``"stop"`` or ``"length"``.
        timings: where the time went.
    """

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: str
    timings: Timings


class LLM:
    """A decoder-only language model that runs on fdpp's operators.

    Args:
        model: a Hugging Face directory, a ``.gguf`` file, or a Hugging Face hub id.
        device: a torch device: ``"cpu"``, or ``"cuda"`` for a GPU of either vendor.
        dtype: ``"bfloat16"``, ``"float16"``, on a CPU ``"float32"``, or the torch dtype; None means bfloat16.
        max_seq_len: the most tokens of prompt and answer together; default and upper bound is the model's context.
        max_batch_size: prompts that are decoded side by side; more of them are taken in groups.
        page_size: tokens per page of a paged key/value cache; None for a contiguous one.
        num_threads: threads of torch in this process; None leaves them as they are.
        progress: called with (tensors loaded, tensors in all, name) while loading.

    Raises:
        CheckpointError: the model cannot be used.
        RequestError: an argument is out of its range.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = "bfloat16",
        max_seq_len: int | None = None,
        max_batch_size: int = 32,
        page_size: int | None = None,
        num_threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.device, self.dtype = _device(device), _dtype(dtype)
        _check_dtype_of_device(self.dtype, self.device)
        for name, value in (("max_seq_len", max_seq_len), ("page_size", page_size), ("num_threads", num_threads)):
            if value is not None:
                _check_at_least(name, value, 1)
        _check_at_least("max_batch_size", max_batch_size, 1)
        _check_dependencies()
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        checkpoint = open_checkpoint(model)
        self.config = checkpoint.config
        self.max_seq_len = min(max_seq_len or self.config.max_positions, self.config.max_positions)
        self.max_batch_size, self.page_size = max_batch_size, page_size
        self.eos_token_ids = checkpoint.eos_token_ids
        self.tokenizer = checkpoint.load_tokenizer()
        with about(model):
            weights = load_weights(checkpoint, self.dtype, self.device, progress)
        self.decoder = Decoder(self.config, weights)

    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        stream: Stream | None = None,
    ) -> list[Completion]:
        """Continue prompts.

        Args:
            prompts: a text, a list of texts, the token ids of a prompt, or a list of those.
            max_new_tokens: the most new tokens per prompt; the context bounds them as well.
            temperature: 0 takes the likeliest token each time.
            top_p: nucleus sampling.
            top_k: the number of candidates; 0 means all.
            seed: for repeatable sampling.
            stop: a string or several that end the text.
            ignore_eos: go on after an end-of-text token.
            stream: called with (number of the prompt, new text) as soon as text is certain.

        Returns:
            one :class:`Completion` per prompt, in order.

        Raises:
            RequestError: a prompt that is empty or does not fit the context, or an option out of its range.
            FdppError: the logits are not finite.
        """
        _check_at_least("max_new_tokens", max_new_tokens, 0)
        sampling, stops = SamplingOptions(temperature, top_k, top_p, seed), _stop_strings(stop)
        if stops:
            self._require_tokenizer()
        sequences = [
            Generation(
                index,
                prompt,
                min(max_new_tokens, self.max_seq_len - len(prompt)),
                TextStream(self._decode, stops, _show(stream, index)),
            )
            for index, prompt in enumerate(self._prompt_ids(prompts))
        ]
        eos = frozenset() if ignore_eos else self.eos_token_ids
        with torch.autocast(self.device.type, enabled=False):  # the dtype is the model's, whoever calls
            for start in range(0, len(sequences) if max_new_tokens else 0, self.max_batch_size):
                run_batch(self.decoder, sequences[start : start + self.max_batch_size], sampling, eos, self.page_size)
        return [
            Completion(
                sequence.stream.text,
                sequence.token_ids,
                list(sequence.prompt),
                sequence.finish_reason or "length",
                sequence.timings,
            )
            for sequence in sequences
        ]

    def chat(self, messages: Sequence[Mapping[str, str]], **options) -> list[Completion]:
        """Answer a conversation ``[{"role": ..., "content": ...}, ...]``; options as in :meth:`generate`."""
        return self.generate(self._require_tokenizer().encode_chat(messages), **options)

    def decode_bytes_per_token(self, context_len: int, batch: int = 1) -> int:
        """Bytes that a decode step reads: all weights once, and the keys and values that ``batch`` sequences see.

        Of the input embedding a step reads a row per token, which is not counted.
        """
        config = self.config
        weights = sum(tensor.nbytes for tensor in self.decoder.weights.tensors())
        seen = sum(context_len if window < 0 else min(context_len, window + 1) for window in config.windows)
        return weights + batch * seen * 2 * config.num_kv_heads * config.head_dim * self.dtype.itemsize

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids) if self.tokenizer else ""

    def _require_tokenizer(self):
        if self.tokenizer is None:
            raise RequestError("this model has no tokenizer; give prompts as token ids, without stop strings")
        return self.tokenizer

    def _prompt_ids(self, prompts: Prompts) -> list[list[int]]:
        if isinstance(prompts, str):
            prompts = [prompts]
        if not isinstance(prompts, list | tuple) or not prompts:
            raise RequestError(f"prompts: expected a text, token ids, or a list of either, got {prompts!r:.80}")
        if all(type(token) is int for token in prompts):
            prompts = [prompts]
        return [self._check_prompt(prompt) for prompt in prompts]

    def _check_prompt(self, prompt: str | Sequence[int]) -> list[int]:
        if not isinstance(prompt, str | list | tuple) or not prompt:
            raise RequestError(f"prompt: expected a text or token ids, not empty, got {prompt!r:.80}")
        ids = self._require_tokenizer().encode(prompt) if isinstance(prompt, str) else list(prompt)
        for token in ids:
            if type(token) is not int or not 0 <= token < self.config.vocab_size:
                raise RequestError(f"prompt: expected token ids in 0..{self.config.vocab_size - 1}, got {token!r:.80}")
        if not 1 <= len(ids) < self.max_seq_len:
            raise RequestError(f"prompt: expected 1..{self.max_seq_len - 1} tokens, got {len(ids)}")
        return ids


def _show(stream: Stream | None, index: int) -> Callable[[str], None]:
    return (lambda text: None) if stream is None else (lambda text: stream(index, text))


def _stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, list | tuple) or not all(isinstance(string, str) and string for string in stops):
        raise RequestError(f"stop: expected strings that are not empty, got {stop!r:.80}")
    return tuple(stops)


def _check_at_least(name: str, value: object, minimum: int) -> None:
    if type(value) is not int or value < minimum:
        raise RequestError(f"{name}: expected an integer >= {minimum}, got {value!r:.80}")


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16
    chosen = _DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if chosen not in _DTYPES.values():
        raise RequestError(f"dtype: expected one of {', '.join(_DTYPES)}, got {dtype!r:.80}")
    return chosen


def _device(device: str | torch.device) -> torch.device:
    try:
        # "cuda" becomes "cuda:0"; a device that is not there fails here.
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:  # torch asserts that it was compiled with CUDA
        raise RequestError(f"device {device!r:.80} cannot be used: {one_line(error)}") from error
    if found.type not in ("cpu", "cuda"):
        raise RequestError(f"device: expected cpu or cuda (NVIDIA and AMD GPUs), got {device!r:.80}")
    if found.type == "cuda" and (problem := native.load_gpu()):
        raise RequestError(problem)
    return found


def _check_dtype_of_device(dtype: torch.dtype, device: torch.device) -> None:
    if device.type == "cuda" and dtype == torch.float32:
        raise RequestError(
            "dtype: expected bfloat16 or float16 on a GPU, got float32, which its matrix units do not take"
        )


def _check_dependencies() -> None:
    missing = sorted(name for name in _REQUIRED if importlib.util.find_spec(name) is None)
    if missing:
        raise FdppError(f"loading models needs {', '.join(missing)}: pip install 'fdpp[models]'")
