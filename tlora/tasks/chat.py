"""Conversations and prompts as tokens: which of them the assistant says, its end of turn included."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from tlora.models.forward import IGNORED

Segment = tuple[str, bool]  # a piece of text, and whether it is trained on
Message = Mapping[str, Any]


def conversation_segments(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Message] = ()
) -> list[Segment]:
    """The text of a conversation under the chat template, cut where the assistant starts and stops to speak.

    Works for any template that only appends: the conversation is rendered up to each of the assistant's
    turns that are trained on, once with the generation prompt and once with the turn itself, and what the second
    adds to the first was said.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        With a chat template.
    messages : sequence of mapping
        ``role`` and ``content``, and whatever else the template reads. A turn of the assistant with ``weight`` 0 is
        not trained on. What follows the last turn that is trained on is left out.
    tools : sequence of mapping
        JSON schemas of the functions that may be called, which the template writes.

    Returns
    -------
    list of (str, bool)
        Pieces, in turn not trained on and trained on. What the template writes after the end of a turn is in the
        labelled piece; `tokenize` leaves it unlabelled.

    Raises
    ------
    ValueError
        If the template refuses the messages, changes what it wrote before when a message is added, or does not
        write the tools.
    """
    segments: list[Segment] = []
    done, messages = "", [unpack_message(message) for message in messages]
    turns = [turn for turn, message in enumerate(messages) if is_trained_on(message)]
    for turn in turns:
        before = _rendered(tokenizer, messages[:turn], tools, generation_prompt=True)
        after = _ended_by_turn(tokenizer, messages[: turn + 1], tools)
        if not before.startswith(done) or not after.startswith(before) or after == before:
            raise ValueError(
                "the chat template is not prefix-stable (a message changes what was written before it, or an "
                "answer does not follow the generation prompt), so what is trained on cannot be told apart: set "
                "tokenizer.chat_template to one that only appends, such as those that TRL ships for training "
                "(trl/chat_templates/*_training.jinja), or use prompt and completion, chat=False"
            )
        segments += [(before[len(done) :], False), (after[len(before) :], True)]
        done = after
    if tools and segments[0][0] == _rendered(tokenizer, messages[: turns[0]], (), generation_prompt=True):
        raise ValueError(
            "the chat template writes no tools, so the model would not know of them: set tokenizer.chat_template to "
            "one that does, or leave the column tools out"
        )
    return segments


def _ended_by_turn(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Message]) -> str:
    """A conversation up to the end of its last turn, without the end token that Phi's templates put after the last."""
    text = _rendered(tokenizer, messages, tools, generation_prompt=False)
    turn = text.removesuffix(tokenizer.eos_token or "")
    if turn == text:
        return text
    going_on = _rendered(tokenizer, messages, tools, generation_prompt=True)
    if going_on.startswith(text) or not going_on.startswith(turn):
        return text
    others = tokenizer.convert_ids_to_tokens(sorted(end_tokens(tokenizer) - {tokenizer.eos_token_id}))
    return turn if turn.rstrip().endswith(tuple(others)) else text


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    segments: Sequence[Segment],
    ends: frozenset[int],
    first: Sequence[int] = (),
) -> tuple[list[int], list[int], list[int]]:
    """Tokens of the joined pieces, and labels for the labelled ones, their end token included.

    A piece begins at a token of its own: up to there the tokens are those of the text before it alone, which
    is what the model will see when it generates.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        Adds no special tokens here; those in the text are recognised.
    segments : sequence of (str, bool)
        Pieces of text, and whether they are trained on.
    ends : frozenset of int
        Tokens that end a turn, see `end_tokens`.
    first : sequence of int
        Tokens before the text, e.g. that of the beginning.

    Returns
    -------
    input_ids : list of int
        Up to the end of the last labelled piece. The tokenizer's end token is added where the piece does not
        end a turn by itself.
    labels : list of int
        The same tokens where they are trained on, else -100. Of a labelled piece nothing after its end token
        counts.
    starts : list of int
        Where each labelled piece begins.
    """
    ids, labels, starts, text = list(first), [IGNORED] * len(first), [], ""
    for piece, is_trained in segments:
        text += piece
        longer = [*first, *_ids(tokenizer, text)]
        if longer[: len(ids)] != ids:  # a token reaches over the boundary
            longer = ids + _ids(tokenizer, piece)
        new = longer[len(ids) :]
        if is_trained:
            starts.append(len(ids))
            said = _said(tokenizer, new, ends)
            labels += new[:said] + [IGNORED] * (len(new) - said)
        else:
            labels += [IGNORED] * len(new)
        ids = longer
    return *_ended(ids, labels, ends, tokenizer.eos_token_id), starts


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that may end a turn of a chat: the end token, and whatever else the tokenizer marks as special."""
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = (special - {tokenizer.unk_token_id}) | {tokenizer.eos_token_id}
    return frozenset(index for index in ends if index is not None)


def first_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text: the token of the beginning, or nothing."""
    if tokenizer.bos_token_id is None:
        return []
    return [index for index in tokenizer("")["input_ids"][:1] if index == tokenizer.bos_token_id]


def decode_tokens(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], special: bool = False) -> str:
    """The text of tokens as it was, spaces included; with the special ones only where asked for."""
    text = tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False)
    return str(text)


def _rendered(
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


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def _said(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], ends: frozenset[int]) -> int:
    """How many of a turn's tokens were said: up to its end token, where only white space follows it."""
    last = max((place for place, index in enumerate(ids) if index in ends), default=None)
    if last is None or decode_tokens(tokenizer, ids[last + 1 :], special=True).strip():
        return len(ids)
    return last + 1


def _ended(ids: list[int], labels: list[int], ends: frozenset[int], end: int | None) -> tuple[list[int], list[int]]:
    """Without what follows the last label; with the end token where there is no label."""
    length = max((place for place, label in enumerate(labels) if label != IGNORED), default=-1) + 1
    ids, labels = ids[:length], labels[:length]
    if length and end is not None and labels[-1] not in ends:
        return [*ids, end], [*labels, end]
    return ids, labels


def check_messages(messages: Any, where: str) -> None:
    """Refuse what is not a conversation, or has nothing to learn.

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
            raise ValueError(
                f"{where}: weight {message['weight']!r}: a message is trained on (1, the default) or not (0)"
            )
    if not any(is_trained_on(message) and _says(message) for message in messages):
        raise ValueError(f"{where}: no message of the assistant (of weight 1), so there is nothing to learn")


def check_tools(tools: Any, where: str) -> None:
    """Refuse what is not a list of tools.

    Raises
    ------
    ValueError
        Naming the place.
    """
    try:
        found = read_tools(tools)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: tools are not valid JSON ({error})") from error
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise ValueError(f"{where}: tools must be a list of JSON schemas, one a function; got {tools!r:.80}")


def is_trained_on(message: Message) -> bool:
    """Whether the assistant says it, and it is not marked with weight 0."""
    return message.get("role") == "assistant" and message.get("weight") != 0


def pack_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for a table, where all objects of a column have the same keys: what is free in form as JSON text."""
    tools = row.get("tools")
    return dict(row) | {
        "messages": [_with_arguments(message, _written) for message in row["messages"]],
        "tools": tools if tools is None else _written(tools),
    }


def unpack_message(message: Message) -> dict[str, Any]:
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
