"""Messages of a conversation: what is accepted, what of them is learnt, and how they lie in a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Message = Mapping[str, Any]


def check_messages(messages: Any, where: str) -> None:
    """Refuse what is no conversation, or has nothing to learn.

    Raises
    ------
    ValueError
        Naming the place and the message.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"{where}: messages must be a list of objects with role and content")
    for message in messages:
        content = message.get("content")
        if not isinstance(message.get("role"), str) or not (
            isinstance(content, str) or (content is None and _calls(message))
        ):
            raise ValueError(
                f"{where}: a message needs role and content, both text (one with tool_calls may do without content); "
                f"got {message!r:.80}"
            )
        if message.get("weight") not in (None, 0, 1):
            raise ValueError(f"{where}: weight {message['weight']!r}: a message is learnt (1, the default) or not (0)")
    if not any(is_learnt(message) and _says(message) for message in messages):
        raise ValueError(f"{where}: no message of the assistant (of weight 1), so there is nothing to learn")


def check_tools(tools: Any, where: str) -> None:
    """Refuse what is no list of tools.

    Raises
    ------
    ValueError
        Naming the place.
    """
    try:
        found = read_tools(tools)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: tools are no valid JSON ({error})") from error
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise ValueError(f"{where}: tools must be a list of JSON schemas, one a function; got {tools!r:.80}")


def is_learnt(message: Message) -> bool:
    """Whether the assistant says it, and it is not marked with weight 0."""
    return message.get("role") == "assistant" and message.get("weight") != 0


def packed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for a table, where all objects of a column have the same keys: what is free in form as JSON text."""
    tools = row.get("tools")
    return dict(row) | {
        "messages": [_with_arguments(message, _written) for message in row["messages"]],
        "tools": tools if tools is None else _written(tools),
    }


def unpacked(message: Message) -> dict[str, Any]:
    """A message for a chat template.

    Without the keys that a table gave it for another's sake, with a content, and the arguments of its calls as
    objects: an engine that serves a model hands them to the template so, whatever it was sent.
    """
    return _with_arguments({"content": ""} | _whole(message), _read)


def read_tools(tools: Any) -> Any:
    """The tools of a row, from the table or from JSON text; an empty list where it has none."""
    if isinstance(tools, str):
        return (json.loads(tools) or []) if tools.strip() else []
    return _whole(tools or [])


def _says(message: Message) -> bool:
    return bool((message.get("content") or "").strip()) or _calls(message)


def _calls(message: Message) -> bool:
    return bool(message.get("tool_calls"))


def _with_arguments(message: Message, change: Callable[[Any], Any]) -> dict[str, Any]:
    """The message with the arguments of its calls changed."""
    changed = dict(message)
    if _calls(message):
        changed["tool_calls"] = [_changed(call, change) for call in message["tool_calls"]]
    return changed


def _changed(call: Any, change: Callable[[Any], Any]) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    return dict(call) | {"function": dict(function) | {"arguments": change(function.get("arguments") or {})}}


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read(arguments: Any) -> Any:
    """The object that the text says; anything else as it is."""
    try:
        found = json.loads(arguments) if isinstance(arguments, str) else None
    except json.JSONDecodeError:
        return arguments
    return found if isinstance(found, dict) else arguments


def _whole(value: Any) -> Any:
    """Without what is None: a table gives every object in a column the keys of all others."""
    if isinstance(value, Mapping):
        return {key: _whole(each) for key, each in value.items() if each is not None}
    return [_whole(each) for each in value] if isinstance(value, list) else value
