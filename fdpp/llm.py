"""``fdpp.LLM``: a model, its tokenizer, and text out of them."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fdpp import calibration, library
from fdpp.calibration import Calibration
from fdpp.checkpoints import open_checkpoint
from fdpp.checkpoints.base import Checkpoint
from fdpp.checkpoints.loading import Progress, keeps_stored, load_weights
from fdpp.completion import Completion
from fdpp.drafts import check_draft, check_speculation, make_guesser
from fdpp.dtypes import torch_dtype
from fdpp.engine.graph import GraphCapture
from fdpp.engine.model import Model
from fdpp.engine.prompt_cache import PromptCache
from fdpp.engine.prompts import Prompts, check_ids, check_tokens, list_of_prompts
from fdpp.engine.recording import RecordedStep
from fdpp.engine.runner import Runner, Runners
from fdpp.engine.sampling import seeded
from fdpp.engine.sampling_options import SamplingOptions, sampling_defaults
from fdpp.engine.sequence import Sequence as Row
from fdpp.engine.text_stream import TextStream
from fdpp.engine.values import integer
from fdpp.errors import FdppError, RequestError, one_line, prefix_errors, show
from fdpp.limits import MAX_THREADS
from fdpp.models import family_of
from fdpp.session import Session
from fdpp.tokenizers import Tokenizer

Stream = Callable[[int, str], None]

_REQUIRED = {"jinja2", "gguf", "safetensors", "transformers", "tokenizers", "huggingface_hub"}


class LLM:
    """A decoder-only language model that runs on fdpp's operators.

    Args:
        model: a Hugging Face directory, a ``.gguf`` file, or a Hugging Face hub id.
        device: a torch device: ``"cpu"``, or ``"cuda"`` for a GPU of either vendor.
        dtype: ``"bfloat16"``, ``"float16"``, on a CPU ``"float32"``, or the torch dtype; None means bfloat16.
        max_seq_len: the most tokens of prompt and answer together; default and upper bound is the model's context.
        max_batch_size: prompts that are decoded side by side; one that ends leaves its row to the next.
        page_size: tokens per page of a paged key/value cache; None for a contiguous one.
        num_threads: threads of torch in this process; None leaves them as they are.
        capture: replay the decode step as one piece: a graph on a GPU, a recording on a CPU. False calls its operators
            one by one, and reads the tokens of each step before the next.
        generation_config: whether the sampling options that the model's ``generation_config.json`` names are the
            defaults of :meth:`generate`, as its makers meant them; they stand in :attr:`default_sampling`.
        speculate: ``"ngram"`` guesses that a text goes on as it did where it held the last tokens before, and verifies
            several tokens in a step. The text stays the same; see docs/techniques.md.
        draft: a smaller model with the same tokenizer, named as ``model`` is, that guesses instead.
        phi: the references that softmaxes begin with: ``"auto"`` takes those of :meth:`calibrate` or ``fdpp calibrate``
            that lie with the model's files or among the user's own, where there are any; a path names a file; None or
            ``"none"`` stands for 0. What is in use stands in :attr:`calibration`.
        weights: ``"stored"`` multiplies with matrices of few bits as they are stored, none of them rounded;
            ``"dequantised"`` unpacks them to ``dtype``. None means the first; the second for float32 on a GPU, whose
            kernels have no such matrices.
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
        capture: bool = True,
        generation_config: bool = True,
        speculate: str | None = None,
        draft: str | Path | None = None,
        phi: str | Path | None = "auto",
        weights: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.device = _device(device)
        self.dtype = _dtype(dtype, self.device)
        max_seq_len, page_size = (
            None if value is None else integer(name, value, 1)
            for name, value in (("max_seq_len", max_seq_len), ("page_size", page_size))
        )
        max_batch_size = integer("max_batch_size", max_batch_size, 1)
        num_threads = None if num_threads is None else integer("num_threads", num_threads, 1, MAX_THREADS)
        is_stored = keeps_stored(weights, self.device, self.dtype)
        check_speculation(speculate, draft)
        _check_dependencies()
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        checkpoint, self.model = open_model(model)
        self._name = Path(model).name
        self.max_seq_len = min(max_seq_len or self.model.max_positions, self.model.max_positions)
        self.max_batch_size, self.page_size = max_batch_size, page_size
        self.tokenizer, self.eos_token_ids = checkpoint.tokenizer, checkpoint.eos_token_ids
        with prefix_errors(model):
            self.default_sampling = sampling_defaults(checkpoint.generation_config if generation_config else {})
            load_weights(checkpoint, self.model.weights(), self.dtype, self.device, progress, is_stored)
            self.model.reserve(0)
        self.calibration = _calibration(phi, self.model, checkpoint.path)
        self._capture = (
            None if not capture else RecordedStep if self.device.type == "cpu" else GraphCapture(self.device)
        )
        self._speculate = speculate
        self._draft = None
        if draft is not None:
            self._draft = LLM(
                draft, device=device, dtype=dtype, generation_config=False, weights=weights, progress=progress
            )
            check_draft(self, self._draft)
        self._runners = Runners()

    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        sampling: SamplingOptions | Sequence[SamplingOptions] | None = None,
        n: int = 1,
        logprobs: int | None = None,
        stop: str | Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        stream: Stream | None = None,
        cache: PromptCache | None = None,
    ) -> list[Completion]:
        """Continue prompts.

        The sampling options are those of :class:`SamplingOptions`. One that is None is the model's default
        (:attr:`default_sampling`), and where the model has none, that of :class:`SamplingOptions`: greedy.

        Args:
            prompts: a text, a list of texts, the token ids of a prompt, or a list of those. Ids may be arrays.
            max_new_tokens: the most new tokens per prompt; the context bounds them as well.
            temperature: 0 takes the likeliest token each time.
            top_p: nucleus sampling.
            top_k: the number of candidates; 0 means all.
            min_p: the least probability of a candidate, as a share of the likeliest one's.
            repetition_penalty: above 1, tokens that are there already become less likely, also for greedy decoding.
            seed: for repeatable sampling.
            sampling: all of these options in one, or one of those for each prompt, in place of the single ones.
            n: completions per prompt.
            logprobs: keep the log-probabilities of this many tokens, and of the chosen one, at each step.
            stop: a string or several that end the text. They may hold special tokens, which the text does not show.
            stop_token_ids: tokens that end the text as an end-of-text token does, also with ``ignore_eos``.
            ignore_eos: go on after an end-of-text token.
            stream: called with (number of the completion, new text) as soon as text is certain.
            cache: for one prompt and completion: what it shares with the request before it is not computed again.

        Returns:
            ``n`` :class:`Completion` per prompt, in the order of the prompts.

        Raises:
            RequestError: a prompt that is empty or does not fit the context, or an option out of its range.
            FdppError: the logits are not finite.
        """
        max_new_tokens, n = integer("max_new_tokens", max_new_tokens, 0), integer("n", n, 1, _MAX_COMPLETIONS)
        if logprobs is not None:
            logprobs = integer("logprobs", logprobs, 0, self.model.vocab_size)
        stops = _stop_strings(stop)
        if stops:
            self._require_tokenizer()
        ends = frozenset(check_ids("stop_token_ids", stop_token_ids, self.model.vocab_size))
        encoded = self._prompt_ids(prompts)
        single = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p, "seed": seed}
        single["repetition_penalty"] = repetition_penalty
        single = {name: value for name, value in single.items() if value is not None}
        chosen = self._sampling(sampling, single, len(encoded))
        shared = not isinstance(sampling, Sequence)
        sequences = []
        for number, prompt in enumerate(encoded):
            for copy in range(n):
                index = number * n + copy
                sequences.append(
                    Row(
                        prompt,
                        min(max_new_tokens, self.max_seq_len - len(prompt)),
                        TextStream(self._decode, stops, _show(stream, index)),
                        chosen[number],
                        index if shared else copy,
                        logprobs=None if logprobs is None else [],
                    )
                )
        if not isinstance(cache, PromptCache | None):
            raise RequestError(f"cache: expected a PromptCache, got {show(cache)}")
        if cache is not None and len(sequences) != 1:
            raise RequestError(f"cache: expected one prompt and one completion with it, got {len(sequences)}")
        eos = ends if ignore_eos else ends | self.eos_token_ids
        if max_new_tokens:
            self._run(sequences, eos, logprobs, cache)
        return [Completion.of(sequence) for sequence in sequences]

    def _run(self, sequences: list[Row], eos: frozenset[int], logprobs: int | None, cache: PromptCache | None) -> None:
        """By a runner that nobody else uses; a request in the middle of another one gets its own."""
        try:
            runner = self._runners.pop()
        except IndexError:
            guesser = make_guesser(self, self._speculate, self._draft, self._capture)
            runner = Runner(self.model, self.max_batch_size, self.page_size, self._capture, guesser)
        try:
            with torch.autocast(self.device.type, enabled=False):  # dtypes are the model's, whatever surrounds the call
                runner.run(sequences, eos, logprobs, cache)
        finally:
            self._runners[:] = [runner]

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[Completion]:
        """Answer a conversation.

        Args:
            messages: ``[{"role": ..., "content": ...}, ...]``; content is a text or a list of parts of text, and what
                else the model's chat template reads (``tool_calls``, ...) may stand beside it.
            options: as in :meth:`generate`; any other name is a variable of the chat template (``tools``,
                ``enable_thinking``, ...).

        Raises:
            RequestError: as :meth:`generate`; also messages or variables that the chat template does not take.
        """
        prompt = self.encode_chat(messages, **options)
        return self.generate(prompt, **{name: value for name, value in options.items() if name in _OPTIONS})

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """The tokens of a conversation in the chat template, as :meth:`chat` takes them."""
        variables = {name: value for name, value in options.items() if name not in _OPTIONS}
        return self._require_tokenizer().encode_chat(messages, **variables)

    def session(self, system: str | None = None, **options: Any) -> Session:
        """A conversation that keeps its keys and values: each turn computes only the tokens that it adds.

        Args:
            system: a system message before everything.
            options: as in :meth:`chat`, for every turn.
        """
        return Session(self, system, **options)

    def calibrate(
        self,
        text: str | None = None,
        *,
        max_tokens: int = 2048,
        progress: Callable[[int, int], None] | None = None,
    ) -> Calibration:
        """Fit phi to the logits of a text. **Mutates** the model, which uses it from then on.

        Args:
            text: None stands for one that ships with fdpp.
            max_tokens: the rest of the text is left out. A head's logits take ``4 * max_tokens ** 2`` bytes.
            progress: called with the number of layers seen and their number in all.

        Returns:
            the calibration, whose ``write`` saves it for ``phi=``.

        Raises:
            RequestError: a text of fewer than two tokens, or one whose cache would not fit into memory.
        """
        from fdpp.calibration import measure

        limit = min(integer("max_tokens", max_tokens, 2), self.max_seq_len)
        ids = self._require_tokenizer().encode(measure.own_text() if text is None else text)[:limit]
        if len(ids) < 2:
            raise RequestError(f"text: expected at least 2 tokens, got {len(ids)}")
        source = "the text that ships with fdpp" if text is None else f"{' '.join(text.split())[:60]}..."
        with torch.autocast(self.device.type, enabled=False):
            found = measure.calibrate(self.model, ids, self._name, source, progress)
        found.apply(self.model)
        self.calibration = found
        return found

    @property
    def _decode(self) -> Callable[[Sequence[int]], str]:
        return self.tokenizer.decode if self.tokenizer else _no_text

    def _require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError("this model has no tokenizer; give prompts as token ids, without stop strings")
        return self.tokenizer

    def _prompt_ids(self, prompts: Prompts) -> list[list[int]]:
        return [
            check_tokens(
                self._require_tokenizer().encode(prompt) if isinstance(prompt, str) else prompt,
                self.model.vocab_size,
                self.max_seq_len,
            )
            for prompt in list_of_prompts(prompts)
        ]

    def _sampling(
        self, sampling: SamplingOptions | Sequence[SamplingOptions] | None, single: Mapping[str, Any], count: int
    ) -> list[SamplingOptions]:
        """The options of each prompt, with seeds."""
        if sampling is None:
            return [seeded(dataclasses.replace(self.default_sampling, **single))] * count
        if single:
            raise RequestError(f"sampling: expected it alone, got {', '.join(single)} beside it")
        rows = list(sampling) if isinstance(sampling, Sequence) else [sampling]
        if not all(isinstance(row, SamplingOptions) for row in rows):
            raise RequestError(f"sampling: expected SamplingOptions or a list of them, got {show(sampling)}")
        rows = [seeded(row) for row in rows]
        if not isinstance(sampling, Sequence):
            return rows * count
        if len(rows) != count:
            raise RequestError(f"sampling: expected one for each of {count} prompts, got {len(rows)}")
        return rows


