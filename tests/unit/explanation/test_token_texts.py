"""The texts of single tokens, put together, are the text."""

import pytest

from tests.helpers.tokenizers import bytes_tokenizer, pieces_tokenizer, words_tokenizer
from tlora.explanation.token_texts import token_texts

TEXT = "You are a helpful assistant.\nThe film is a joy"


@pytest.mark.parametrize("make", [bytes_tokenizer, pieces_tokenizer, words_tokenizer])
def test_texts_put_together_are_the_text(make):
    tokenizer = make()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    expected = TEXT if make is not words_tokenizer else tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert "".join(texts).strip() == expected.strip()
    special = tokenizer.eos_token_id or tokenizer.cls_token_id
    assert token_texts(tokenizer, [special])[0].strip() == tokenizer.convert_ids_to_tokens(special)
