"""Every default of the product, written once; nodes, command line and app read them from here."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from .errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Fit = Literal["trim", "loop", "pingpong", "hold", "silence"]
Solver = Literal["ddim", "dpm++", "unipc", "deis"]
Silence = Literal["keep", "relax", "close"]
Mode = Literal["exact", "fast", "turbo", "draft"]
Watermark = Literal["none", "metadata", "visible"]

LIKE_SOURCE = "copy-like-source"
CODECS = (LIKE_SOURCE, "h264", "h265", "av1", "vp9", "prores")
FITS: tuple[str, ...] = get_args(Fit)
SILENCES: tuple[str, ...] = get_args(Silence)
NO_FACES = ("error", "pass")
ENCODERS = ("software", "hardware")
MODES: tuple[str, ...] = get_args(Mode)
MODE_STEPS = {"fast": 6, "turbo": 4, "draft": 4}
"""Solver steps of these modes, where the checkpoint's own are more."""
SOLVERS: tuple[str, ...] = get_args(Solver)
WATERMARKS: tuple[str, ...] = get_args(Watermark)

FACE_RULES = ("auto", "largest", "left", "right")
FACE_PLACE = re.compile(r"\s*\d+\s*|\s*-?\d+(\.\d*)?\s*,\s*-?\d+(\.\d*)?\s*,\s*\d+\s*")
"""A face's number, or a point x,y,frame."""

STEPS, GUIDANCE = 20, 1.5
"""What the published weights are used with, and what a checkpoint gets that states nothing of its own."""

WINDOW = 16
"""Frames that the network sees together (all published LatentSync weights)."""