def open_model(model: str | Path) -> tuple[Checkpoint, Model]:
    """Open a checkpoint and assemble the model that it declares; the weights are not loaded yet.

    Args:
        model: see :class:`LLM`.

    Raises:
        CheckpointError: it cannot be used.
    """
    checkpoint = open_checkpoint(model)
    with prefix_errors(model):
        family = family_of(checkpoint.config)
    shapes = checkpoint.shapes
    with prefix_errors(model):
        return checkpoint, family.build(checkpoint.config, shapes)


_OPTIONS = frozenset(inspect.signature(LLM.generate).parameters) - {"self", "prompts"}
_MAX_COMPLETIONS = 1 << 16  # of a prompt


def _calibration(phi: str | Path | None, model: Model, path: Path) -> Calibration | None:
    """What ``LLM(phi=...)`` stands for, applied to the model."""
    if phi is None or phi == "none":
        return None
    if phi == "auto":
        return calibration.find(model, path)
    found = calibration.read(Path(phi))
    found.apply(model)
    return found


def _no_text(ids: Sequence[int]) -> str:
    return ""


def _show(stream: Stream | None, index: int) -> Callable[[str], None]:
    return (lambda text: None) if stream is None else (lambda text: stream(index, text))


def _stop_strings(stop: str | Sequence[str]) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, list | tuple) or not all(isinstance(string, str) and string for string in stops):
        raise RequestError(f"stop: expected strings that are not empty, got {show(stop)}")
    return tuple(stops)


def _dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    try:
        return torch_dtype("bfloat16" if dtype is None else dtype, device.type)
    except ValueError as error:
        raise RequestError(str(error)) from None


def _device(device: str | torch.device) -> torch.device:
    try:
        # "cuda" becomes "cuda:0"; a device that is not there fails here.
        found = torch.empty(0, dtype=torch.uint8, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:  # torch asserts that it was compiled with CUDA
        raise RequestError(f"device {show(device)} cannot be used: {one_line(error)}") from error
    if found.type not in ("cpu", "cuda"):
        raise RequestError(f"device: expected cpu or cuda (NVIDIA and AMD GPUs), got {show(device)}")
    if found.type == "cuda" and (problem := library.load_gpu()):
        raise RequestError(problem)
    return found


def _check_dependencies() -> None:
    missing = sorted(name for name in _REQUIRED if importlib.util.find_spec(name) is None)
    if missing:
        raise FdppError(f"loading models needs {', '.join(missing)}: pip install 'fdpp[models]'")
