"""Options that several commands share. The defaults of settings are in settings.py."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from ..settings import CODECS, ENCODERS, FITS, MODES, NO_FACES, SILENCES, SOLVERS, WATERMARKS, Settings
from .parameters import choice

_IN = "What goes in and out"
_LOOK = "How the mouth is made"
_FIT = "Which face, how long"
_FILE = "What the file is like"
_MACHINE = "Machine and models"
_OWN: dict[str, Any] = {"show_default": "0: the checkpoint's"}

# fmt: off
DEVICE = choice(_MACHINE, "", "auto", "auto, cpu, cuda or mps. auto takes a GPU where there is one.", "NAME")
DTYPE = choice(
    _MACHINE, "", "auto", "auto, fp32, fp16 or bf16. auto: fp16 on a GPU, bf16 on a CPU made for it, else fp32.", "NAME"
)


@dataclass(frozen=True)
class InputOptions:
    """What goes in and out of a run."""

    out: Path = choice(
        _IN, "--out -o", MISSING, "The video to write: .mp4, .mov, .mkv or .webm; or pictures: shot/%05d.png.", "FILE"
    )
    video: Path | None = choice(_IN, "--video -v", None, "The video whose face shall speak.", "FILE")
    image: Path | None = choice(_IN, "--image -i", None, "A still picture instead of a video.", "FILE")
    audio: Path | None = choice(
        _IN, "--audio -a", None, "The speech: any format, or a video with sound. Without it, the video's own.", "FILE"
    )
    speaker: tuple[str, ...] = choice(
        _IN, "--speaker", (), "Instead of --audio, for each who speaks: a face and its voice, such as left=anna.wav or"
        " 1=ben.wav@3.5 (begins at 3.5 s). Who is silent keeps their mouth. May be given several times.", "FACE=VOICE",
    )
    start: float = choice(_IN, "", 0.0, "Seconds of the video to skip at its beginning; its own sound goes with it.")
    duration: float = choice(_IN, "", 0.0, "Seconds of the video to use from there on. 0: all the rest.")
    audio_track: int = choice(
        _IN, "", Settings.audio_track, "Which sound track of that file, from 0. -1: its default one, if heard.", "N"
    )
    json: Path | None = choice(_IN, "", None, "Also write what was done as JSON; - is the screen.", "REPORT")
    sheet: Path | None = choice(_IN, "", None, "Also draw a contact sheet of the result (.png, .jpg).", "PICTURE")
    timeline: Path | None = choice(
        _IN, "", None, "Also draw what became of each second: synced, covered, passed through (.png, .jpg).", "PICTURE"
    )
    cache: Path | None = choice(
        _IN, "", None, "Keep faces and latents of this video in a folder: its next speech starts at once.", "FOLDER"
    )
    watermark: str = choice(
        _IN, "", Settings.watermark, f"Label the result as generated ({', '.join(WATERMARKS)}): in the file's metadata,"
        " or visibly in a corner too.", "NAME",
    )


@dataclass(frozen=True)
class FileOptions:
    """The settings that say how the file is written."""

    max_side: int = choice(
        _FILE, "", Settings.max_side, "Longest side of a video made from a picture, in pixels; larger pictures are made"
        " smaller. 0: as it is. A video keeps its size.",
    )
    codec: str = choice(
        _FILE, "", Settings.codec, f"{', '.join(CODECS)}. copy-like-source: the source's own where the file can hold it"
        " and an encoder is here, else H.264 (.webm: VP9), or what keeps depth and transparency.", "NAME",
    )
    quality: int = choice(
        _FILE, "", Settings.quality, "Quality of the encoding, 1 to 100. More makes a larger file."
    )
    pixel_format: str = choice(
        _FILE, "", Settings.pixel_format, "FFmpeg's name, such as yuv420p or yuv422p10le. auto: depth and chroma of the"
        " source.", "NAME",
    )
    encoder: str = choice(
        _FILE, "", Settings.encoder, f"{', '.join(ENCODERS)}. hardware: a graphics card's encoder, where one opens.",
        "NAME",
    )
    background: str = choice(
        _FILE, "", Settings.background, "What a transparent picture is laid on: a color's name, or #rrggbb.", "COLOR"
    )
    strip_metadata: bool = choice(
        _FILE, "--strip-metadata", Settings.strip_metadata, "Leave out the source's title, comment, dates, place,"
        " chapters, languages and subtitles, which otherwise stay.",
    )


@dataclass(frozen=True)
class SamplingOptions:
    """The settings that say how the mouth is made."""

    steps: int = choice(
        _LOOK, "", Settings.steps, "Solver steps. More is finer and slower in proportion: 10 for a look, 20 to 50 to"
        " keep; nano needs one.", **_OWN,
    )
    guidance: float = choice(
        _LOOK, "", Settings.guidance, "How strongly the mouth follows the sound. More moves it wider and, past 3,"
        " distorts; 1 is twice as fast.", **_OWN,
    )
    solver: str = choice(
        _LOOK, "", Settings.solver, f"{', '.join(SOLVERS)}. ddim is the usual one; the others manage with fewer steps.",
        "NAME",
    )
    mode: str = choice(
        _LOOK, "", Settings.mode, f"{', '.join(MODES)}. exact: the checkpoint's own steps; fast: 6, a quarter of the"
        " work; turbo: 4 without guidance, a tenth; draft: the same with a softer, quicker decoder.", "NAME",
    )
    reuse: int = choice(
        _LOOK, "", Settings.reuse, "Compute the deep layers only in every so many-th step: 3 makes 20 steps 2.5 times"
        " as fast. 1: in every step.", "N",
    )
    seed: int = choice(_LOOK, "", Settings.seed, "Another number gives another take; the same number the same video.")
    fit: str = choice(
        _FIT, "", Settings.fit, f"When sound and picture differ in length ({', '.join(FITS)}). Sound longer: pingpong"
        " plays the picture to and fro, loop from the start again, hold stays on the last frame. trim ends with the"
        " shorter of the two; silence keeps all of the picture.", "NAME",
    )
    face: str = choice(
        _FIT, "", Settings.face, "auto: who speaks in the video; largest, left, right; a number of `latentsync faces`;"
        " x,y,frame: a point on the face, in pixels; or a photo of the person.", "WHICH",
    )
    silence: str = choice(
        _LOOK, "", Settings.silence, f"What the mouth does in pauses of the speech ({', '.join(SILENCES)}). keep: what"
        " the network makes of the sound there; relax: of true silence; close: the same, and the lips are closed.",
        "NAME",
    )
    spans: str = choice(
        _FIT, "", Settings.spans, "Only these parts get new lips, in seconds or minutes:seconds: \"1.5-4, 1:20-\". All"
        " else stays as it is.", "PARTS",
    )
    points: str = choice(
        _FIT, "", Settings.points, "For a face that is not found, a drawing or an animal: x1,y1,x2,y2,x3,y3,frame: left"
        " brow, right brow and nose tip in pixels, as seen, and the frame.", "POINTS",
    )
    no_face: str = choice(
        _FIT, "", Settings.no_face, f"What to do where the face is nowhere in the clip ({', '.join(NO_FACES)}). pass:"
        " write it as it is.", "NAME",
    )
    still_fps: int = choice(_FIT, "", Settings.still_fps, "Frames per second that a still picture gets.")
    window_batch: int = choice(
        _MACHINE, "", Settings.window_batch, "Windows of 16 frames at once. More is faster on a GPU and takes memory."
    )


@dataclass(frozen=True)
class ModelOptions:
    """What is loaded, and where."""

    checkpoint: str = choice(
        _LOOK, "--checkpoint -c", "nano", "nano (built in, a demonstrator), 1.5 (256 px), 1.6 (512 px: sharpest, four"
        " times the work), or a file.", "NAME|PATH",
    )
    resolution: int | None = choice(
        _LOOK, "", None, "Side of the face crop in pixels, for a checkpoint that does not say: 256 for 1.5, 512 for"
        " 1.6.", show_default="the checkpoint's",
    )
    vae: str | None = choice(
        _MACHINE, "", None, "Another VAE. taesd: a tiny one for drafts with 1.5 and 1.6, softer and quicker.",
        "NAME|PATH", show_default="the checkpoint's",
    )
    lora: tuple[str, ...] = choice(
        _LOOK, "--lora", (), "A LoRA of that checkpoint, such as one of a person; with :0.8 it acts less. May be given"
        " several times.", "FILE[:STRENGTH]",
    )
    whisper: str | None = choice(_MACHINE, "", None, "Another Whisper.", "NAME|PATH", show_default="the checkpoint's")
    device: str = DEVICE
    dtype: str = DTYPE
