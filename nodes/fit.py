"""One length for picture and sound."""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch.nn.functional as F
from comfy_api.latest import io
from torch import Tensor

from ..latentsync.audio.load import from_waveform
from ..latentsync.audio.pauses import rest_weights
from ..latentsync.errors import UserError
from ..latentsync.face.aligned import AlignedFace
from ..latentsync.settings import Settings
from ..latentsync.timeline import Timeline, fit_timeline
from . import host, inputs
from .images import check_crops, check_frames, frames_of, in_order, rate_of, sound_for, speech_of

FOLLOWS_SOUND = ("loop", "pingpong", "hold")
"""Ways to fit that leave the sound alone."""


class LatentSyncFitLength(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="LatentSyncFitLength",
            display_name="LatentSync: Fit Length",
            description="Makes video and audio the same length, and crops and face track with them, so that faces"
            " found once in the source can be used with any audio. A single picture becomes a video as long as"
            " the audio.",
            inputs=[
                io.Image.Input("images", tooltip="The source's frames, or one picture."),
                io.Audio.Input("audio", tooltip="The speech: one recording, any sample rate and number of channels."),
                inputs.fps("of the images: the fps output of Get Video Components. 29.97 is taken as 30000/1001."),
                inputs.fit(),
                io.Image.Input("crops", optional=True, tooltip="From LatentSync: Find Faces, with face_track."),
                inputs.FACE_TRACK.Input(
                    "face_track", optional=True, tooltip="From LatentSync: Find Faces, with crops."
                ),
                inputs.silence(
                    " Here only close has an effect: the face_track tells Composite when. Also choose it on Encode"
                    " Audio."
                ),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The images in their new order and number."),
                io.Audio.Output(
                    display_name="audio", tooltip="The audio at its own sample rate, unchanged if its length fits."
                ),
                io.Image.Output(
                    display_name="crops", tooltip="The crops in the same order; nothing if none were given."
                ),
                inputs.FACE_TRACK.Output(
                    display_name="face_track", tooltip="The track in the same order; nothing if none was given."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        audio: Mapping[str, Any],
        fps: float,
        fit: str,
        crops: Tensor | None = None,
        face_track: AlignedFace | None = None,
        silence: str = Settings.silence,
    ) -> io.NodeOutput:
        _check_faces(images, crops, face_track)
        waveform, sample_rate = speech_of(audio)
        seconds, still = Fraction(waveform.shape[-1], sample_rate), len(images) == 1
        timeline = fit_timeline(rate_of(fps), len(images), seconds, fit, still=still)
        sound = audio if still or fit in FOLLOWS_SOUND else sound_for(audio, timeline)
        return io.NodeOutput(
            in_order(images, timeline),
            sound,
            None if crops is None else in_order(crops, timeline),
            None if face_track is None else _retimed(face_track, timeline, silence, waveform, sample_rate),
        )


def _retimed(clip: AlignedFace, timeline: Timeline, silence: str, waveform: Tensor, rate: int) -> AlignedFace:
    """The face in its new order; for "close" with how much its mouth rests in each frame."""
    fitted = clip.retimed(timeline)
    if silence != "close":
        return fitted
    speech = from_waveform(waveform, rate)
    lacking = int(timeline.duration * speech.sample_rate) - len(speech.waveform)
    return replace(fitted, rest=rest_weights(F.pad(speech.waveform, (0, max(0, lacking))), timeline))


def _check_faces(images: Tensor, crops: Tensor | None, face_track: AlignedFace | None) -> None:
    frames = frames_of(images)
    if (crops is None) != (face_track is None):
        given, missing = ("crops", "face_track") if face_track is None else ("face_track", "crops")
        raise UserError(
            f"{given} is connected and {missing} is not; connect both from LatentSync: Find Faces, or none."
        )
    if crops is not None and face_track is not None:
        check_frames(frames, face_track)
        check_crops(frames_of(crops, "crops"), face_track)
