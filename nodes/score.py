"""How good is it: whether the lips follow the sound, in numbers and as a picture."""

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..latentsync.errors import UserError
from ..latentsync.evaluation.chart import draw_chart
from ..latentsync.evaluation.sync import Score, score, score_file
from . import host, inputs
from .images import frames_of, rate_of, speech_of

MEASURING = "measuring the mouth"


class LatentSyncScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentSyncScore",
            display_name="LatentSync: Score",
            category="LatentSync",
            description="Measures whether the lips follow the sound: how open the mouth is against how loud the speech"
            " is, for every shift of the sound by up to 0.6 s. Connect a VIDEO, or IMAGE and AUDIO. Trust it from about"
            " five seconds of speech on. Compare its numbers with each other, on clips of like length; they are not"
            " SyncNet's.",
            inputs=[
                io.Video.Input(
                    "video",
                    optional=True,
                    tooltip="The clip to score, read frame by frame to save memory, with its own sound.",
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="In place of a video: its frames. They need audio and fps as well."
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="The speech for images. With a video: scores it against this sound in place of its own.",
                ),
                inputs.fps("of images, from Get Video Components. A video knows its own."),
                inputs.face(),
            ],
            outputs=[
                io.Float.Output(
                    display_name="confidence",
                    tooltip="By how much the best shift stands out, 0 to 2 (correlation, peak minus median). About 0.4"
                    " and more for real speakers over ten seconds, 0.2 by accident. Higher is better.",
                ),
                io.Int.Output(
                    display_name="offset",
                    tooltip="The best shift in frames. Positive: the sound comes after the picture. 0 and ±1 are in"
                    " step.",
                ),
                io.Float.Output(
                    display_name="correlation",
                    tooltip="Of mouth opening and loudness without any shift, -1 to 1. About 0.2 to 0.6 for real"
                    " speakers in step.",
                ),
                io.Image.Output(
                    display_name="chart",
                    tooltip="One picture: mouth opening and loudness over time, and the correlation for every shift.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, fps: float, face: str, video: Any = None, images: Any = None, audio: Any = None) -> io.NodeOutput:
        if (video is None) == (images is None):
            got = "Nothing" if video is None else "Both video and images"
            raise UserError(f"{got} to score: connect either a VIDEO, or images with audio and fps.")
        stages = host.Stages(cls.hidden.unique_id)
        if video is not None:
            found = _of_video(video, audio, face, stages)
        else:
            found = _of_images(images, audio, fps, face, stages)
        chart = torch.from_numpy(draw_chart(found))[None].float() / 255
        facts = {"latentsync_score": [found.as_dict()]}
        return io.NodeOutput(found.confidence, found.offset, found.correlation, chart, ui=facts)


def _of_video(video: Any, audio: Any, face: str, stages: host.Stages) -> Score:
    with host.video_file(video) as path, host.sound_file(audio) as sound, host.face_finder() as finder:
        return score_file(path, sound, finder, face=face, on_step=lambda *count: stages.step(MEASURING, *count))


def _of_images(images: Tensor, audio: Any, fps: float, face: str, stages: host.Stages) -> Score:
    frames, (speech, sample_rate), rate = frames_of(images), speech_of(audio), rate_of(fps)
    with host.face_finder() as finder:
        return score(
            frames,
            speech,
            sample_rate,
            rate,
            finder,
            face=face,
            on_step=lambda *count: stages.step(MEASURING, *count),
        )
