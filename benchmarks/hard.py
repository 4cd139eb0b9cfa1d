"""Hard footage painted with the built-in model: the ten worst frames by figures, and an older commit beside this one.

Three figures for each made frame, for the face in the network's crop:
- color: how far, in levels of 255, the paint differs from the source along its own soft edge (blurred; the 95th
  percentile of the edge), where both should be the same skin;
- place: how far the corners of the mouth, found again in the result, are from the source's, in percent of the face's
  height (100 where the face is not found again). Speech moves them too, by about 3 %;
- sharpness: what is left of the fine detail around the mouth (variance of the Laplacian, percent of the source's).
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from latentsync.audio.load import load_audio
from latentsync.face.align import align_matrices, crop_face, face_size
from latentsync.face.detect import Face, FaceFinder, three_points
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.media.writer import VideoWriter
from latentsync.pipeline import Models, Settings, lipsync, load_models

ROOT = Path(__file__).parents[1]
VOICE = ROOT / "latentsync" / "assets" / "voice.flac"
WORST_TITLE, BEFORE_TITLE = "## The worst ten", "## Before and after"
SECONDS, EVERY, LONGEST = 1, 2, 640
"""Of each clip so many seconds, every second frame, at most so many pixels: on a slow machine it takes minutes."""
SIDE, TILE, COLUMNS = 192, 200, 5
PICKED = {"color": 4, "place": 3, "sharpness": 3}
"""How many frames each figure picks for the sheet, one of each piece."""

Change = Callable[[np.ndarray], np.ndarray]


def upside_down(frames: np.ndarray) -> np.ndarray:
    return frames[:, ::-1, ::-1]


def dark(frames: np.ndarray) -> np.ndarray:
    """An eighth of the light, and the sensor's noise with it."""
    noise = np.random.default_rng(0).normal(0, 2, frames.shape)
    return (frames / 8 + noise).clip(0, 255).astype(np.uint8)


