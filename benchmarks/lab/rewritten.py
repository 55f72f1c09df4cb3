"""Reviews rewritten by a rule that no language model has seen: much must be learned, and every token is a label."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from string import ascii_lowercase

from tlora.tasks.presets import PRESETS, review_texts

Rewrite = Callable[[str], str]

_WORD = re.compile(r"[A-Za-z]+")
# Frequent words of English and of film reviews.
COMMON_WORDS = """
the of and to in a is that for it as was with be by on not he i this are or his from at which but have an had they you
were there one all we can her has would who been if no so what their will out about up more when its than some into only
could time like him she do two then any first over also new most other now man these may very film movie good much story
even make way little many life well people own how too never best work just bad character director plot funny comedy
enough big something love feel world really great long off still through here
"""


def substitution(seed: int) -> Rewrite:
    """A simple substitution cipher: each letter stands for another one, the same in every text; case is kept.

    Parameters
    ----------
    seed : int
        Selects a key in which no letter stands for itself.

    Returns
    -------
    callable
        Maps a text to the text in cipher.

    Examples
    --------
    >>> substitution(0)("A film.") != "A film."
    True
    """
    key = "".join(_derangement(ascii_lowercase, seed))
    table = str.maketrans(ascii_lowercase + ascii_lowercase.upper(), key + key.upper())
    return lambda text: text.translate(table)


def reversed_words(text: str) -> str:
    """Every word spelled backwards, in its place.

    Examples
    --------
    >>> reversed_words("A fine film.")
    'A enif mlif.'
    """
    return _WORD.sub(lambda word: word[0][::-1], text)


def codebook(seed: int) -> Rewrite:
    """A code of words: each of 118 frequent words stands for another of them; other words are unchanged.

    Parameters
    ----------
    seed : int
        Selects a code in which no word stands for itself.

    Returns
    -------
    callable
        Maps a text to the text in code, in lower case.
    """
    words = COMMON_WORDS.split()
    code = dict(zip(words, _derangement(words, seed), strict=True))
    return lambda text: _WORD.sub(lambda word: code.get(word[0], word[0]), text.lower())


def _derangement(items: str | list[str], seed: int) -> list[str]:
    """A random permutation without fixed points: one random cycle of all items."""
    cycle = list(items)
    random.Random(seed).shuffle(cycle)
    follows = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    return [follows[item] for item in items]


PRESETS |= {
    "cipher": review_texts(substitution(0)),
    "second_cipher": review_texts(substitution(1)),
    "reversed_words": review_texts(reversed_words),
    "codebook": review_texts(codebook(0)),
}
