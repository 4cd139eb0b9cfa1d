"""Small real files to send."""

from fractions import Fraction

import cv2
import numpy as np

from latentsync.audio.load import load_audio

from ..nodes.clips import frames_of
from ..tiny import pan, write_clip, write_speech

FPS = Fraction(25)


def alike(made, wanted, *, most=6):
    """The same video: length, sound, and frames but for what the encoder does of itself.

    x264 gives one and the same sequence of frames slightly different files within one process (up to 3 of 255 in some
    frames, for some sizes; not with its assembler left out). Another torch may round otherwise as well.
    """
    one, other = (frames_of(path).astype(np.int16) for path in (made, wanted))
    if one.shape != other.shape or not np.array_equal(sound_of(made), sound_of(wanted)):
        return False
    difference = np.abs(one - other)
    return bool(difference.max() <= most and difference.mean() < 0.1)


def sound_of(path):
    return load_audio(path).waveform.numpy()


def portrait(path, *, width=256, height=224):
    """A still picture with a face."""
    cv2.imwrite(str(path), pan(1, width, height)[0][..., ::-1])
    return path


def couple(path):
    """A picture with two faces, the right one the mirror image of the left one."""
    frame = pan(1, 256, 224)[0]
    cv2.imwrite(str(path), np.concatenate((frame, frame[:, ::-1]), 1)[..., ::-1])
    return path


def clip(path, frames=20, *, sound=True, width=160, height=140, faces=True):
    """A short video, by its name's ending."""
    speech = write_speech(path.with_suffix(".speech.wav"), frames / 25) if sound else None
    pictures = pan(frames, width, height) if faces else np.zeros((frames, height, width, 3), np.uint8)
    return write_clip(path, pictures, FPS, audio=speech)
