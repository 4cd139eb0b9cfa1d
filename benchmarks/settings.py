"""What the settings do, as pictures: python -m benchmarks.settings [--clip FILE] [--start S] [--out FOLDER]

Lip-syncs a short piece of a clip (or a picture) again and again, changing one setting at a time, and draws a grid for
each: a row is a value, a column a moment; the first row is the source. Beside each row stand figures over all its
frames: how far the mouth opens (inner lips over the height of the face: from, to, and the correlation with the
source's where the sound is the source's own), and how much the repainted pixels differ from the row marked *, in gray
levels. "fit" shows which source frame is seen when, in a longer piece, shrunk, with four steps and guidance 1.
Without --clip: the astronaut portrait of scikit-image says the sample voice. settings.json beside the grids has the
figures of all rows.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latentsync.audio.load import load_audio
from latentsync.audio.mel import SAMPLE_RATE
from latentsync.cli.contact_sheet import evenly
from latentsync.errors import UserError
from latentsync.face.align import align_matrices, crop_face
from latentsync.face.choose import choose
from latentsync.face.detect import mouth_opening
from latentsync.face.track import FaceTrack, find_tracks
from latentsync.media.image import is_image, read_image
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.pipeline import lipsync
from latentsync.settings import FITS, Settings
from latentsync.timeline import fit_timeline
from latentsync.weights.bundle import Models, load_models

ROOT = Path(__file__).resolve().parents[1]
VOICE = ROOT / "latentsync" / "assets" / "voice.flac"
VALUES: dict[str, tuple[Any, ...]] = {
    "guidance": (1.0, 1.5, 2.0, 3.0),
    "steps": (1, 2, 5, 10, 20, 50),
    "solver": ("ddim", "dpm++", "unipc", "deis"),
    "seed": (1247, 1, 2, 3),
}
FEW_STEPS = 5
"""Of the grid of solvers."""
COLUMNS = 6
FACE, TOP = 170, 0.36
"""Side of the upright face in pixels, and where its lower part, which is shown, begins."""
FILM, ROOM = 150, 2.2
"""Side of the frames in the grid of fit, and how many heights of the face they show."""
FIT_SECONDS, FIT_SIDE = 2.5, 720
"""Of that grid: its piece, and its frames' longer side; what counts is which frame is seen."""
MARGIN, LINE = 175, 18
PAPER, INK, FAINT, SOUND = (255, 255, 255), (40, 40, 40), (120, 120, 120), (150, 170, 200)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True)
class Piece:
    """frames (F, H, W, 3) uint8 and speech (T,) at 16 kHz; own: the speech is the frames' own."""

    frames: np.ndarray
    speech: Tensor
    fps: Fraction
    own: bool

    def cut(self, frames: int, seconds: Fraction) -> "Piece":
        return replace(self, frames=self.frames[:frames], speech=self.speech[: round(seconds * SAMPLE_RATE)])


@dataclass(frozen=True)
class Row:
    """Words, and pictures (side by side) with what stands under each of them."""

    words: Sequence[str]
    tiles: Sequence[np.ndarray]


def read_piece(clip: Path | None, audio: Path | None, start: float, seconds: float) -> Piece:
    if clip is None or is_image(clip):
        frames, fps, own = np.stack([portrait() if clip is None else read_image(clip)]), Fraction(25), False
        speech = load_audio(audio or VOICE).waveform
    else:
        info = probe(clip)
        first = round(start * info.fps)
        span = range(first, min(info.frames, first + ceil(seconds * info.fps)))
        if not span:
            raise UserError(f"{clip} lasts {float(info.duration):g} s; give an earlier --start.")
        with VideoReader(info) as reader:
            frames = np.stack(list(reader.read(span)))
        fps, own = info.fps, audio is None
        speech = load_audio(audio or clip, info.start if own else None).waveform
    skip = round(start * SAMPLE_RATE) if own else 0
    return Piece(frames, speech[skip : skip + round(seconds * SAMPLE_RATE)], fps, own)


def portrait() -> np.ndarray:
    from skimage import data

    return data.astronaut()


