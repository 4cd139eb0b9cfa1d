"""Inputs that several nodes share: one name, one default, one range, one explanation."""

from typing import Any

from comfy_api.latest import io

from ..latentsync.settings import CODECS, ENCODERS, FITS, MODES, NO_FACES, SILENCES, SOLVERS, WATERMARKS, Settings
from ..latentsync.weights.lora import STRONGEST
from . import host

FACE_TRACK = io.Custom("FACE_TRACK")
"""Our one socket of our own: an engine AlignedFace, where a face lies in every frame."""
FACE_LANDMARKS, BOUNDING_BOX, BBOX, SEGS = map(io.Custom, ("FACE_LANDMARKS", "BOUNDING_BOX", "BBOX", "SEGS"))
"""Sockets of newer ComfyUI and of other packs; see regions.py."""


BROWSERS: dict[str, Any] = {"codec": "h264"}
"""Settings for a file that every browser shows, unlike H.265."""
OWN = "0 = checkpoint's"
"""Said beside settings that a checkpoint brings along."""


def checkpoint() -> Any:
    return io.Combo.Input(
        "checkpoint",
        options=host.checkpoints(),
        default="nano",
        tooltip="nano (built in, small, soft), 1.5 (256 px), 1.6 (512 px), or a file in models/latentsync. A missing"
        " file is listed with its size and how to get it.",
    )


def lora() -> list[Any]:
    """Which LoRA is added to the checkpoint, and how strongly. Optional: older workflows have none."""
    return [
        io.Combo.Input(
            "lora",
            optional=True,
            options=host.loras(),
            default=host.NO_LORA,
            tooltip="A model of one person, or another LoRA of this checkpoint, from models/loras, output/loras or"
            " models/latentsync. It is added to the U-Net and, where it has a part for it, to the VAE.",
        ),
        host.advanced(
            io.Float.Input(
                "lora_strength",
                optional=True,
                default=1.0,
                min=-STRONGEST,
                max=STRONGEST,
                step=0.05,
                tooltip="How strongly the LoRA acts: 1 as it was trained, 0 not at all.",
            )
        ),
    ]


def files_changed(checkpoint: str = "", lora: str | None = None, **_: object) -> list[float]:
    """For fingerprint_inputs: when the files that these inputs name were last changed."""
    return [host.mtime(checkpoint), host.lora_time(lora)]


def fps(tooltip: str) -> Any:
    return io.Float.Input(
        "fps", default=float(Settings.still_fps), min=1.0, max=240.0, step=0.001, tooltip=f"Frames per second {tooltip}"
    )


def fit() -> Any:
    return io.Combo.Input(
        "fit",
        options=list(FITS),
        default=Settings.fit,
        tooltip="If the audio is longer: pingpong plays the video back and forth, loop restarts it, hold stays on the"
        " last frame, trim and silence cut the audio. If it is shorter: silence keeps the whole video, quiet at"
        " the end; the others cut it. A single picture lasts as long as the audio.",
    )


def face() -> Any:
    return io.String.Input(
        "face",
        default=Settings.face,
        tooltip='Which face: "auto" (the one that speaks in a VIDEO with sound, else the one that moves its mouth'
        ' most), "largest", "left", "right", a number from the preview, or "x,y,frame", a point on the face in pixels,'
        " in that frame (from 0).",
    )


def silence(more: str = "", **facts: Any) -> Any:
    return host.advanced(
        io.Combo.Input(
            "silence",
            optional=True,
            options=list(SILENCES),
            default=Settings.silence,
            **facts,
            tooltip="The mouth in pauses in the speech. keep: what the network makes of the audio there. relax: of"
            " true silence, so that breath, hum and music do not move the lips. close: the same, with the lips"
            f" closed.{more}",
        )
    )


def spans() -> Any:
    return host.advanced(
        io.String.Input(
            "spans",
            optional=True,
            default=Settings.spans,
            tooltip='Only these parts get new lips, in seconds or minutes and seconds: "1.5-4, 1:20-". The rest is'
            " unchanged. Empty: everything.",
        )
    )


def points() -> Any:
    return host.advanced(
        io.String.Input(
            "points",
            optional=True,
            default=Settings.points,
            tooltip='For a face that is not found, a drawing or an animal: "x1,y1,x2,y2,x3,y3,frame", which is left'
            " brow, right brow and nose tip as you see them, in pixels, and the frame (from 0). Used instead of face.",
        )
    )


def no_face() -> Any:
    return host.advanced(
        io.Combo.Input(
            "no_face",
            optional=True,
            options=list(NO_FACES),
            default=Settings.no_face,
            tooltip="What to do if no frame has the face. error: stop with a message. pass: output the clip unchanged.",
        )
    )


