"""Pictures and sound in memory, as files that the engine reads. No ComfyUI in here."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image
from torch import Tensor

from ..latentsync.errors import UserError
from ..latentsync.media.audio_track import AudioTrack, has_audio
from ..latentsync.media.image import is_image, read_image
from ..latentsync.media.opening import file_url
from ..latentsync.media.probe import probe
from ..latentsync.media.writer import VideoWriter
from .images import frames_of

NEARLY_LOSSLESS = 4
"""x264's crf for a file that is only read again."""


def write_sound(path: Path, waveform: Tensor, rate: int) -> None:
    """(channels, samples) as a WAV of 32-bit floats: nothing of the user's sound is lost."""
    with av.open(file_url(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_f32le", rate=rate, layout=f"{len(waveform)}c")
        samples = np.ascontiguousarray(waveform.float().T.numpy()).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout=stream.codec_context.layout.name)
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_video(path: Path, images: Tensor, rate: Fraction, sound: Path | None) -> None:
    """(F, H, W, 3) float 0..1 at this frame rate."""
    frames = frames_of(images)
    height, width = images.shape[1:3]
    track = None if sound is None else AudioTrack(sound)
    with VideoWriter(path, width, height, rate, audio=track, crf=NEARLY_LOSSLESS) as writer:
        for frame in frames:
            writer.write(frame)


def write_picture(path: Path, images: Tensor) -> None:
    """The one picture of a batch, as a PNG."""
    Image.fromarray(frames_of(images)[0]).save(path)


def check_sound(video: Path, sound: Path | None) -> None:
    """UserError when there is neither a recording nor sound in the video."""
    if sound is None and (is_image(video) or not has_audio(video)):
        which = "A picture has no sound" if is_image(video) else "The video has no sound of its own"
        raise UserError(f"{which}; connect a recording of speech to the input audio.")


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of a video or a picture."""
    if is_image(path):
        height, width = read_image(path).shape[:2]
        return width, height
    info = probe(path)
    return info.width, info.height
