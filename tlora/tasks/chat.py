"""Conversations and prompts as tokens, with labels on the assistant's turns, their end tokens included."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from tlora.models.forward import IGNORED

Segment = tuple[str, bool]
"""A piece of text, and whether it is trained on."""
Message = Mapping[str, Any]


def conversation_segments(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Message] = ()
) -> list[Segment]:
    """Render a conversation with the chat template and cut it at the starts and ends of the assistant's turns.

    Works for any template that only appends: the conversation is rendered up to each assistant turn that is trained
    on, once with the generation prompt and once with the turn itself. What the second rendering adds to the first is
    the turn, and what the template writes after the end of a turn, which `tokenize` leaves unlabeled. What follows the
    last turn is left out.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        With a chat template.
    messages : sequence of mapping
        ``role`` and ``content``, and whatever else the template reads. An assistant turn with ``weight`` 0 is
        not trained on.
    tools : sequence of mapping
        JSON schemas of the functions that may be called.

    Returns
    -------
    list of (str, bool)
        Pieces, alternately not trained on and trained on.
    """
    segments: list[Segment] = []
    done, messages = "", [unpack_message(message) for message in messages]
    turns = [turn for turn, message in enumerate(messages) if is_trained_on(message)]
    for turn in turns:
        before = _render(tokenizer, messages[:turn], tools, generation_prompt=True)
        after = _render_to_turn_end(tokenizer, messages[: turn + 1], tools)
        if not before.startswith(done) or not after.startswith(before) or after == before:
            raise ValueError(
                "the chat template is not prefix-stable (a message changes what was written before it, or an "
                "answer does not follow the generation prompt), so the assistant's turns cannot be located: set "
                "tokenizer.chat_template to one that only appends, such as those that TRL ships for training "
                "(trl/chat_templates/*_training.jinja), or use prompt and completion, chat=False"
            )
        segments += [(before[len(done) :], False), (after[len(before) :], True)]
        done = after
    if tools and segments[0][0] == _render(tokenizer, messages[: turns[0]], (), generation_prompt=True):
        raise ValueError(
            "the chat template writes no tools, so the model would not know of them: set tokenizer.chat_template to "
            "one that does, or leave the column tools out"
        )
    return segments


def _render_to_turn_end(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Message]
) -> str:
    """A conversation up to the end of its last turn, without the end token that Phi's templates put after the last."""
    text = _render(tokenizer, messages, tools, generation_prompt=False)
    turn = text.removesuffix(tokenizer.eos_token or "")
    if turn == text:
        return text
    continued = _render(tokenizer, messages, tools, generation_prompt=True)
    if continued.startswith(text) or not continued.startswith(turn):
        return text
    others = tokenizer.convert_ids_to_tokens(sorted(end_tokens(tokenizer) - {tokenizer.eos_token_id}))
    return turn if turn.rstrip().endswith(tuple(others)) else text


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    segments: Sequence[Segment],
    ends: frozenset[int],
    first: Sequence[int] = (),
) -> tuple[list[int], list[int], list[int]]:
    """Tokenize the joined pieces, with labels for those that are trained on, their end token included.

    Every piece begins at a token of its own: the tokens up to there are those of the text before it alone, which is
    what the model sees when it generates.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        Adds no special tokens here; those in the text are recognized.
    segments : sequence of (str, bool)
        Pieces of text, and whether they are trained on.
    ends : frozenset of int
        Tokens that end a turn, see `end_tokens`.
    first : sequence of int
        Tokens before the text, e.g. the beginning-of-sequence token.

    Returns
    -------
    input_ids : list of int
        Up to the end of the last labeled piece, with the tokenizer's end token if the piece does not end by itself.
    labels : list of int
        The same tokens if they are trained on, else -100. In a labeled piece nothing after its end token counts.
    starts : list of int
        Where each labeled piece begins.
    """
    ids, labels, starts, text = list(first), [IGNORED] * len(first), [], ""
    for piece, is_trained in segments:
        text += piece
        longer = [*first, *_token_ids(tokenizer, text)]
        if longer[: len(ids)] != ids:  # a token spans the boundary
            longer = ids + _token_ids(tokenizer, piece)
        new = longer[len(ids) :]
        if is_trained:
            starts.append(len(ids))
            length = _turn_length(tokenizer, new, ends)
            labels += new[:length] + [IGNORED] * (len(new) - length)
        else:
            labels += [IGNORED] * len(new)
        ids = longer
    length = max((place for place, label in enumerate(labels) if label != IGNORED), default=-1) + 1
    ids, labels = ids[:length], labels[:length]
    end = tokenizer.eos_token_id
    if length and end is not None and labels[-1] not in ends:
        ids, labels = [*ids, end], [*labels, end]
    return ids, labels, starts


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that may end a turn of a chat: the end token, and whatever else the tokenizer marks as special."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = (special - {tokenizer.unk_token_id}) | {tokenizer.eos_token_id}
    return frozenset(index for index in ends if index is not None)


