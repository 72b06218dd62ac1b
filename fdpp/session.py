"""``fdpp.LLM.session``: a conversation whose keys and values are kept from turn to turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fdpp.engine.prompt_cache import PromptCache

if TYPE_CHECKING:
    from fdpp.completion import Completion
    from fdpp.llm import LLM


class Session:
    """A conversation. A turn computes only the tokens that it adds.

    Args:
        llm: the model; it must have a chat template.
        system: a system message before everything.
        options: of :meth:`LLM.chat`, for every turn.

    Attributes:
        messages: what was said, as :meth:`LLM.chat` takes it; the system message comes first. It may be changed: what a
            change leaves in place is not computed again.
    """

    def __init__(self, llm: LLM, system: str | None = None, **options: Any) -> None:
        self._llm, self._options, self._cache = llm, options, PromptCache()
        self.messages: list[dict[str, Any]] = []
        self.system = system

    @property
    def system(self) -> str | None:
        """The system message; None for none. It may be replaced at any time."""
        is_first = bool(self.messages) and self.messages[0]["role"] == "system"
        return self.messages[0]["content"] if is_first else None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = self.messages[self.system is not None :]
        self.messages = [*([] if text is None else [{"role": "system", "content": text}]), *rest]

    def check(self) -> None:
        """Render a first turn, and compute nothing.

        Raises:
            RequestError: the model has no chat template, or it does not take the system message or the variables.
        """
        self._llm.encode_chat([*self.messages, {"role": "user", "content": "?"}], **self._options)

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = self.messages[: self.system is not None]

    def send(self, content: str, *, stream: Callable[[str], object] | None = None, **options: Any) -> Completion:
        """Say something, and get the answer. Both join the conversation.

        An answer that is interrupted (``KeyboardInterrupt``) stays in it as far as it has come; without any text of it,
        or after another exception, the conversation is as it was.

        Args:
            content: of the user's message.
            stream: called with new text as soon as it is certain.
            options: as in :meth:`LLM.chat`; they win over those of the session.

        Raises:
            RequestError: as :meth:`LLM.chat`; also a conversation that has outgrown the context.
        """
        asked = [*self.messages, {"role": "user", "content": content}]
        pieces: list[str] = []

        def show(_: int, text: str) -> None:
            pieces.append(text)
            if stream is not None:
                stream(text)

        try:
            (answer,) = self._llm.chat(asked, **{**self._options, **options}, stream=show, cache=self._cache)
        except KeyboardInterrupt:
            if pieces:
                self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]
            raise
        self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        return answer
