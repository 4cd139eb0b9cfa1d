"""Inputs that several nodes share: one name, one default, one range, one explanation."""

from typing import Any

from comfy_api.latest import io

from ..latentsync.settings import FITS, PASTES, SOLVERS, Settings
from . import host

FACE_TRACK = io.Custom("FACE_TRACK")
"""Our one socket of our own: an engine FaceClip, where a face lies in every frame."""


def checkpoint() -> Any:
    return io.Combo.Input(
        "checkpoint",
        options=host.checkpoints(),
        default="nano",
        tooltip="nano (built in, small, soft), 1.5 (256 px), 1.6 (512 px), or a file of models/latentsync. What is"
        " missing is named with its size and how to get it.",
    )


def fps(tooltip: str) -> Any:
    return io.Float.Input(
        "fps", default=float(Settings.still_fps), min=1.0, max=240.0, step=0.001, tooltip=f"Frames per second {tooltip}"
    )


def fit() -> Any:
    return io.Combo.Input(
        "fit",
        options=list(FITS),
        default=Settings.fit,
        tooltip="When the sound is longer: pingpong runs the pictures to and fro, loop starts again, hold keeps the"
        " last one, trim and silence cut the sound. When it is shorter: silence keeps all pictures, quiet at the end;"
        " the others cut them. One picture lasts as long as the sound.",
    )


def face() -> Any:
    return io.String.Input(
        "face",
        default=Settings.face,
        tooltip='Whose mouth: "largest", "left", "right", a number from the preview, or "x,y,frame", a point on the'
        " face in pixels of the picture, in that frame (from 0).",
    )


def seed() -> Any:
    return io.Int.Input(
        "seed",
        default=Settings.seed,
        min=0,
        max=2**63 - 1,
        step=1,
        control_after_generate=True,
        tooltip="Another seed is another take; the same one repeats it.",
    )


def sampling() -> list[Any]:
    """How the mouths are sampled."""
    return [
        seed(),
        io.Int.Input(
            "steps",
            default=Settings.steps,
            min=1,
            max=1000,
            step=1,
            tooltip="Solver steps; time grows with them. 20 to 50 for LatentSync 1.5 and 1.6, 1 is enough for nano.",
        ),
        io.Float.Input(
            "guidance",
            default=Settings.guidance,
            min=0.0,
            max=20.0,
            step=0.1,
            tooltip="How strongly the mouth follows the speech. 1 takes half the time; far above 3 lips distort.",
        ),
        io.Combo.Input(
            "solver",
            options=list(SOLVERS),
            default=Settings.solver,
            tooltip="How the noise is taken away. ddim is the reference; the others get along with fewer steps.",
        ),
    ]


def paste() -> Any:
    return io.Combo.Input(
        "paste",
        options=list(PASTES),
        default=Settings.paste,
        tooltip="mouth: only the mouth region changes, its colour is matched to the picture. reference: the seam of the"
        " public code, which blends the whole face box.",
    )
