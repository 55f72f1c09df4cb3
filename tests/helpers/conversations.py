"""Conversations, and what of them is labeled."""

from __future__ import annotations

from typing import Any

from tests.helpers.tokenizers import bytes_tokenizer, pieces_tokenizer

SIZES = {"validation": 0, "test": 0}

TOKENIZERS = {"bytes": bytes_tokenizer, "pieces": pieces_tokenizer}


def messages(turns):
    return [{"role": role, "content": content} for role, content in turns]


def spelled(tokenizer, pieces, first=()):
    """Ids and labels of (before, said) pieces, from the offsets of one tokenisation of the whole text."""
    text, spans = "", []
    for before, said in pieces:
        text += before
        spans.append((len(text), len(text) + len(said)))
        text += said
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = [*first, *encoded["input_ids"]]
    offsets = [(-1, -1)] * len(first) + encoded["offset_mapping"]
    inside = [any(begin <= a and b <= end for begin, end in spans) for a, b in offsets]
    return ids, [index if said else -100 for index, said in zip(ids, inside, strict=True)]


TOOLS = [{"function": {"name": "weather", "parameters": {"city": {"type": "string"}}}, "type": "function"}]

CALLING = (
    "{% if tools %}{{ 'tools:' + tools | tojson + '\n' }}{% endif %}"
    "{% for m in messages %}{{ m.role + ':' + m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function.name + call.function.arguments | tojson }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def called(arguments: Any, **answer: Any) -> dict[str, Any]:
    """As a provider's file for fine-tuning has it: a call without words, its result, an answer."""
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    return {
        "messages": [
            {"role": "user", "content": "How is it in Rome?"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "rain", "tool_call_id": "1"},
            {"role": "assistant", "content": "Wet."} | answer,
        ]
    }