def flashed(frames: np.ndarray) -> np.ndarray:
    """A photographer's flash at a third of the piece: one frame white, and one half so."""
    lit = frames.copy()
    for i, share in ((len(frames) // 3, 0.95), (len(frames) // 3 + 1, 0.5)):
        lit[i] = np.rint(frames[i] + share * (255.0 - frames[i]))
    return lit


@dataclass(frozen=True)
class Piece:
    """A part of a clip that is hard."""

    name: str
    clip: str
    start: float
    credit: str
    change: Change = np.asarray
    beside: str = ""

    @property
    def face(self) -> str:
        return "left" if self.beside else "largest"

    def frames(self, media: Path) -> tuple[np.ndarray, Fraction]:
        """(F, H, W, 3), and their rate."""
        shown, fps = read(media / self.clip, self.start)
        if self.beside:
            other = read(media / self.beside, 0)[0]
            shown = np.concatenate([shown[: len(other)], other[: len(shown)]], 2)
        return self.change(shown), fps


DEMO, GRID, INTEL = "bytedance/LatentSync, Apache-2.0", "GRID corpus, CC BY 4.0", "Intel sample videos, CC BY 4.0"
HAND, TURN = "edge/hand_over_mouth_23.976fps.mp4", "edge/head_turn_sideways_12fps.mp4"
PEXELS, ADDRESS = "Wolfgang Langer, Pexels", "White House address, public domain"
PIECES = (
    Piece("a hand comes in front of the mouth", HAND, 2.1, PEXELS),
    Piece("a hand leaves the mouth", HAND, 9.2, PEXELS),
    Piece("a head turns", TURN, 0.3, INTEL),
    Piece("upside down", "clips/obama_a_20s.mp4", 5, ADDRESS, upside_down),
    Piece("a face of 73 pixels", "edge/tiny_face_270x480.mp4", 1, DEMO),
    Piece("a face of 81 pixels", "edge/small_face_noaudio_noduration.mkv", 0, INTEL),
    Piece("a beard", "clips/latentsync_demo2.mp4", 3, DEMO),
    Piece("a head that moves", "clips/latentsync_demo3.mp4", 8, DEMO),
    Piece("in the dark", "clips/latentsync_demo1.mp4", 2, DEMO, dark),
    Piece("a flash", "clips/grid/pB_lbax4n.mpg", 0, GRID, flashed),
    Piece("an old face, 256 pixels of video", "clips/reagan_26s.mov", 4, ADDRESS),
    Piece("a face half out of the picture", "edge/face_slides_out_3s_to_7s_and_back.mp4", 2, DEMO),
    Piece("a face that leaves by the top", "edge/face_scrolls_up_and_out_30fps.mp4", 4.6, DEMO),
    Piece("the left one of two", "clips/grid/pD_lwbsza.mpg", 0, GRID, beside="clips/grid/pA_brbk7n.mpg"),
)
SAID = {
    ("a hand leaves the mouth", "color"): "the teeth became one gray band, and the lips are gray as well",
    ("a face half out of the picture", "color"): "lips too large and grayish between them; the moustache is softer",
    ("a face of 73 pixels", "sharpness"): "lips closed, too large and blurred; the moustache is softer",
    ("a face of 73 pixels", "color"): "lips too red and too large, without teeth; the beard is darker and smoother",
    ("a beard", "color"): "lips too red and too large, without teeth",
    ("upside down", "color"): "the mouth is open, in its place; its lips have lost their edge",
    ("in the dark", "place"): "lips without an edge, and lighter than the face, with an orange tinge",
    ("a face that leaves by the top", "place"): "the turned cheek's edge is smudged into the background",
    ("a face of 81 pixels", "place"): "a closed mouth that talks now, no softer than the face around it",
    ("upside down", "sharpness"): "the mouth is closed and in its place, but soft: the teeth were most of the detail",
    ("a head that moves", "sharpness"): "the mouth was open and is closed; its lips are pale and soft",
    ("a hand leaves the mouth", "sharpness"): "the teeth became a gray band, and the lips are soft",
}
"""What is seen in the worst frames, by piece and figure, said by somebody who looked at them."""
COMPARED = (
    ("hand", "a hand comes in front of the mouth", "The hand was painted over and smeared; now it stays on top"),
    ("outline", "the left one of two", "The paint went into the hair beside the jaw; now it ends with the face"),
    (
        "turned",
        "a head turns",
        "A far side that nobody sees was made, and the outline smudged; now a turned head is left alone",
    ),
    ("upside_down", "upside down", "The face was found in one of 13 frames; now the mouth is made in all"),
)
"""Picture, piece, and what is seen there."""


@dataclass(frozen=True)
class Made:
    """A frame of a piece, before and after, and its figures."""

    piece: Piece
    number: int
    source: np.ndarray
    result: np.ndarray
    points68: np.ndarray
    color: float
    place: float
    sharpness: float

    def badness(self, figure: str) -> float:
        return -self.sharpness if figure == "sharpness" else float(getattr(self, figure))


def read(clip: Path, start: float) -> tuple[np.ndarray, Fraction]:
    info = probe(clip)
    every = EVERY if info.fps > 20 else 1
    first, last = (round(t * info.fps) for t in (start, start + SECONDS))
    with VideoReader(info) as reader:
        frames = np.stack(list(reader.read(range(first, min(last, info.frames), every))))
    scale = LONGEST / max(frames.shape[1:3])
    if scale < 1:
        width, height = (2 * round(scale * side / 2) for side in (frames.shape[2], frames.shape[1]))
        frames = np.stack([cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA) for frame in frames])
    return frames, info.fps / every


def measured(piece: Piece, media: Path, models: Models) -> Iterator[Made]:
    """Every frame of a piece in which a mouth was made."""
    frames, fps = piece.frames(media)
    speech = load_audio(VOICE).waveform[8000 : 8000 + int(len(frames) / fps * 16000)]
    settings = Settings(steps=1, guidance=1, fit="silence", face=piece.face)
    made = lipsync(frames, speech, 16000, fps, models=models, settings=settings)
    for i, (source, result, mask) in enumerate(zip(frames, made.frames, made.mask, strict=True)):
        if mask.max() < 0.5:
            continue
        box = cv2.boundingRect((mask > 0.25).astype(np.uint8))
        faces = [face for face in models.finder.detect(source) if _holds(face, tuple(box))]
        if faces:
            yield _figures(piece, i, source, result, mask, faces[0], models.finder)


def _holds(face: Face, box: tuple[int, ...]) -> bool:
    x, y = face.points68[48:68].mean(0)
    return box[0] <= x <= box[0] + box[2] and box[1] <= y <= box[1] + box[3]


def _figures(
    piece: Piece, i: int, source: np.ndarray, result: np.ndarray, mask: np.ndarray, face: Face, finder: FaceFinder
) -> Made:
    points = face.points68
    matrix = align_matrices(three_points(points)[None], SIDE)[0]
    before, after = (crop_face(frame, matrix, SIDE).astype(np.float32) for frame in (source, result))
    width, height = face_size(SIDE)
    paint = cv2.resize(cv2.warpAffine(mask, matrix, (width, height)), (SIDE, SIDE))
    away = np.abs(cv2.GaussianBlur(after - before, (0, 0), 0.015 * SIDE)).mean(-1)
    edge = (paint > 0.5) & (paint < 0.95)
    color = float(np.percentile(away[edge], 95)) if edge.any() else 0.0
    again = finder.refine(result, face.box, face.tilt)
    tall = float(np.linalg.norm(points[8] - points[27]))
    shift = 1.0 if again is None else np.linalg.norm((again.points68 - points)[[48, 54]], axis=1).mean() / tall
    inside = paint > 0.95
    sharpness = 100.0
    if inside.any():
        grays = (cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY) for crop in (before, after))
        true, left = (cv2.Laplacian(gray, cv2.CV_32F)[inside].var() for gray in grays)
        sharpness = 100 * float(left / max(true, 1e-3))
    return Made(piece, i, source, result, points, color, 100 * float(shift), sharpness)


