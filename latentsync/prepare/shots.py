"""Shots of a video: its cuts, its still pictures, and how long shots are split into clips."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from ..dataset import FPS
from ..errors import missing_package
from .settings import PrepareSettings

SHOT_WIDTH = 256
"""Pixels; PySceneDetect's thresholds are made for pictures of about this width."""
STILL_FRAMES = int(FPS)
"""Equal frames in a row that count as a still picture."""


def find_shots(frames: Iterable[np.ndarray], threshold: float) -> tuple[list[int], list[list[int]]]:
    """Frames that begin a shot, by PySceneDetect's adaptive detector, and [start, stop] of equal frames."""
    detector, timecode = shot_detector(threshold)
    cuts: list[int] = []
    still: list[list[int]] = []
    before, since, i = None, 0, -1
    for i, frame in enumerate(frames):
        small = _shrink(frame)
        cuts += [int(cut) for cut in detector.process_frame(timecode(i), small)]
        if before is None or not np.array_equal(small, before):
            still += [[since, i]] if i - since >= STILL_FRAMES else []
            since = i
        before = small
    still += [[since, i + 1]] if i + 1 - since >= STILL_FRAMES else []
    cuts += [int(cut) for cut in detector.post_process(timecode(max(i, 0)))]
    return sorted({cut for cut in cuts if 0 < cut <= i}), still


def shot_detector(threshold: float) -> tuple[Any, Any]:
    """PySceneDetect's detector, and a function from frame number to its time code (0.6 and 0.7)."""
    try:
        from scenedetect import FrameTimecode
        from scenedetect.detectors import AdaptiveDetector
    except ImportError as error:
        raise missing_package("Shot detection", "scenedetect", instead="add --skip shots") from error
    return AdaptiveDetector(adaptive_threshold=threshold), lambda i: FrameTimecode(i, float(FPS))


def _shrink(frame: np.ndarray) -> np.ndarray:
    """BGR, SHOT_WIDTH wide; large pictures are subsampled first, which is fast."""
    thin = frame[:: max(1, frame.shape[0] // 512), :: max(1, frame.shape[1] // 512)]
    size = (SHOT_WIDTH, max(2, round(frame.shape[0] * SHOT_WIDTH / frame.shape[1])))
    return np.ascontiguousarray(cv2.resize(thin, size, interpolation=cv2.INTER_AREA)[..., ::-1])


def split_shot(length: int, settings: PrepareSettings) -> list[tuple[int, int]]:
    """A shot of `length` frames in the fewest, most equal clips of at most max_frames.

    If min_frames is more than half of max_frames those may be too short: then clips of max_frames, and a tail. Clips
    that are too short are listed too.
    """
    count = max(1, -(-length // settings.max_frames))
    if length // count >= settings.min_frames or count == 1:
        edges = [length * k // count for k in range(count + 1)]
    else:
        edges = [*range(0, length, settings.max_frames), length]
    return list(pairwise(edges))
