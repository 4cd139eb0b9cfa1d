"""Damage of the kinds that files meet, decided by a random generator alone."""

import json
import random
import struct
from typing import Any

EXTREMES = (
    0,
    1,
    -1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    2**63 - 1,
    2**64 - 1,
)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 0.5, 1e308, 2**31, 2**63, -(2**64), 10**400, float("nan"), float("inf"), "", " ", "nano",
    "\ud800", "a\udc80", "\0", "é" * 300, "x" * 5000, "../../etc/passwd", "-1", "1e999", "NaN", [], {}, [[]],
    ["1", 0], {"a": 1},
)  # fmt: skip
RAW = (
    "[" * 10_000,
    "[" * 10_000 + "]" * 10_000,
    '{"a":' * 10_000,
    "9" * 5000,
    "NaN",
    "-Infinity",
    '"\\ud800"',
    "1e99999",
)


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes with one to four changes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            break
        # headers decide most, so half of the changes are near the beginning
        at = rng.randrange(min(len(out), 256) if rng.random() < 0.5 else len(out))
        length = min(rng.choice((1, 2, 4, 8, 64, 1024)), len(out) - at)
        match rng.randrange(7):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                del out[at:]
            case 2:
                out[at:at] = out[at : at + length]
            case 3:
                del out[at : at + length]
            case 4:
                code = rng.choice("BHIQ")
                number = rng.choice(EXTREMES) % 256 ** struct.calcsize(code)
                part = struct.pack(rng.choice("<>") + code, number)
                out[at : at + len(part)] = part
            case 5:
                out[at : at + length] = rng.randbytes(length)
            case _:
                other = rng.randrange(len(out))
                out[at : at + length] = out[other : other + length]
    return bytes(out)


def odd_json(rng: random.Random, content: Any) -> str:
    """JSON with one to three values changed, moved, dropped or nested; sometimes no longer JSON."""
    content = json.loads(json.dumps(content))
    mark = None
    for _ in range(rng.randint(1, 3)):
        places = list(_places(content))
        if not places:
            break
        parent, key = rng.choice(places)
        match rng.randrange(6):
            case 0 | 1:
                parent[key] = rng.choice(VALUES)
            case 2:
                del parent[key]
            case 3:
                parent[key] = _nested(rng, parent[key])
            case 4:
                mark = "\x01mark"
                parent[key] = mark
            case _:
                other, name = rng.choice(places)
                if name in other if isinstance(other, dict) else name < len(other):
                    parent[key] = json.loads(json.dumps(other[name]))
    text = json.dumps(content, ensure_ascii=rng.random() < 0.7)
    return text if mark is None else text.replace(json.dumps(mark), rng.choice(RAW), 1)


def odd_bytes(rng: random.Random, content: Any) -> bytes:
    data = odd_json(rng, content).encode("utf-8", "surrogatepass")
    return damaged(rng, data) if rng.random() < 0.2 else data


def _nested(rng: random.Random, value: Any) -> Any:
    for _ in range(rng.choice((1, 3, 50, 150))):
        value = [value] if rng.random() < 0.5 else {"a": value}
    return value


def _places(content: Any) -> Any:
    """(parent, key) of every value inside, not deeper than a few levels."""
    level = [content]
    for _ in range(8):
        inner = []
        for one in level:
            pairs = one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ()
            for key, value in pairs:
                yield one, key
                inner.append(value)
        level = inner


def odd_safetensors(rng: random.Random, data: bytes) -> bytes:
    """The header changed as JSON, its length right again."""
    size = int.from_bytes(data[:8], "little")
    header = odd_bytes(rng, json.loads(data[8 : 8 + size]))
    return len(header).to_bytes(8, "little") + header + data[8 + size :]
