"""A contact sheet: faces of a video over time, above curves of its loudness and mouth opening."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from ..audio.clues import clues_for
from ..audio.load import load_audio, loudness
from ..audio.mel import SAMPLE_RATE
from ..errors import UserError
from ..evaluation.canvas import runs
from ..face.align import align_matrices, crop_face
from ..face.choose import choose
from ..face.detect import FaceFinder, mouth_opening
from ..face.track import FaceTrack, find_tracks
from ..media.probe import probe
from ..media.reader import VideoReader
from ..media.watermark import draw_text
from .console import write_file

COLUMNS, ROWS = 8, 3
TILE = 160
"""Side of one face in pixels."""
MEASURED = 500
"""Most frames in which the mouth is measured; longer clips are sampled evenly."""
CURVES = 150
MAX_DB, MIN_DB = 0.0, -60.0
"""Range of the loudness curve, dB below full scale."""
PAPER, INK, SOUND, MOUTH = (250, 250, 250), (70, 70, 70), (150, 170, 200), (200, 60, 50)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True)
class Curve:
    """Values over time, drawn between low and high."""

    name: str
    values: np.ndarray
    low: float
    high: float
    color: tuple[int, int, int]


def sheet_of(video: str | Path, finder: FaceFinder, face: str = "largest") -> np.ndarray:
    """The sheet of a video file as (H, W, 3) uint8 RGB."""
    info = probe(video)
    step = -(-info.frames // MEASURED)
    measured = range(0, info.frames, step)
    with VideoReader(info) as reader:
        track = _track(reader, measured, finder, face)
        picked = [measured[i] for i in evenly(len(measured), COLUMNS * ROWS)]
        tiles = [_tile(frame, track, i // step) for i, frame in zip(picked, reader.read(picked), strict=True)]
    times = [float(i / info.fps) for i in picked]
    curves = []
    if info.has_audio:
        sound = load_audio(video, info.start).waveform
        values = loudness(sound, info.fps / step, len(measured), SAMPLE_RATE).numpy()
        curves.append(Curve("loudness", values, MIN_DB, MAX_DB, SOUND))
    if track is not None:
        opening = np.where(track.present, mouth_opening(track.landmarks), np.nan)
        curves.append(Curve("mouth opening", opening, 0.0, max(0.1, float(np.nanmax(opening))), MOUTH))
    return compose(tiles, times, curves, float(info.duration), COLUMNS)


def evenly(total: int, wanted: int) -> list[int]:
    """At most `wanted` of range(total), evenly spaced, beginning with 0."""
    count = min(total, wanted)
    return [i * total // count for i in range(count)]


def _track(reader: VideoReader, measured: range, finder: FaceFinder, face: str) -> FaceTrack | None:
    """The face in the measured frames; None if there is none, and the sheet then shows whole frames."""
    with suppress(UserError):
        tracks = find_tracks(reader.read(measured), finder)
        with suppress(UserError):  # the point may be in a frame that is not measured
            clues = clues_for(face, reader, reader.info.frames, reader.info.fps, lambda: finder)
            fps = clues.fps / measured.step
            return choose(
                tracks, face, replace(clues, fps=fps, read=lambda some: reader.read(measured[i] for i in some))
            )
        return choose(tracks, "largest")
    return None


def _tile(frame: np.ndarray, track: FaceTrack | None, i: int) -> np.ndarray:
    if track is not None and track.present[i]:
        return crop_face(frame, align_matrices(track.points[i : i + 1], TILE)[0], TILE)
    height, width = frame.shape[:2]
    scale = TILE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    tile = np.full((TILE, TILE, 3), PAPER, np.uint8)
    top, left = (TILE - small.shape[0]) // 2, (TILE - small.shape[1]) // 2
    tile[top : top + small.shape[0], left : left + small.shape[1]] = small
    return tile


def compose(
    tiles: Sequence[np.ndarray], times: Sequence[float], curves: Sequence[Curve], seconds: float, columns: int
) -> np.ndarray:
    """Tiles (T, T, 3) in rows with their times (seconds), and under them the curves over the clip's whole length."""
    side, rows = tiles[0].shape[0], -(-len(tiles) // columns)
    grid = np.full((rows * side, columns * side, 3), PAPER, np.uint8)
    for i, (tile, time) in enumerate(zip(tiles, times, strict=True)):
        y, x = i // columns * side, i % columns * side
        grid[y : y + side, x : x + side] = tile
        draw_text(grid[y : y + side, x : x + side], f"{time:.2f} s", 6, 7, 0.42)
    if not curves:
        return grid
    return np.concatenate((grid, _plot(curves, times, seconds, grid.shape[1])))


def _plot(curves: Sequence[Curve], times: Sequence[float], seconds: float, width: int) -> np.ndarray:
    margin = 22
    panel = np.full((CURVES, width, 3), PAPER, np.uint8)
    for time in times:  # where the tiles are
        x = round(time / seconds * width)
        cv2.line(panel, (x, margin), (x, CURVES), (228, 228, 228), 1)
    left = 8
    for curve in curves:
        points = _points(curve, width, margin)
        if curve.name == "loudness":
            floor = np.array([(points[-1][-1][0], CURVES), (points[0][0][0], CURVES)]) if points else None
            shapes = [] if floor is None else [np.concatenate((np.concatenate(points), floor))]
            cv2.fillPoly(panel, shapes, curve.color)
        else:
            cv2.polylines(panel, points, False, curve.color, 2, cv2.LINE_AA)
        text = f"{curve.name} ({curve.low:g} to {curve.high:.2g}{' dB' if curve.name == 'loudness' else ''})"
        cv2.putText(panel, text, (left, 15), _FONT, 0.45, tuple(c // 2 for c in curve.color), 1, cv2.LINE_AA)
        left += cv2.getTextSize(text, _FONT, 0.45, 1)[0][0] + 24
    return panel


def _points(curve: Curve, width: int, margin: int) -> list[np.ndarray]:
    """Polylines (N, 2) int32, one for each run without NaN."""
    share = np.clip((curve.values - curve.low) / (curve.high - curve.low), 0, 1)
    x = (np.arange(len(share)) + 0.5) / len(share) * width
    y = CURVES - 3 - share * (CURVES - 3 - margin)
    return [np.stack((x[run], y[run]), 1).round().astype(np.int32) for run in runs(share)]


def write_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write RGB as .png or .jpg."""
    encoded, data = cv2.imencode(Path(path).suffix, picture[..., ::-1])
    if not encoded:
        raise UserError(f"{path} could not be encoded; name it .png or .jpg.")
    write_file(path, data.tobytes())
