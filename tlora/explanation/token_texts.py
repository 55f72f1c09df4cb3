"""The texts of single tokens, as they stand in running text."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase


def token_texts(tokenizer: PreTrainedTokenizerBase | None, ids: Iterable[int]) -> list[str]:
    """The text of each token, with the space that it puts before a word; ``<17>`` for token 17 without a tokenizer.

    Each is decoded after another token, for SentencePiece and WordPiece drop the space of a first token. A token that
    is a part of a character is the replacement character.
    """
    wanted = list(ids)
    if tokenizer is None:
        return [f"<{token}>" for token in wanted]
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]

    def decode(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

    before = len(decode(anchor))
    texts = {token: decode([*anchor, token])[before:] for token in set(wanted)}
    return [texts[token] for token in wanted]
