"""Texts under a rule: each can be undone, and does what it says."""

import string

import pytest

from benchmarks.lab.rewritten import COMMON_WORDS, codebook, reversed_words, substitution

TEXT = "The film isn't bad: it is a really good story, from 1999 - and of the best."


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_cipher_is_one_to_one_and_leaves_no_letter(seed):
    encipher = substitution(seed)
    key = encipher(string.ascii_lowercase)
    assert sorted(key) == list(string.ascii_lowercase)
    assert not any(a == b for a, b in zip(key, string.ascii_lowercase, strict=True))
    back = str.maketrans(key + key.upper(), string.ascii_letters)
    assert encipher(TEXT).translate(back) == TEXT
    assert encipher("1999 - , .") == "1999 - , ."


def test_keys_differ():
    assert len({substitution(seed)(TEXT) for seed in range(3)}) == 3
    assert len({codebook(seed)(TEXT) for seed in range(3)}) == 3


def test_words_are_reversed_in_their_places():
    assert reversed_words("isn't it? A-b Films") == "nsi't ti? A-b smliF"
    assert reversed_words(reversed_words(TEXT)) == TEXT


def test_a_codebook_exchanges_frequent_words():
    words = COMMON_WORDS.split()
    assert len(words) == len(set(words)) == 118
    coded = codebook(0)(" ".join(words)).split()
    assert sorted(coded) == sorted(words)
    assert not any(a == b for a, b in zip(coded, words, strict=True))
    assert codebook(0)("Wisegirls, 1999: Zebra!") == "wisegirls, 1999: zebra!"