def first_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that the tokenizer puts before a text: the beginning-of-sequence token, or none."""
    if tokenizer.bos_token_id is None:
        return []
    return [index for index in tokenizer("")["input_ids"][:1] if index == tokenizer.bos_token_id]


def decode_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], special: bool = False) -> str:
    """The text of tokens, spaces kept; special tokens only if asked for."""
    text = tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False)
    return str(text)


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Message],
    generation_prompt: bool,
) -> str:
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=[dict(tool) for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=generation_prompt,
        )
        return str(text)
    except jinja2.TemplateError as error:
        roles = ", ".join(message["role"] for message in messages) or "(none)"
        raise ValueError(f"the chat template refuses messages of the roles {roles}: {error}") from error


def _token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _turn_length(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], ends: frozenset[int]) -> int:
    """Tokens of a turn up to its end token, if only white space follows that."""
    last = max((place for place, index in enumerate(ids) if index in ends), default=None)
    if last is None or decode_tokens(tokenizer, ids[last + 1 :], special=True).strip():
        return len(ids)
    return last + 1


def check_messages(messages: Any, tools: Any, where: str) -> None:
    """Refuse rows that are no conversation with tools, or have nothing to learn; ``where`` is for the message."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"{where}: messages must be a list of objects with role and content")
    for message in messages:
        content, calls = message.get("content"), bool(message.get("tool_calls"))
        has_content = isinstance(content, str) or (content is None and calls)
        if not isinstance(message.get("role"), str) or not has_content:
            raise ValueError(
                f"{where}: a message needs role and content, both text (content may be left out next to tool_calls); "
                f"got {message!r:.80}"
            )
        if message.get("weight") not in (None, 0, 1):
            raise ValueError(
                f"{where}: weight {message['weight']!r}: a message is trained on (1, the default) or not (0)"
            )
    if not any(is_trained_on(m) and ((m.get("content") or "").strip() or m.get("tool_calls")) for m in messages):
        raise ValueError(f"{where}: no assistant message (of weight 1), so there is nothing to learn")
    try:
        schemas = read_tools(tools)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: tools are not valid JSON ({error})") from error
    if not isinstance(schemas, list) or not all(isinstance(tool, dict) for tool in schemas):
        raise ValueError(f"{where}: tools must be a list of JSON schemas, one per function; got {tools!r:.80}")


def is_trained_on(message: Message) -> bool:
    """Whether it is an assistant message that is not marked with weight 0."""
    return message.get("role") == "assistant" and message.get("weight") != 0


def pack_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Write the free-form parts of a row as JSON text: in a table all objects of a column have the same keys."""
    tools = row.get("tools")
    return dict(row) | {
        "messages": [_convert_arguments(message, _to_json) for message in row["messages"]],
        "tools": tools if tools is None else _to_json(tools),
    }


def unpack_message(message: Message) -> dict[str, Any]:
    """A message for a chat template, as serving engines pass it: arguments of calls are objects, content is a text."""
    return _convert_arguments({"content": ""} | _without_nulls(message), _from_json)


def read_tools(tools: Any) -> Any:
    """The tools of a row, from the table or from JSON text; an empty list if it has none."""
    if isinstance(tools, str):
        return (json.loads(tools) or []) if tools.strip() else []
    return _without_nulls(tools or [])


def _convert_arguments(message: Message, convert: Callable[[Any], Any]) -> dict[str, Any]:
    """The message with the arguments of its tool calls converted."""
    if not message.get("tool_calls"):
        return dict(message)
    calls = [dict(call) for call in message["tool_calls"]]
    for call in calls:
        if isinstance(function := call.get("function"), Mapping):
            call["function"] = dict(function) | {"arguments": convert(function.get("arguments") or {})}
    return dict(message) | {"tool_calls": calls}


def _to_json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _from_json(arguments: Any) -> Any:
    """The object that the text spells; anything else unchanged."""
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else None
    except json.JSONDecodeError:
        return arguments
    return value if isinstance(value, dict) else arguments


def _without_nulls(value: Any) -> Any:
    """Leave out None: a table gives every object in a column the keys of all others."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value
