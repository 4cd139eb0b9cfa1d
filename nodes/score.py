"""LatentSync: Score, which measures lip sync as numbers and a chart."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io
from torch import Tensor

from ..latentsync.audio.clues import clues_for
from ..latentsync.errors import UserError
from ..latentsync.evaluation.charts import draw_chart, draw_sync
from ..latentsync.evaluation.clips import Read, sync_track, track_clip
from ..latentsync.evaluation.landmark_sync import Score, checked_speech, score_track
from ..latentsync.evaluation.syncnet_sync import SyncScore
from ..latentsync.face.choose import choose
from ..latentsync.face.detect import FaceFinder
from ..latentsync.face.track import FaceTrack, find_tracks
from ..latentsync.models.syncnet import SyncNet
from ..latentsync.settings import Progress, ProgressCallback, check_face
from . import host, inputs
from .images import frames_of, rate_of, speech_of
from .media import check_sound

TRACKING, SYNCNET = "tracking the face", "running the SyncNet"
UNMEASURED = "LSE-C, LSE-D and SyncNet's offset need a SyncNet; choose one on LatentSync: Score."


@dataclass(frozen=True)
class _Speaker:
    """A tracked face, a function that reads its frames again, and the speech (T,) at 16 kHz from the first frame on."""

    track: FaceTrack
    read: Read
    speech: Tensor
    fps: Fraction


class LatentSyncScore(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="LatentSyncScore",
            display_name="LatentSync: Score",
            description="Measures whether the lips follow the audio: how open the mouth is against how loud the"
            " speech is, for every shift of the audio by up to 0.6 s. Connect a VIDEO, or IMAGE and AUDIO. It is"
            " reliable from about five seconds of speech. Compare its numbers only between clips of similar"
            " length. With a SyncNet"
            " it also gives LSE-C, LSE-D and the SyncNet's own offset.",
            inputs=[
                io.Video.Input(
                    "video",
                    optional=True,
                    tooltip="The clip to score, read frame by frame to save memory, with its own audio.",
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="The frames, instead of a video. Also needs audio and fps."
                ),
                io.Audio.Input(
                    "audio",
                    optional=True,
                    tooltip="The speech for images. With a video: scores it against this audio instead of its own.",
                ),
                inputs.fps("of images, from Get Video Components. Not needed for a video."),
                inputs.face(),
                io.Combo.Input(
                    "syncnet",
                    options=host.syncnets(),
                    default=host.NO_SYNCNET,
                    optional=True,
                    tooltip="A trained network that also measures sync, in addition to the landmarks, which need"
                    " none: syncnet-v2 (Chung and Zisserman's, for standard LSE-C and LSE-D), syncnet-1.6, or a"
                    " file in models/latentsync, for example your own. Numbers from different SyncNets cannot be"
                    " compared.",
                ),
            ],
            outputs=_outputs(),
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        fps: float,
        face: str,
        video: Any = None,
        images: Any = None,
        audio: Any = None,
        syncnet: str = host.NO_SYNCNET,
    ) -> io.NodeOutput:
        if (video is None) == (images is None):
            got = "Nothing" if video is None else "Both video and images"
            raise UserError(f"{got} to score: connect either a VIDEO, or images with audio and fps.")
        check_face(face)
        stages = host.Stages(cls.hidden.unique_id)
        finder = host.face_finder()
        with host.syncnet(syncnet) as net:

            def on_progress(progress: Progress) -> None:
                stages.step(TRACKING, progress.done, progress.total)

            if video is not None:
                opened = _of_video(video, audio, face, finder, on_progress)
            else:
                opened = _of_images(images, audio, fps, face, finder, on_progress)
            with opened as speaker:
                score = score_track(speaker.track, speaker.speech, speaker.fps)
                sync = _sync(net, speaker, stages)
        return _output(score, sync, syncnet)

    @classmethod
    def fingerprint_inputs(cls, syncnet: str = host.NO_SYNCNET, **_: object) -> float:
        return host.mtime(syncnet)


def _outputs() -> list[Any]:
    return [
        io.Float.Output(
            display_name="confidence",
            tooltip="By how much the best shift stands out, 0 to 2 (correlation, peak minus median). About 0.4"
            " and more for real speakers over ten seconds, 0.2 by chance. Higher is better.",
        ),
        io.Int.Output(
            display_name="offset",
            tooltip="The best shift in frames. Positive: the audio comes after the video. 0 and ±1 are in sync.",
        ),
        io.Float.Output(
            display_name="correlation",
            tooltip="Of mouth opening and loudness without any shift, -1 to 1. About 0.2 to 0.6 for real"
            " speakers in sync.",
        ),
        io.Image.Output(
            display_name="chart",
            tooltip="An image: mouth opening and loudness over time, and the correlation for every shift."
            " With a SyncNet also its distance for every shift, and its confidence over time.",
        ),
        io.Float.Output(
            display_name="lse_c",
            tooltip="The SyncNet's confidence: by how much the best shift stands out. Higher is better.",
        ),
        io.Float.Output(
            display_name="lse_d",
            tooltip="The SyncNet's distance between lips and audio at the best shift. Lower is better.",
        ),
        io.Int.Output(
            display_name="sync_offset",
            tooltip="The best shift according to the SyncNet, in frames of 1/25 s. Positive: the audio comes after"
            " the video.",
        ),
    ]


@contextmanager
def _of_video(
    video: Any, audio: Any, face: str, finder: FaceFinder, on_progress: ProgressCallback
) -> Iterator[_Speaker]:
    with host.video_file(video) as path, host.sound_file(audio) as sound:
        check_sound(path, sound)
        clip = track_clip(path, finder, face=face, on_progress=on_progress)
        yield _Speaker(clip.track, clip.read, clip.speech(sound), clip.fps)


@contextmanager
def _of_images(
    images: Tensor, audio: Any, fps: float, face: str, finder: FaceFinder, on_progress: ProgressCallback
) -> Iterator[_Speaker]:
    rate, frames, speech = rate_of(fps), frames_of(images), checked_speech(*speech_of(audio))
    clues = clues_for(face, frames, len(frames), rate, lambda: finder, speech)
    tracks = find_tracks(frames, finder, on_step=lambda done: on_progress(Progress("track", done, len(frames))))
    yield _Speaker(choose(tracks, face, clues), frames.read, speech, rate)


def _sync(net: SyncNet | None, speaker: _Speaker, stages: host.Stages) -> SyncScore | None:
    if net is None:
        return None

    def on_progress(progress: Progress) -> None:
        stages.step(SYNCNET, progress.done, progress.total)

    return sync_track(net, speaker.track, speaker.read, speaker.speech, speaker.fps, on_progress=on_progress)


def _output(score: Score, sync: SyncScore | None, name: str) -> io.NodeOutput:
    charts, shown = [draw_chart(score)], score.as_dict()
    numbers: tuple[Any, ...] = (host.blocked_output(UNMEASURED),) * 3
    if sync is not None:
        charts.append(draw_sync(sync, name))
        shown["syncnet"] = {"name": name, **sync.as_dict()}
        numbers = sync.confidence, sync.distance, sync.offset
    chart = torch.from_numpy(np.concatenate(charts))[None].float() / 255
    ui = {"latentsync_score": [shown]}
    return io.NodeOutput(score.confidence, score.offset, score.correlation, chart, *numbers, ui=ui)
