"""High dynamic range: what the network sees of it, and the way back."""

import struct
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np

PQ, HLG = 16, 18
"""ITU-T H.273 numbers of the transfer functions."""
WHITE = 203.0  # candela per square meter of paper in HDR (ITU-R BT.2408)
KNEE = 0.7
"""Up to this share of paper white tones stay as they are; all brighter ones share the rest."""
STEPS = 4096


@lru_cache(maxsize=2)
def curve(transfer: int) -> np.ndarray:
    """From HDR code values (4096 steps) to 8-bit ones, as floats: monotone, so that it can be undone."""
    code = np.linspace(0, 1, STEPS)
    light = _pq_light(code) / WHITE if transfer == PQ else (_hlg_light(code) / _hlg_light(np.array(0.75))) ** 1.2
    rest = 1 - KNEE
    mapped = np.where(light <= KNEE, light, KNEE + rest * (1 - np.exp(-(light - KNEE) / rest)))
    return 255 * mapped ** (1 / 2.2)


def tone_mapped(deep: np.ndarray, transfer: int) -> np.ndarray:
    """(H, W, 3) uint16 as uint8."""
    return np.rint(curve(transfer)).astype(np.uint8)[deep >> 4]


@lru_cache(maxsize=2)
def undone(transfer: int) -> np.ndarray:
    """The 16-bit code value for each 8-bit one."""
    return np.interp(np.arange(256), curve(transfer), np.arange(STEPS) * 16).astype(np.int32)


def in_16_bits(pixels: np.ndarray, transfer: int) -> np.ndarray:
    """8-bit pixels as read_deep has them, int32."""
    return undone(transfer)[pixels] if transfer in (PQ, HLG) else pixels.astype(np.int32) * 257


def _pq_light(code: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = code ** (1 / m2)
    return 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def _hlg_light(code: np.ndarray) -> np.ndarray:
    """ARIB STD-B67."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)


def side_data(frame: Any) -> dict[str, str]:
    """The screen that the film was graded on and its brightest light, in x265's words; empty where it does not say."""
    told: dict[str, str] = {}
    with suppress(ValueError):  # side data of a kind that this PyAV does not know
        for data in map(frame.side_data.__getitem__, range(len(frame.side_data))):  # PyAV 19 iterates over kinds
            if data.type.name == "MASTERING_DISPLAY_METADATA":
                told["master-display"] = _mastering(bytes(data))
            elif data.type.name == "CONTENT_LIGHT_LEVEL":
                told["max-cll"] = "{},{}".format(*struct.unpack_from("<2I", bytes(data)))
    return {name: text for name, text in told.items() if text not in ("", "0,0")}  # zeros: unknown


def _mastering(data: bytes) -> str:
    """AVMasteringDisplayMetadata: 10 fractions (red, green, blue, white as x, y; least and most light), 2 flags."""
    numbers = struct.unpack_from("<22i", data)
    values = [a / b if b else 0.0 for a, b in zip(numbers[0:20:2], numbers[1:20:2], strict=True)]
    if not (numbers[20] and numbers[21]):
        return ""
    r, g, b, white = (tuple(round(v * 50000) for v in values[i : i + 2]) for i in (0, 2, 4, 6))
    low, high = (round(v * 10000) for v in values[8:])
    return "G({},{})B({},{})R({},{})WP({},{})L({},{})".format(*g, *b, *r, *white, high, low)
