"""Steps 1 to 4, from a file to pieces: readable, rate (25 fps, 16 kHz), shots, pieces."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from ..audio.load import SILENT_DB, load_audio
from ..dataset import FPS
from ..errors import UserError
from ..media.audio_track import has_audio
from ..media.probe import VideoInfo
from .settings import PrepareSettings
from .steps import Dropped, Facts, Item, Step
from .workspace import SAMPLES, as_pcm, read_sound, write_sound

if TYPE_CHECKING:
    from .worker import Shop

SHOT_WIDTH = 256
"""Pixels; PySceneDetect's thresholds are made for pictures of about this width."""
STILL = int(FPS)
"""Equal frames in a row that count as a picture that stands still."""
SILENT = 32768 * 10 ** (SILENT_DB / 20)


def at_rate(info: VideoInfo) -> VideoInfo:
    """The same video at 25 fps: frame j is the source's latest frame at or before j / 25 s."""
    if info.fps == FPS and not info.variable_rate:
        return info
    return replace(info, fps=FPS, frames=max(1, int(info.duration * FPS)), variable_rate=True)


def readable(shop: "Shop", item: Item, facts: Facts) -> Facts:
    info = shop.source_video(item)
    return {
        "seconds": round(float(info.duration), 3),
        "size": [info.width, info.height],
        "source_fps": str(info.fps),
        "variable_rate": info.variable_rate,
    }


def rate(shop: "Shop", item: Item, facts: Facts) -> Facts:
    """The picture's rate is changed while reading; the sound is decoded once and kept, cut to the picture's length."""
    info = shop.video(item)
    if not has_audio(info.path):
        raise Dropped("no_sound", "The file has no sound track that can be decoded.")
    waveform = load_audio(info.path, info.start).waveform.numpy()
    samples = as_pcm(waveform[: info.frames * SAMPLES])
    write_sound(shop.sound(item), np.pad(samples, (0, info.frames * SAMPLES - len(samples))))
    return {"source_frames": info.frames}


def shots(shop: "Shop", item: Item, facts: Facts) -> Facts:
    """cuts: frames that begin a shot. still: (start, stop) of pictures that stand still."""
    with shop.reader(item) as reader:
        cuts, still = find_shots(reader.read(range(reader.info.frames)), shop.settings.shot_threshold)
    return {"cuts": cuts, "still": still}


def find_shots(frames: Iterable[np.ndarray], threshold: float) -> tuple[list[int], list[list[int]]]:
    """Frames that begin a shot, by PySceneDetect's adaptive detector, and stretches of equal frames."""
    detector, moment = shot_detector(threshold)
    cuts: list[int] = []
    still: list[list[int]] = []
    before, since, i = None, 0, -1
    for i, frame in enumerate(frames):
        small = _small(frame)
        cuts += [int(cut) for cut in detector.process_frame(moment(i), small)]
        if before is None or not np.array_equal(small, before):
            still += [[since, i]] if i - since >= STILL else []
            since = i
        before = small
    still += [[since, i + 1]] if i + 1 - since >= STILL else []
    cuts += [int(cut) for cut in detector.post_process(moment(max(i, 0)))]
    return sorted({cut for cut in cuts if 0 < cut <= i}), still


def shot_detector(threshold: float) -> tuple[Any, Any]:
    """PySceneDetect's detector and what makes a frame number into its time code (0.6 and 0.7)."""
    try:
        from scenedetect import FrameTimecode
        from scenedetect.detectors import AdaptiveDetector
    except ImportError as error:
        raise UserError(
            'Shots are found by PySceneDetect, which is missing; pip install "latentsync[prepare]" or add --skip shots.'
        ) from error
    return AdaptiveDetector(adaptive_threshold=threshold), lambda i: FrameTimecode(i, float(FPS))


def _small(frame: np.ndarray) -> np.ndarray:
    """BGR, SHOT_WIDTH wide; large pictures are thinned first, which is fast."""
    thin = frame[:: max(1, frame.shape[0] // 512), :: max(1, frame.shape[1] // 512)]
    size = (SHOT_WIDTH, max(2, round(frame.shape[0] * SHOT_WIDTH / frame.shape[1])))
    return np.ascontiguousarray(cv2.resize(thin, size, interpolation=cv2.INTER_AREA)[..., ::-1])


def pieces(shop: "Shop", item: Item, facts: Facts) -> Facts:
    """pieces: [start, stop, reason, detail] for every part of every shot; reason is None where it goes on."""
    settings, frames = shop.settings, facts["source_frames"]
    cuts = facts.get("cuts", [])
    out = []
    for start, stop in zip([0, *cuts], [*cuts, frames], strict=True):
        for a, b in split(stop - start, settings):
            out.append([start + a, start + b, *_unfit(shop, item, facts, start + a, start + b)])
    return {"pieces": out}


def split(length: int, settings: PrepareSettings) -> list[tuple[int, int]]:
    """A shot of so many frames in the fewest pieces that are not too long, as equal as can be.

    Where the shortest piece is more than half the longest that may leave pieces too short: then pieces of the greatest
    length, and a tail. What is too short is listed too.
    """
    shortest, longest = settings.shortest, settings.longest
    count = max(1, -(-length // longest))
    if length // count >= shortest or count == 1:
        edges = [length * k // count for k in range(count + 1)]
    else:
        edges = [*range(0, length, longest), length]
    return list(pairwise(edges))


def _unfit(shop: "Shop", item: Item, facts: Facts, start: int, stop: int) -> list[str | None]:
    """[reason, detail] that can be told without looking for faces."""
    settings = shop.settings
    if stop - start < settings.shortest:
        seconds = (stop - start) / float(FPS)
        return ["short", f"{seconds:g} s; at least {settings.min_seconds:g} s are needed."]
    if any(a < stop and b > start for a, b in facts.get("still", [])):
        a, b = next((a, b) for a, b in facts["still"] if a < stop and b > start)
        return ["frozen", f"The picture does not change from {a / int(FPS):.2f} to {b / int(FPS):.2f} s."]
    sound = read_sound(shop.sound(item), start * SAMPLES, stop * SAMPLES)
    if np.abs(sound.astype(np.int32)).max() < SILENT:
        return ["silent", f"No sound above {SILENT_DB:g} dB."]
    return [None, None]


def _origin(shop: "Shop", item: Item) -> list[int]:
    """What tells that a source was changed."""
    facts = shop.path(item).stat()
    return [facts.st_size, facts.st_mtime_ns]


STEPS = (
    Step("readable", readable, "unreadable", _origin),
    Step("rate", rate, "bad_sound", files=lambda shop, item: (shop.sound(item),)),
    Step("shots", shots, "unreadable", lambda shop, item: shop.settings.shot_threshold),
    Step("pieces", pieces, "unreadable", lambda shop, item: [shop.settings.shortest, shop.settings.longest]),
)