@dataclass(frozen=True)
class Settings:
    """How one lip sync is made.

    steps: solver steps, up to 1000. guidance: 1 = follow the audio as trained, larger = more strongly (up to 20).
    0 for either is the checkpoint's own, see `resolved`.
    solver: one of SOLVERS. seed: 0 to 2**63 - 1. fit: what to do when sound and picture differ in length, one of FITS.
    face: "auto" (who speaks in the source), "largest", "left", "right", a track index ("0", "1", …), a point
    "x,y,frame" in pixels of the source, or the path of a photo of the person.
    window_batch: windows of 16 frames computed together; changes speed and memory, not the result.
    still_fps: frames per second of the video that a still image becomes.
    watermark: "metadata" states in the file that the lips are generated, "visible" also in a corner of every frame.
    max_side: longest side in pixels that a still image gets; larger ones are made smaller. 0: as it is. Videos keep
    their size. 1920 is what every phone plays, and more than a mouth of 512 pixels needs.
    background: what a transparent picture is laid on. White, as programs do that save such pictures as JPEG.
    codec: one of CODECS; the usual one is the source's own where the file can hold it and an encoder is here.
    quality: 1 to 100, of the encoding. pixel_format: FFmpeg's name; auto keeps depth and chroma of the source.
    encoder: "software" makes the same file everywhere and the smaller one; "hardware" takes a graphics card's encoder
    for the codec where one opens (quicker, larger), else the software.
    strip_metadata: leave out the source's title, dates, place, chapters, languages and subtitles.
    silence: what a mouth does in pauses of the speech. "keep": what the network makes of the sound there; "relax": what
    it makes of true silence, so that breath, hum and music move no lips; "close": the same, with the lips closed in the
    picture.
    spans: parts of the clip whose lips are made anew, as "1.5-4, 1:20-" (seconds or minutes:seconds); empty is all.
    points: a face that no finder knows (a drawing, an animal), pointed out by hand as "x1,y1,x2,y2,x3,y3,frame": left
    brow, right brow and nose tip in pixels of the source, as seen, and the frame they are in. Empty: faces are found.
    no_face: what to do with a clip in which the face asked for is nowhere: "error", or "pass" it through as it is.
    mode: "exact" takes the checkpoint's own steps and guidance; "fast" 6 steps of dpm++ with guidance in the middle
    three; "turbo" 4 steps without guidance; "draft" the same, decoded by the built-in tiny VAE. Steps, guidance and
    solvers that are given stay. Where the checkpoint takes fewer steps anyway (nano), they change nothing.
    reuse: with many steps, compute the deep layers of the network only in every so many-th and use their outputs again
    in those between; 3 is what the public code does by default. 1: never.
    audio_track: number of the sound track that is heard and written, from 0; -1 is the default one, or the first that
    can be heard.
    """

    steps: int = 0
    guidance: float = 0.0
    solver: str = "ddim"
    seed: int = 1247
    fit: str = "pingpong"
    face: str = "largest"
    window_batch: int = 1
    still_fps: int = 25
    watermark: str = "none"
    max_side: int = 1920
    background: str = "white"
    strip_metadata: bool = False
    codec: str = "copy-like-source"
    quality: int = 80
    pixel_format: str = "auto"
    encoder: str = "software"
    audio_track: int = -1
    silence: str = "keep"
    spans: str = ""
    points: str = ""
    no_face: str = "error"
    mode: str = "exact"
    reuse: int = 1

    def __post_init__(self) -> None:
        _within("steps", self.steps, 0, 1000)
        _within("guidance", self.guidance, 0.0, 20.0)
        _within("seed", self.seed, 0, 2**63 - 1)
        _within("window_batch", self.window_batch, 1, 64)
        _within("still_fps", self.still_fps, 1, 120)
        _within("max_side", self.max_side, 0, 16384)
        _one_of("solver", self.solver, SOLVERS)
        _one_of("mode", self.mode, MODES)
        _within("reuse", self.reuse, 1, 20)
        _one_of("fit", self.fit, FITS)
        _one_of("watermark", self.watermark, WATERMARKS)
        _within("quality", self.quality, 1, 100)
        _within("audio_track", self.audio_track, -1, 63)
        _one_of("no_face", self.no_face, NO_FACES)
        _one_of("silence", self.silence, SILENCES)
        _one_of("codec", self.codec, CODECS)
        _one_of("encoder", self.encoder, ENCODERS)
        check_face(self.face)

    def resolved(self, defaults: "Settings") -> "Settings":
        """These settings for one checkpoint: its own steps and guidance where they are 0, as far as the mode goes."""
        most = MODE_STEPS.get(self.mode, defaults.steps)
        guidance = 1.0 if self.mode in ("turbo", "draft") else defaults.guidance
        steps = self.steps or min(most, defaults.steps)
        quick = self.mode != "exact" and self.solver == "ddim" and steps > 1
        solver = "dpm++" if quick else self.solver
        return replace(self, steps=steps, guidance=self.guidance or guidance, solver=solver)

    @property
    def guided(self) -> range:
        """The steps, from 0, in which guidance acts: in mode "fast" the middle half of them (Kynkäänniemi et al. 2024:
        early it hurts, late it does nothing). With reuse all: kept outputs serve steps of the same kind only."""
        if self.mode != "fast" or self.reuse > 1:
            return range(self.steps)
        return range(self.steps // 4, self.steps // 4 + (self.steps + 1) // 2)


def check_face(face: str) -> None:
    """UserError for what can be no face, whatever the clip; choose() finds the others once the faces are known."""
    if face not in FACE_RULES and not FACE_PLACE.fullmatch(face) and not is_photo(face):
        raise UserError(
            f'face is {face!r}; it must be "auto", "largest", "left", "right", the number of a face, a point'
            ' "x,y,frame" in pixels, or the file of a photo.'
        )


def is_photo(face: str, folder: Path = Path()) -> bool:
    """Whether a face is said by a file (where its path is relative, in the folder), not by a word, number or point."""
    with suppress(OSError, ValueError):
        return face not in ("", *FACE_RULES) and not FACE_PLACE.fullmatch(face) and (folder / face).is_file()
    return False


def scaled_place(face: str, scale: float) -> str:
    """A point on a face in pixels of a picture that was made smaller; all else as it is."""
    if scale == 1 or "," not in face or not FACE_PLACE.fullmatch(face):
        return face
    x, y, frame = face.split(",")
    return f"{float(x) * scale:.3f},{float(y) * scale:.3f},{frame.strip()}"


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{name} is {value}; it must be between {low} and {high}.")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.")


@dataclass(frozen=True)
class Progress:
    """done of total units of a stage, such as "track" (frames) or "sample" (solver steps).

    clean: while sampling, the estimate of the clean latents so far, (B, C, F, h, w).
    """

    stage: str
    done: int
    total: int
    clean: "Tensor | None" = None


ProgressCallback = Callable[[Progress], None]
"""Called after every unit of work. Whatever it raises ends the run."""
