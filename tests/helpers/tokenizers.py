"""Small tokenizers of the usual families, and chat templates with what they render, by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "What relation is Jacob to Barbara? Answer with a single word. mother father son daughter",
    "The film is a joy, a bore; what a waste of an evening! 1 2 3 4 5 6 7 8 9 0 = + - * / ####",
    "You are a helpful assistant. You answer in verse. I do not know, said the user to the system.",
    "def add(a, b):\n    return a + b\n\nassert add(1, 2) == 3\n",
]

# A conversation in pieces: the text before an answer, the answer with its end.
Pieces = list[tuple[str, str]]


def _chatml(messages: Sequence[dict[str, str]]) -> Pieces:
    """By hand what the template below renders."""
    pieces, before = [], ""
    if messages[0]["role"] != "system":
        before = "<|im_start|>system\nBe brief.<|im_end|>\n"
    for message in messages:
        if message["role"] == "assistant":
            pieces.append((before + "<|im_start|>assistant\n", message["content"] + "<|im_end|>"))
            before = "\n"
        else:
            before += f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n"
    return pieces


def _instruct(messages: Sequence[dict[str, str]]) -> Pieces:
    pieces, before, system = [], "", ""
    for message in messages:
        if message["role"] == "system":
            system = f"<<SYS>>\n{message['content']}\n<</SYS>>\n\n"
        elif message["role"] == "user":
            before = f"<s>[INST] {system}{message['content']} [/INST]"
            system = ""
        else:
            pieces.append((before, f" {message['content']} </s>"))
    return pieces


def _headed(messages: Sequence[dict[str, str]]) -> Pieces:
    pieces, before = [], ""
    for message in messages:
        if message["role"] == "assistant":
            pieces.append((before + "ASSISTANT\n", message["content"]))
            before = "\n"
        else:
            before += f"{message['role'].upper()}\n{message['content']}\n"
    return pieces


TEMPLATES: dict[str, tuple[str, Callable[[Sequence[dict[str, str]]], Pieces]]] = {
    # With a system message of its own where there is none, as SmolLM2 and Qwen have.
    "chatml": (
        "{% for message in messages %}"
        "{% if loop.first and message.role != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        _chatml,
    ),
    # As Llama 2: no generation prompt of its own, a system message inside the user's.
    "instruct": (
        "{% set ns = namespace(system='') %}{% for message in messages %}"
        "{% if message.role == 'system' %}"
        "{% set ns.system = '<<SYS>>\n' + message.content + '\n<</SYS>>\n\n' %}"
        "{% elif message.role == 'user' %}"
        "{{ '<s>[INST] ' + ns.system + message.content + ' [/INST]' }}{% set ns.system = '' %}"
        "{% else %}{{ ' ' + message.content + ' </s>' }}{% endif %}{% endfor %}",
        _instruct,
    ),
    # Without any token for the end of a turn.
    "headed": (
        "{% for message in messages %}{{ message.role.upper() + '\n' + message.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT\n' }}{% endif %}",
        _headed,
    ),
}
# Forgets what was answered before the last question.
UNSTABLE = (
    "{% for message in messages %}{% if message.role == 'user' or loop.last %}"
    "{{ message.role + ': ' + message.content + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@lru_cache
def _bytes_bpe(special: tuple[str, ...]) -> str:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=380, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def bytes_tokenizer(template: str | None = None, **values: Any) -> PreTrainedTokenizerFast:
    """Like SmolLM2: byte-level BPE, no token put first, padding and end of turn the same token."""
    tokenizer = tokenizers.Tokenizer.from_str(_bytes_bpe(("<|end|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>")))
    names = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"} | values
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    found.chat_template = TEMPLATES[template][0] if template in TEMPLATES else template
    return found


def pieces_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """Like Llama 2: a space before the first word, a token of the beginning, none for padding."""
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    found.chat_template = TEMPLATES[template][0] if template else None
    return found


def letters_tokenizer(end: int = 2) -> PreTrainedTokenizerFast:
    """Of seven letters and all pairs of them: it never reads two letters in a row as two tokens.

    ``end`` is the end token, 1 or 2, as in the configs of tiny models.
    """
    special = {0: "<pad>", 3 - end: "<s>", end: "</s>", 3: "<unk>"}
    pairs = list(itertools.product("abcdefg", repeat=2))
    words = [*(special[n] for n in range(4)), *"abcdefg", *map("".join, pairs)]
    vocabulary = {word: n for n, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def words_tokenizer() -> PreTrainedTokenizerFast:
    """Like BERT: word pieces between [CLS] and [SEP], pairs told apart by token types."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def ended_tokenizer() -> PreTrainedTokenizerFast:
    """Like T5: an end token after every text."""
    tokenizer = tokenizers.Tokenizer.from_str(_bytes_bpe(("<pad>", "</s>")))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")