def worst_ten(media: Path, folder: Path) -> Iterator[str]:
    """Paragraphs of the page; the sheet is written to the folder."""
    models = load_models("nano")
    table, every = ["| piece | frames made | color | place | sharpness |\n|---|---|---|---|---|"], []
    for piece in PIECES:
        made = list(measured(piece, media, models))
        every += made
        worst = [f(getattr(m, name) for m in made) for name, f in (("color", max), ("place", max), ("sharpness", min))]
        middle = [float(np.median([getattr(m, name) for m in made])) for name in PICKED]
        cells = [f"{a:.1f}, {b:.1f}" for a, b in zip(middle, worst, strict=True)]
        table.append(f"| {piece.name} ({piece.credit}) | {len(made)} | {' | '.join(cells)} |")
        print(table[-1], flush=True)
    picked: list[tuple[str, Made]] = []
    for figure, count in PICKED.items():
        taken = {made.piece.name: made for made in sorted(every, key=lambda made: made.badness(figure))}
        ranked = sorted(taken.values(), key=lambda made: -made.badness(figure))
        free = [made for made in ranked if all(made is not other for _, other in picked)]
        picked += [(figure, made) for made in free[:count]]
    folder.mkdir(exist_ok=True)
    save(folder / "worst.jpg", sheet([made for _, made in picked]))
    yield __doc__.split("\n\n", 1)[1].strip() if __doc__ else ""
    yield (
        f"{SECONDS} s of each piece say the built-in voice with the built-in model ({SIDE} pixels a face, the smallest "
        f"there is), every second frame of them, pictures at most {LONGEST} pixels long. In the table stand the median "
        "of each figure and its worst; the sheet shows the four, three and three worst frames by each figure, one of a "
        "piece."
    )
    yield "\n".join(table)
    yield "![Ten pairs, the source above the result](footage/worst.jpg)"
    yield "\n".join(
        f"{n}. {made.piece.name}, frame {made.number}, {figure} {getattr(made, figure):.1f}: "
        f"{SAID.get((made.piece.name, figure), 'not looked at yet')}."
        for n, (figure, made) in enumerate(picked, 1)
    )


def sheet(made: list[Made]) -> np.ndarray:
    """COLUMNS pairs in a row, source above result."""
    rows = []
    for start in range(0, len(made), COLUMNS):
        part = made[start : start + COLUMNS]
        for name in ("source", "result"):
            rows.append(np.concatenate([around(getattr(m, name), m.points68) for m in part], 1))
    return np.concatenate(rows)


def around(frame: np.ndarray, points68: np.ndarray, side: int = TILE) -> np.ndarray:
    """A square of the frame around a face, as it lies there."""
    (x0, y0), (x1, y1) = points68.min(0), points68.max(0)
    half = 0.75 * max(x1 - x0, y1 - y0)
    scale = side / (2 * half)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2 - 0.1 * (y1 - y0)
    matrix = np.array([[scale, 0, side / 2 - scale * x], [0, scale, side / 2 - scale * y]])
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.warpAffine(frame, matrix, (side, side), flags=how, borderValue=(235, 235, 235))


def save(path: Path, picture: np.ndarray) -> None:
    cv2.imwrite(str(path), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])


def before_and_after(media: Path, checkout: Path, folder: Path) -> Iterator[str]:
    """Lines of the page. checkout: of the older commit. The same pieces run in both; shown is the frame in which the
    results differ most around the face."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True)
    folder.mkdir(exist_ok=True)
    yield f"Source, commit {commit.stdout.strip()}, and now: the frame in which the two differ most."
    finder = load_models("nano").finder
    for name, hard, said in COMPARED:
        piece = next(piece for piece in PIECES if piece.name == hard)
        frames, fps = piece.frames(media)
        with TemporaryDirectory() as place:
            clip = Path(place) / "clip.mp4"
            with VideoWriter(clip, frames.shape[2], frames.shape[1], fps, crf=1) as writer:
                for frame in frames:
                    writer.write(frame)
            old, new = (_run(clip, where, piece.face) for where in (checkout, ROOT))
        count = min(len(frames), len(old), len(new))
        apart = np.abs(old[:count].astype(np.int16) - new[:count]).mean((1, 2, 3))
        i = int(apart.argmax())
        faces = finder.detect(frames[i])
        face = min(faces, key=lambda f: f.center[0]) if piece.face == "left" else max(faces, key=lambda f: f.height)
        tiles = [around(part[i], face.points68, 300) for part in (frames, old, new)]
        save(folder / f"{name}.jpg", np.concatenate(tiles, 1))
        yield f"\n{said} ({piece.credit}; frame {i} of the piece):\n"
        yield f"![{hard}: source, before, after](footage/{name}.jpg)"


def _run(clip: Path, checkout: Path, face: str) -> np.ndarray:
    """What a checkout's command line makes of a clip, (F, H, W, 3); the clip as it is where it makes nothing."""
    out = clip.with_name("out.mp4")
    out.unlink(missing_ok=True)
    given = ["-v", clip, "-a", VOICE, "-o", out, "--face", face, "--fit", "trim"]
    done = subprocess.run([sys.executable, "-m", "latentsync", "run", *map(str, given)], cwd=checkout)
    source = out if done.returncode == 0 else clip
    with VideoReader.open(source) as reader:
        return np.stack(list(reader.read(range(reader.info.frames))))
