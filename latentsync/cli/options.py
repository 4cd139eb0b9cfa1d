"""Options that several commands share. The defaults of settings are in settings.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ..settings import FITS, SOLVERS, WATERMARKS, Settings
from .parameters import option

_IN = "What goes in and out"
_LOOK = "How the mouth is made"
_FIT = "Which face, how long"
_MACHINE = "Machine and models"
_THEIRS = "the checkpoint's"


Video = Annotated[Path | None, option(_IN, "--video -v", "The video whose face shall speak.", "FILE")]
Image = Annotated[Path | None, option(_IN, "--image -i", "A still picture instead of a video.", "FILE")]
Audio = Annotated[
    Path | None,
    option(_IN, "--audio -a", "The speech: any format, or a video with sound. Without it, the video's own.", "FILE"),
]
Out = Annotated[Path, option(_IN, "--out -o", "The video to write: .mp4, .mov, .mkv or .webm.", "FILE")]
Json = Annotated[Path | None, option(_IN, "--json", "Also write what was done as JSON; - is the screen.", "REPORT")]
Sheet = Annotated[
    Path | None, option(_IN, "--sheet", "Also draw a contact sheet of the result (.png, .jpg).", "PICTURE")
]
Watermark = Annotated[
    str,
    option(
        _IN,
        "--watermark",
        f"Label the result as generated ({', '.join(WATERMARKS)}): in the file's metadata, or visibly in a corner too.",
        "NAME",
    ),
]

Checkpoint = Annotated[
    str,
    option(
        _LOOK,
        "--checkpoint -c",
        "nano (built in, a demonstrator), 1.5 (256 px), 1.6 (512 px: sharpest, four times the work), or a file.",
        "NAME|PATH",
    ),
]
Steps = Annotated[
    int,
    option(
        _LOOK,
        "--steps",
        "Solver steps. More is finer and slower in proportion: 10 for a look, 20 to 50 to keep; nano needs one.",
        show_default=f"0: {_THEIRS}",
    ),
]
Guidance = Annotated[
    float,
    option(
        _LOOK,
        "--guidance",
        "How strongly the mouth follows the sound. More moves it wider and, past 3, distorts; 1 is twice as fast.",
        show_default=f"0: {_THEIRS}",
    ),
]
Solver = Annotated[
    str,
    option(
        _LOOK, "--solver", f"{', '.join(SOLVERS)}. ddim is the usual one; the others manage with fewer steps.", "NAME"
    ),
]
Seed = Annotated[int, option(_LOOK, "--seed", "Another number gives another take; the same number the same video.")]
Resolution = Annotated[
    int | None,
    option(
        _LOOK,
        "--resolution",
        "Side of the face crop in pixels, for a checkpoint that does not say: 256 for 1.5, 512 for 1.6.",
        show_default=_THEIRS,
    ),
]
Fit = Annotated[
    str,
    option(
        _FIT,
        "--fit",
        f"When sound and picture differ in length ({', '.join(FITS)}). Sound longer: pingpong plays the picture to and"
        " fro, loop from the start again, hold stays on the last frame. trim ends with the shorter of the two; silence"
        " keeps all of the picture.",
        "NAME",
    ),
]
Face = Annotated[
    str,
    option(
        _FIT,
        "--face",
        "largest, left, right, a number (0 appears first), or x,y,frame: a point on the face, in pixels.",
        "WHICH",
    ),
]
StillFps = Annotated[int, option(_FIT, "--still-fps", "Frames per second that a still picture gets.")]

WindowBatch = Annotated[
    int, option(_MACHINE, "--window-batch", "Windows of 16 frames at once. More is faster on a GPU and takes memory.")
]
Vae = Annotated[str | None, option(_MACHINE, "--vae", "Another VAE.", "NAME|PATH", show_default=_THEIRS)]
Whisper = Annotated[str | None, option(_MACHINE, "--whisper", "Another Whisper.", "NAME|PATH", show_default=_THEIRS)]
Device = Annotated[
    str, option(_MACHINE, "--device", "auto, cpu, cuda or mps. auto takes a GPU where there is one.", "NAME")
]
Dtype = Annotated[
    str,
    option(
        _MACHINE, "--dtype", "auto, fp32, fp16 or bf16. auto: fp16 on a GPU, bf16 on a CPU with AMX, else fp32.", "NAME"
    ),
]


@dataclass(frozen=True)
class InputOptions:
    """What goes in and out of a run."""

    out: Out
    video: Video = None
    image: Image = None
    audio: Audio = None
    json: Json = None
    sheet: Sheet = None
    watermark: Watermark = Settings.watermark


@dataclass(frozen=True)
class SamplingOptions:
    """Settings, but for the watermark."""

    steps: Steps = Settings.steps
    guidance: Guidance = Settings.guidance
    solver: Solver = Settings.solver
    seed: Seed = Settings.seed
    fit: Fit = Settings.fit
    face: Face = Settings.face
    still_fps: StillFps = Settings.still_fps
    window_batch: WindowBatch = Settings.window_batch


@dataclass(frozen=True)
class ModelOptions:
    """What is loaded, and where."""

    checkpoint: Checkpoint = "nano"
    resolution: Resolution = None
    vae: Vae = None
    whisper: Whisper = None
    device: Device = "auto"
    dtype: Dtype = "auto"
