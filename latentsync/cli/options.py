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
    video: Path | None = choice(_IN, "--video -v", None, "The video with the face to make speak.", "FILE")
    image: Path | None = choice(_IN, "--image -i", None, "A still picture instead of a video.", "FILE")
    audio: Path | None = choice(
        _IN, "--audio -a", None, "The speech: any format, or a video with sound. Default: the video's own audio.",
        "FILE",
    )
    speaker: tuple[str, ...] = choice(
        _IN, "--speaker", (), "Instead of --audio, once per speaker: a face and its voice, such as left=anna.wav or"
        " 1=ben.wav@3.5 (begins at 3.5 s). Mouths are unchanged while their voice is silent. Can be given several"
        " times.", "FACE=VOICE",
    )
    start: float = choice(_IN, "", 0.0, "Seconds to skip at the beginning of the video; its own audio is cut with it.")
    duration: float = choice(_IN, "", 0.0, "Seconds of the video to use after that. 0: all the rest.")
    audio_track: int = choice(
        _IN, "", Settings.audio_track, "Which audio track of that file, from 0. -1: its default, or the first with"
        " sound.", "N"
    )
    json: Path | None = choice(_IN, "", None, "Also write a report of the run as JSON; - prints it.", "REPORT")
    sheet: Path | None = choice(_IN, "", None, "Also draw a contact sheet of the result (.png, .jpg).", "PICTURE")
    timeline: Path | None = choice(
        _IN, "", None, "Also draw how each frame was handled: synced, covered, passed through (.png, .jpg).", "PICTURE"
    )
    cache: Path | None = choice(
        _IN, "", None, "Keep faces and latents of this video in a folder: another speech then starts at once.", "FOLDER"
    )
    watermark: str = choice(
        _IN, "", Settings.watermark, f"Label the result as generated ({', '.join(WATERMARKS)}): in the file's metadata,"
        " or visibly in a corner too.", "NAME",
    )


@dataclass(frozen=True)
class FileOptions:
    """The settings that say how the file is written."""

    max_side: int = choice(
        _FILE, "", Settings.max_side, "Longest side of a video made from a picture, in pixels; larger pictures are"
        " scaled down. 0: no limit. A video keeps its size.",
    )
    codec: str = choice(
        _FILE, "", Settings.codec, f"{', '.join(CODECS)}. copy-like-source: the source's codec if the file type"
        " supports it and an encoder is available, else H.264 (.webm: VP9), or one that keeps depth and transparency.",
        "NAME",
    )
    quality: int = choice(
        _FILE, "", Settings.quality, "Encoding quality, 1 to 100. Higher makes a larger file."
    )
    pixel_format: str = choice(
        _FILE, "", Settings.pixel_format, "An FFmpeg name, such as yuv420p or yuv422p10le. auto: depth and chroma of"
        " the source.", "NAME",
    )
    encoder: str = choice(
        _FILE, "", Settings.encoder, f"{', '.join(ENCODERS)}. hardware: a graphics card's encoder, if available.",
        "NAME",
    )
    background: str = choice(
        _FILE, "", Settings.background, "Background for a transparent picture: a color name, or #rrggbb.", "COLOR"
    )
    strip_metadata: bool = choice(
        _FILE, "--strip-metadata", Settings.strip_metadata, "Remove the source's title, comment, dates, place,"
        " chapters, languages and subtitles, which are kept by default.",
    )


@dataclass(frozen=True)
class SamplingOptions:
    """The settings that say how the mouth is made."""

    steps: int = choice(
        _LOOK, "", Settings.steps, "Solver steps. More: sharper but slower. 10 for a preview, 20 to 50 for a final"
        " result; nano needs one.", **_OWN,
    )
    guidance: float = choice(
        _LOOK, "", Settings.guidance, "How strongly the mouth follows the audio. More: wider mouth movement,"
        " distorted above 3. 1 is twice as fast.", **_OWN,
    )
    solver: str = choice(
        _LOOK, "", Settings.solver, f"{', '.join(SOLVERS)}. ddim is the default; the others need fewer steps.",
        "NAME",
    )
    mode: str = choice(
        _LOOK, "", Settings.mode, f"{', '.join(MODES)}. exact: the checkpoint's own steps; fast: 6, a quarter of the"
        " work; turbo: 4 without guidance, a tenth; draft: the same with a softer, faster decoder.", "NAME",
    )
    reuse: int = choice(
        _LOOK, "", Settings.reuse, "Compute the deep layers only every Nth step: 3 makes 20 steps 2.5 times as fast."
        " 1: in every step.", "N",
    )
    seed: int = choice(_LOOK, "", Settings.seed, "A different number gives a different take; the same number gives"
    " the same video.")
    fit: str = choice(
        _FIT, "", Settings.fit, f"When audio and video differ in length ({', '.join(FITS)}). Audio longer: pingpong"
        " plays the video back and forth, loop restarts it, hold stays on the last frame. trim ends with the shorter"
        " of the two; silence keeps the whole video.", "NAME",
    )
    face: str = choice(
        _FIT, "", Settings.face, "auto: who speaks in the video; largest, left, right; a number from `latentsync"
        " faces`; x,y,frame: a point on the face, in pixels; or a photo of the person.", "WHICH",
    )
    silence: str = choice(
        _LOOK, "", Settings.silence, f"What the mouth does in pauses in the speech ({', '.join(SILENCES)}). keep:"
        " what the network makes of the audio there; relax: of true silence; close: the same, with the lips closed.",
        "NAME",
    )
    spans: str = choice(
        _FIT, "", Settings.spans, "Only these parts get new lips, in seconds or minutes:seconds: \"1.5-4, 1:20-\"."
        " Everything else is unchanged.", "PARTS",
    )
    points: str = choice(
        _FIT, "", Settings.points, "For a face that is not found, a drawing or an animal: x1,y1,x2,y2,x3,y3,frame:"
        " left brow, right brow and nose tip in pixels, as you see them, and the frame.", "POINTS",
    )
    no_face: str = choice(
        _FIT, "", Settings.no_face, f"What to do if no frame has the face ({', '.join(NO_FACES)}). pass: write the"
        " clip unchanged.", "NAME",
    )
    still_fps: int = choice(_FIT, "", Settings.still_fps, "Frames per second of a video made from a picture.")
    window_batch: int = choice(
        _MACHINE, "", Settings.window_batch, "Windows of 16 frames at once. More: faster on a GPU, more memory."
    )


@dataclass(frozen=True)
class ModelOptions:
    """What is loaded, and where."""

    checkpoint: str = choice(
        _LOOK, "--checkpoint -c", "nano", "nano (built in, for demonstration), 1.5 (256 px), 1.6 (512 px: sharpest,"
        " four times the work), or a file.", "NAME|PATH",
    )
    resolution: int | None = choice(
        _LOOK, "", None, "Side of the face crop in pixels, for a checkpoint that does not state it: 256 for 1.5, 512"
        " for 1.6.", show_default="the checkpoint's",
    )
    vae: str | None = choice(
        _MACHINE, "", None, "Another VAE. taesd: a tiny one for drafts with 1.5 and 1.6, softer but faster.",
        "NAME|PATH", show_default="the checkpoint's",
    )
    lora: tuple[str, ...] = choice(
        _LOOK, "--lora", (), "A LoRA for that checkpoint, for example of a person; add :0.8 to weaken it. Can be"
        " given several times.", "FILE[:STRENGTH]",
    )
    whisper: str | None = choice(_MACHINE, "", None, "Another Whisper file.", "NAME|PATH", show_default="the"
    " checkpoint's")
    device: str = DEVICE
    dtype: str = DTYPE