def mode(*, draft: bool) -> Any:
    """draft: whether the node decodes, which this mode changes."""
    also = " draft: the same, decoded faster but softer." if draft else ""
    return host.advanced(
        io.Combo.Input(
            "mode",
            optional=True,
            options=[one for one in MODES if draft or one != "draft"],
            default=Settings.mode,
            tooltip="exact: the steps and guidance above. fast: 6 steps, guidance in the middle ones: a quarter of"
            f" the work. turbo: 4 without guidance: a tenth.{also} Only used if steps and guidance are 0.",
        )
    )


def encoder() -> Any:
    return host.advanced(
        io.Combo.Input(
            "encoder",
            optional=True,
            options=list(ENCODERS),
            default=Settings.encoder,
            tooltip="software: the same file everywhere, and smaller. hardware: a graphics card's encoder, if"
            " available for this codec: faster but larger.",
        )
    )


def part(start: str, duration: str, of: str, more: str) -> list[Any]:
    """Where a part begins and how long it is, in seconds."""
    range_: Any = {"optional": True, "default": 0.0, "min": 0.0, "max": 86400.0, "step": 0.01}
    return [
        host.advanced(io.Float.Input(start, **range_, tooltip=f"Seconds to skip at the beginning of the {of}. {more}")),
        host.advanced(
            io.Float.Input(duration, **range_, tooltip=f"Seconds of the {of} to use after that. 0: all the rest.")
        ),
    ]


def seed() -> Any:
    return io.Int.Input(
        "seed",
        default=Settings.seed,
        min=0,
        max=2**63 - 1,
        step=1,
        control_after_generate=True,
        tooltip="A different seed gives a different take; the same seed gives the same result.",
    )


def sampling() -> list[Any]:
    """How the mouths are sampled."""
    return [
        seed(),
        io.Int.Input(
            "steps",
            display_name=f"steps ({OWN})",
            default=Settings.steps,
            min=0,
            max=1000,
            step=1,
            tooltip="Solver steps; time grows with them. 0: the checkpoint's own, which is 20 for LatentSync 1.5 and"
            " 1.6 and 1 for nano. Little changes beyond 50.",
        ),
        io.Float.Input(
            "guidance",
            display_name=f"guidance ({OWN})",
            default=Settings.guidance,
            min=0.0,
            max=20.0,
            step=0.1,
            tooltip="How strongly the mouth follows the speech. 0: the checkpoint's own, which is 1.5 for LatentSync"
            " 1.5 and 1.6 and 1 for nano. 1 takes half the time; far above 3 the lips distort.",
        ),
        host.advanced(
            io.Combo.Input(
                "solver",
                options=list(SOLVERS),
                default=Settings.solver,
                tooltip="How noise is removed. ddim is the reference; the others need fewer steps.",
            )
        ),
    ]


def resolution(optional: bool = True) -> Any:
    """optional: for nodes that workflows without this input were saved with."""
    return host.advanced(
        io.Int.Input(
            "resolution",
            optional=optional,
            default=0,
            min=0,
            max=1024,
            step=8,
            tooltip="Side of the face crop in pixels. 0: as stated in the checkpoint. Only for a file that does not"
            " state it: 256 for LatentSync 1.5, 512 for 1.6.",
        )
    )


def keep_out(**facts: Any) -> Any:
    return io.Mask.Input(
        "keep_out",
        optional=True,
        **facts,
        tooltip="What must not be repainted (a hand, a microphone): 1 = unchanged. One for all frames or one for each.",
    )


def watermark() -> Any:
    return host.advanced(
        io.Combo.Input(
            "watermark",
            optional=True,
            options=list(WATERMARKS),
            default=Settings.watermark,
            tooltip="Label the result as generated. metadata: a comment in the file. visible: also in a corner of the"
            " video.",
        )
    )


def encoding() -> list[Any]:
    """How a video file is written."""
    return [
        host.advanced(
            io.Combo.Input(
                "codec",
                optional=True,
                options=list(CODECS),
                default=BROWSERS["codec"],
                tooltip="h264 plays everywhere, including browsers. vp9 makes a .webm and prores a .mov, both with"
                " the source's transparency; all others make an .mp4. copy-like-source: the source's codec and"
                " file type.",
            )
        ),
        host.advanced(
            io.Int.Input(
                "quality",
                optional=True,
                default=Settings.quality,
                min=1,
                max=100,
                step=1,
                tooltip="Encoding quality. Higher makes a larger file.",
            )
        ),
        host.advanced(
            io.Boolean.Input(
                "strip_metadata",
                optional=True,
                default=Settings.strip_metadata,
                tooltip="Remove the source's title, comment, dates, place, chapters, languages and subtitles.",
            )
        ),
    ]