def make(piece: Piece, models: Models, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    result = lipsync(piece.frames, piece.speech, SAMPLE_RATE, piece.fps, models=models, settings=settings)
    return result.frames, result.mask


def follow(frames: np.ndarray, models: Models) -> FaceTrack:
    return choose(find_tracks(iter(frames), models.finder), "largest")


def variants(name: str, usual: Settings) -> tuple[dict[str, Settings], str]:
    """What is drawn, by the words beside each row, and the row that the others are compared with."""
    if name == "solver":  # with few steps, where they part, against what many steps agree on
        few = {f"{one}, {FEW_STEPS} steps": replace(usual, solver=one, steps=FEW_STEPS) for one in VALUES[name]}
        many = max(VALUES["steps"])
        return few | {f"{usual.solver}, {many} steps": replace(usual, steps=many)}, f"{usual.solver}, {many} steps"
    settings = {f"{name} {value:g}": replace(usual, **{name: value}) for value in VALUES[name]}
    return settings, f"steps {max(VALUES[name])}" if name == "steps" else f"{name} {getattr(usual, name):g}"


def grid(name: str, piece: Piece, models: Models, usual: Settings) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The picture, and the figures of each row."""
    settings, standard = variants(name, usual)
    made = {label: make(piece, models, one) for label, one in settings.items()}
    count = len(made[standard][0])
    source = piece.frames if len(piece.frames) > 1 else np.repeat(piece.frames, count, 0)
    track = follow(source, models)
    truth = mouth_opening(track.landmarks)
    columns = evenly(count, COLUMNS)
    rows, facts = [Row(opened(truth, "source"), faces(source, track, columns))], []
    for label, (frames, mask) in made.items():
        opening = mouth_opening(follow(frames, models).landmarks)
        differs = difference(frames, made[standard][0], mask)
        told = {"row": label, "opening": [round(float(x), 3) for x in (opening.min(), opening.max())]}
        told["differs"] = round(differs, 2)
        words = opened(opening, label)
        if piece.own:
            told["correlation"] = round(float(np.corrcoef(opening, truth)[0, 1]), 2)
            words.append(f"as the source's: {told['correlation']:.2f}")
        words.append("*" if label == standard else f"differs by {differs:.1f}")
        rows.append(Row(words, faces(frames, track, columns)))
        facts.append(told)
    times = [f"{i / float(piece.fps):.2f} s" for i in columns]
    return draw(rows, times), facts


def opened(opening: np.ndarray, name: str) -> list[str]:
    return [name, f"opens {opening.min():.2f} to {opening.max():.2f}"]


def difference(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """Mean distance of two results in gray levels, over what was repainted."""
    distance = np.abs(a.astype(np.int16) - b).mean(-1)
    return float((distance * mask).sum() / max(1.0, float(mask.sum())))


def faces(frames: np.ndarray, track: FaceTrack, columns: Sequence[int]) -> list[np.ndarray]:
    """The lower parts of the source's faces, cut from these frames at the same places."""
    matrices = align_matrices(track.points, FACE)
    return [crop_face(frames[i], matrices[i], FACE)[round(TOP * FACE) :] for i in columns]


def fit_grid(piece: Piece, models: Models, usual: Settings) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Both cases below each other: the sound longer than the picture, and shorter."""
    usual = replace(usual, steps=4, guidance=1.0)
    whole, whole_seconds = len(piece.frames), Fraction(len(piece.speech), SAMPLE_RATE)
    short = max(2, whole * 2 // 5)
    cases = {
        "sound longer than picture": piece.cut(short, whole_seconds),
        "picture longer than sound": piece.cut(whole, short / piece.fps),
    }
    pictures, facts = [], []
    piece = shrunk(piece)
    for title, case in cases.items():
        columns, alike = evenly(whole, COLUMNS), {}
        track = follow(case.frames, models)
        seconds = Fraction(len(case.speech), SAMPLE_RATE)
        for fit in FITS:
            frames, _ = make(case, models, replace(usual, fit=fit))
            line = fit_timeline(case.fps, len(case.frames), seconds, fit)
            shown = [line.source_index(i) if i < len(frames) else None for i in columns]
            tiles = [film(frames, i, n, track, i / case.fps < seconds) for i, n in zip(columns, shown, strict=True)]
            alike.setdefault(sha256(frames.tobytes()).hexdigest(), ([], tiles, len(frames)))[0].append(fit)
            facts.append({"case": title, "fit": fit, "frames": len(frames), "shown": shown})
        lengths = f"{title}: {len(case.frames) / float(case.fps):.2f} s of picture, {float(seconds):.2f} s of sound"
        rows = [Row([*fits, f"lasts {n / float(case.fps):.2f} s"], tiles) for fits, tiles, n in alike.values()]
        times = [f"{i / float(case.fps):.2f} s" for i in columns]
        pictures.append(draw(rows, times, lengths))
    return np.concatenate(pictures), facts


def shrunk(piece: Piece) -> Piece:
    height, width = piece.frames.shape[1:3]
    scale = min(1.0, FIT_SIDE / max(height, width))
    size = (2 * round(width * scale / 2), 2 * round(height * scale / 2))
    frames = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in piece.frames]
    return replace(piece, frames=np.stack(frames))


def film(frames: np.ndarray, i: int, source: int | None, track: FaceTrack, sounds: bool) -> np.ndarray:
    """Head and shoulders, under them the source frame's number and a bar where there is sound; blank after the end."""
    tile = np.full((FILM + 2 * LINE, FILM, 3), PAPER, np.uint8)
    if source is None:
        say(tile, "ended", 8, len(tile) // 2, FAINT)
        return tile
    x, y = track.points[0].mean(0)
    side = min(round(ROOM * track.height), *frames.shape[1:3])
    left, top = (int(np.clip(c - side / 2, 0, size - side)) for c, size in ((x, track.size[0]), (y, track.size[1])))
    cut = frames[i, top : top + side, left : left + side]
    tile[:FILM] = cv2.resize(cut, (FILM, FILM), interpolation=cv2.INTER_AREA)
    say(tile, f"source frame {source}", 2, FILM + LINE - 4, INK)
    if sounds:
        tile[FILM + LINE + 3 : FILM + LINE + 9] = SOUND
    return tile


def draw(rows: Sequence[Row], times: Sequence[str], title: str = "") -> np.ndarray:
    """The grid with its words: (H, W, 3) uint8 RGB."""
    gap, (high, wide) = 4, rows[0].tiles[0].shape[:2]
    head = 2 * LINE + 6 if title else LINE + 6
    out = np.full((head + len(rows) * (high + gap), MARGIN + len(times) * (wide + gap), 3), PAPER, np.uint8)
    say(out, title, 8, LINE - 3, INK)
    for x, time in enumerate(times):
        say(out, time, MARGIN + x * (wide + gap) + 4, head - 6, FAINT)
    for y, row in enumerate(rows):
        top = head + y * (high + gap)
        for n, words in enumerate(row.words):
            say(
                out,
                words,
                8,
                top + high // 2 + round((n - len(row.words) / 2 + 0.8) * LINE),
                FAINT if " " in words and n else INK,
            )
        for x, tile in enumerate(row.tiles):
            left = MARGIN + x * (wide + gap)
            out[top : top + high, left : left + wide] = tile
    return out


def say(picture: np.ndarray, text: str, x: int, y: int, color: tuple[int, int, int]) -> None:
    cv2.putText(picture, text, (x, y), _FONT, 0.5, color, 1, cv2.LINE_AA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path, help="a video or picture with a face")
    parser.add_argument("--audio", type=Path, help="a voice; without it the clip's own, or the sample voice")
    parser.add_argument("--start", type=float, default=0.0, help="second of the clip at which the piece begins")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of the piece")
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--grids", nargs="+", choices=[*VALUES, "fit"], default=[*VALUES, "fit"])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "settings")
    parser.add_argument("--threads", type=int, help="of torch; its own choice without")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    given = (arguments.clip, arguments.audio, arguments.start)
    piece = read_piece(*given, arguments.seconds)
    place = arguments.out / "settings.json"
    facts: dict[str, Any] = json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}
    with load_models(arguments.checkpoint, device=arguments.device) as models:
        facts["input"] = {"clip": arguments.clip and arguments.clip.name, "start": arguments.start}
        facts["input"] |= {"seconds": arguments.seconds, "checkpoint": models.name}
        for name in arguments.grids:
            if name == "fit" and len(piece.frames) == 1:
                print("fit: left out, a picture is always as long as the sound")
                continue
            if name == "fit":
                picture, facts[name] = fit_grid(read_piece(*given, FIT_SECONDS), models, Settings())
            else:
                picture, facts[name] = grid(name, piece, models, models.defaults)
            path = arguments.out / f"{name}.jpg"
            cv2.imwrite(str(path), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
            print(path, *facts[name], sep="\n  ")
    place.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
