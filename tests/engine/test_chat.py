"""Conversations: the same ids as transformers' apply_chat_template, and a line for what a template does not take."""

from __future__ import annotations

import pytest

from fdpp.errors import RequestError
from fdpp.llm import LLM
from fdpp.tokenizers import Tokenizer
from tests.engine.models import CHAT_TEMPLATE, tiny_tokenizer

PARTS_TEMPLATE = (
    "{% if tools %}{% for tool in tools %}<tool>{{ tool.function | tojson }}</tool>{% endfor %}{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content }}{% elif m.content %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.arguments | tojson }}</call>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}{% if enable_thinking is false %}<think></think>{% endif %}"
)
USER = {"role": "user", "content": "the end"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def weather(city: str) -> str:
    """The weather.

    Args:
        city: where.
    """
    return city


def with_template(template) -> tuple[Tokenizer, object]:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return Tokenizer(tokenizer), tokenizer


@pytest.mark.parametrize(
    ("messages", "variables"),
    [
        ([USER], {}),
        ([USER], {"enable_thinking": False}),
        ([USER], {"enable_thinking": True}),
        ([USER], {"tools": [TOOL]}),
        ([USER], {"tools": [weather]}),
        ([USER], {"tools": []}),
        ([USER], {"add_generation_prompt": False}),
        ([{"role": "user", "content": [{"type": "text", "text": "the"}, {"type": "text", "text": " end"}]}], {}),
        ([USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}], {"tools": [TOOL]}),
        ([USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "rain"}], {}),
        ((USER, {"role": "assistant", "content": ""}), {}),
    ],
)
def test_the_same_ids_as_transformers(messages, variables):
    ours, theirs = with_template(PARTS_TEMPLATE)
    options = {"add_generation_prompt": True, "return_dict": False} | variables
    assert ours.encode_chat(messages, **variables) == theirs.apply_chat_template(list(messages), **options)


def test_a_template_for_tools():
    ours, theirs = with_template({"default": CHAT_TEMPLATE, "tool_use": PARTS_TEMPLATE})
    assert "tool" not in theirs.decode(ours.encode_chat([USER]))
    assert "<tool>" in theirs.decode(ours.encode_chat([USER], tools=[TOOL]))


def test_parts_become_one_text_where_the_template_does_not_read_them():
    ours, theirs = with_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    parts = [{"type": "text", "text": "the"}, {"type": "text", "text": "end"}]
    assert theirs.decode(ours.encode_chat([{"role": "user", "content": parts}])) == "the\nend"
    assert parts[0] == {"type": "text", "text": "the"}  # what the caller holds is left alone


@pytest.mark.parametrize(
    ("messages", "variables", "said"),
    [
        ([USER], {"enable_thinkin": True}, "enable_thinkin: neither an option nor a variable"),
        ([USER], {"tools": "weather"}, "tools: expected a list of JSON schemas or of functions, got 'weather'"),
        ([USER], {"tools": [3]}, "tools: expected"),
        ([USER], {"tools": {"name": "x"}}, "tools: expected"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], {}, "expected parts .*image_url"),
        ([{"role": "user", "content": ["x"]}], {}, "expected parts"),
        ([{"role": "user", "content": {"type": "text"}}], {}, "text or a list of parts"),
        ([{"role": "user", "content": 5}], {}, "text or a list of parts, got 5"),
        ([{"role": "user"}], {}, "expected {'role'"),
        ([{"role": 5, "content": "x"}], {}, "expected {'role'"),
        ([{"content": "x"}], {}, "expected {'role'"),
        ("x", {}, "expected a list"),
        ({"role": "user", "content": "x"}, {}, "expected a list"),
    ],
)
def test_what_cannot_be_answered_is_one_line(messages, variables, said):
    ours, _ = with_template(PARTS_TEMPLATE)
    with pytest.raises(RequestError, match=said) as caught:
        ours.encode_chat(messages, **variables)
    assert "\n" not in str(caught.value)


def test_tools_for_a_template_that_has_none():
    ours, _ = with_template(CHAT_TEMPLATE)
    with pytest.raises(RequestError, match="tools: neither an option nor a variable of this model's chat template"):
        ours.encode_chat([USER], tools=[TOOL])


def test_options_and_variables_go_where_they_belong(checkpoints):
    llm = LLM(checkpoints("llama")[0], dtype="float32")
    llm.tokenizer, theirs = with_template(PARTS_TEMPLATE)
    completions = llm.chat([USER], max_new_tokens=1, n=2, enable_thinking=False, tools=[TOOL])
    expected = theirs.apply_chat_template(
        [USER], tools=[TOOL], enable_thinking=False, add_generation_prompt=True, return_dict=False
    )
    assert [c.prompt_token_ids for c in completions] == [expected] * 2
    with pytest.raises(RequestError, match="max_new_token: neither"):
        llm.chat([USER], max_new_token=1)
