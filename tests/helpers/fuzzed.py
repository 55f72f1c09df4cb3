"""Damage to files: what disks, copies and strangers do to them, each from a seed of its own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

# In the place of a value: other types, other signs, too much of it, and names that lead elsewhere.
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 3, 0.5, 1e308, -1e-300, math.nan, math.inf, 10**30, 2**31, 2**63, "", "x", "NaN", "\0", "\ud800",
    "../../../etc/passwd", "/etc/passwd", "/dev/zero", "C:\\con", "a/../../b", "(a+)+$", "[", "x" * 5000, [], {}, [[]],
    [None], {"": None}, [[[[[[[[]]]]]]]], [1, "a", None], {"a": {"b": [1, 2]}}, list(range(300)),
)  # fmt: skip


def damaged(blob: bytes, rng: Random) -> bytes:
    """Bytes truncated, flipped, overwritten, cut out, put in, moved or repeated."""
    size = len(blob)
    start = rng.randrange(size + 1)
    end = min(size, start + rng.choice((1, 8, 100, size)))
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: blob[:start],
        lambda: _flipped(blob, rng, 1),
        lambda: _flipped(blob, rng, rng.randint(2, 64)),
        lambda: blob[:start] + rng.randbytes(end - start) + blob[end:],
        lambda: blob[:start] + bytes(end - start) + blob[end:],
        lambda: blob[:start] + blob[end:],
        lambda: blob[:start] + rng.randbytes(rng.choice((1, 9, 300))) + blob[start:],
        lambda: blob[start:] + blob[:start],
        lambda: blob + blob[start:end],
        lambda: rng.randbytes(rng.choice((0, 1, 7, 8, 9, 200))),
    )
    return rng.choice(kinds)()


def _flipped(blob: bytes, rng: Random, bits: int) -> bytes:
    found = bytearray(blob)
    for _ in range(bits if found else 0):
        found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
    return bytes(found)


def changed(value: Any, rng: Random) -> Any:
    """A JSON value with one thing in it changed: a leaf or a branch replaced, a key renamed, dropped or added."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        found, key = dict(value), rng.choice(list(value))
        kind = rng.randrange(8)
        if kind == 0:
            del found[key]
        elif kind == 1:
            found[str(rng.choice(ODD))] = found.pop(key)
        elif kind == 2:
            found[str(rng.choice(ODD))] = rng.choice(ODD)
        else:
            found[key] = changed(value[key], rng)
        return found
    if isinstance(value, list) and value and rng.random() < 0.9:
        places = list(value)
        place = rng.randrange(len(places))
        kind = rng.randrange(6)
        if kind == 0:
            del places[place]
        elif kind == 1:
            places.append(places[place])
        elif kind == 2:
            rng.shuffle(places)
        else:
            places[place] = changed(value[place], rng)
        return places
    return rng.choice(ODD)


def changed_json(blob: bytes, rng: Random) -> bytes:
    """A JSON file with one value changed; now and then nested far too deep."""
    if rng.random() < 0.02:
        return rng.choice((b"[", b'{"a":', b"[[{")) * rng.choice((500, 100_000))
    return json.dumps(changed(json.loads(blob), rng)).encode()


def changed_tensors(blob: bytes, rng: Random) -> bytes:
    """A safetensors file whose header says something else: sizes, shapes, types, names, places."""
    size = int.from_bytes(blob[:8], "little")
    header, data = json.loads(blob[8 : 8 + size]), blob[8 + size :]
    names = [name for name in header if name != "__metadata__"]
    one, other = rng.choice(names), rng.choice(names)
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: header.update({one: header[other], other: header[one]}),
        lambda: header.update({str(rng.choice(ODD)): header.pop(one)}),
        lambda: header.pop(one),
        lambda: header[one].update(shape=rng.choice(([2**62], [2**31, 2**31, 4], [-1], [0], [], [1.5], "x", [2**64]))),
        lambda: header[one].update(shape=header[one]["shape"][::-1]),
        lambda: header[one].update(
            dtype=rng.choice(("F64", "F16", "BF16", "I32", "U8", "BOOL", "F8_E4M3", "X", 3, None))
        ),
        lambda: header[one].update(data_offsets=rng.choice(([0, 2**62], [2**62, 0], [0, 0], [-1, 4], [1, 5], "x"))),
        lambda: header.update({f"more.{n}": header[one] for n in range(rng.choice((1, 1000)))}),
    )
    rng.choice(kinds)()
    if "tlora" in header.get("__metadata__", {}) and rng.random() < 0.7:
        header["__metadata__"]["tlora"] = json.dumps(changed(json.loads(header["__metadata__"]["tlora"]), rng))
    text = json.dumps(changed(header, rng) if rng.random() < 0.2 else header).encode()
    length = len(text) if rng.random() < 0.8 else rng.choice((0, 1, 2**20, 10**8, 10**8 + 1, 2**40, 2**63, 2**64 - 1))
    return length.to_bytes(8, "little") + text + data


def odd_numbers(blob: bytes, rng: Random) -> bytes:
    """A safetensors file with NaN, infinity or noise where the numbers are."""
    start = 8 + int.from_bytes(blob[:8], "little")
    place = rng.randrange(start, len(blob)) // 4 * 4
    noise = rng.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\xff\xff", rng.randbytes(4)))
    return (blob[:place] + noise + blob[place + 4 :])[: len(blob)]


def fuzz(file: Path, rng: Random) -> None:
    """Damage a file, as bytes or as what it is."""
    blob = file.read_bytes()
    kinds = [damaged]
    if file.suffix == ".json":
        kinds += [changed_json, changed_json]
    elif file.suffix == ".safetensors" and blob:
        kinds += [changed_tensors, changed_tensors, odd_numbers]
    try:
        found = rng.choice(kinds)(blob, rng)
    except (ValueError, TypeError, LookupError, RecursionError):  # damaged before, it is not what its name says
        found = damaged(blob, rng)
    file.write_bytes(found)
