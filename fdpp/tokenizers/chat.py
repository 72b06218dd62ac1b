"""Conversations as a model's chat template writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fdpp.errors import RequestError, one_line, show

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What stands in a template that reads the text of a part.
_TAKES_PARTS = re.compile(r"""\.text\b|\[\s*['"]text['"]\s*\]|attribute\s*=\s*['"]text['"]""")


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]
) -> str:
    """The text of a conversation, up to where the answer begins.

    Args:
        tokenizer: brings the template.
        messages: each with a ``role``, and a ``content`` or what else the template reads (``tool_calls``, ...). Content
            is a text, None, or a list of parts ``{"type": "text", "text": ...}``, which become one text, a line each,
            where the template does not read parts.
        variables: of the template: ``tools``, ``enable_thinking``, ...

    Raises:
        RequestError: there is no template, or it does not take these messages or variables.
    """
    checked = [_checked(message) for message in _list_of_messages(messages)]
    _check_tools(variables.get("tools"))
    if not tokenizer.chat_template:
        raise RequestError("this model has no chat template; use generate() with a prompt")
    try:
        template = tokenizer.get_chat_template(tools=variables.get("tools"))
    except Exception as error:  # several templates without a default
        raise RequestError(f"the chat template cannot be used: {one_line(error)}") from error
    # A template ignores what it does not know: a mistyped name would change nothing.
    if unknown := [name for name in variables if not re.search(rf"\b{re.escape(name)}\b", template)]:
        raise RequestError(f"{', '.join(unknown)}: neither an option nor a variable of this model's chat template")
    if not _TAKES_PARTS.search(template):
        checked = [_with_plain_content(message) for message in checked]
    try:
        return tokenizer.apply_chat_template(checked, tokenize=False, **{"add_generation_prompt": True, **variables})
    except Exception as error:  # jinja2 runs the model's program, which may raise anything
        raise RequestError(f"the chat template does not take these messages: {one_line(error)}") from error


def _list_of_messages(messages: object) -> Sequence[object]:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise RequestError(f"messages: expected a list of {{'role': ..., 'content': ...}}, got {show(messages)}")
    return messages


def _checked(message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or len(message) < 2:
        raise RequestError(f"messages: expected {{'role': ..., 'content': ...}}, got {show(message)}")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return dict(message)
    if not isinstance(content, Sequence):
        raise RequestError(f"messages: expected content of text or a list of parts, got {show(content)}")
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RequestError(f"messages: expected parts {{'type': 'text', 'text': ...}}, got {show(part)}")
    return {**message, "content": [dict(part) for part in content]}


def _with_plain_content(message: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(message.get("content"), list):
        return message
    return {**message, "content": "\n".join(part["text"] for part in message["content"])}


def _check_tools(tools: Any) -> None:
    if tools is None:
        return
    is_list = isinstance(tools, Sequence) and not isinstance(tools, str | bytes)
    if not is_list or not all(isinstance(tool, Mapping) or callable(tool) for tool in tools):
        raise RequestError(f"tools: expected a list of JSON schemas or of functions, got {show(tools)}")
