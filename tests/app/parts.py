"""Small real files to send."""

from fractions import Fraction

import cv2
import numpy as np

from ..nodes.clips import frames_of
from ..tiny import pan, write_clip, write_speech

FPS = Fraction(25)


def portrait(path, *, width=256, height=224):
    """A still picture with a face."""
    cv2.imwrite(str(path), pan(1, width, height)[0][..., ::-1])
    return path


def couple(path):
    """A picture with two faces, the right one the mirror image of the left one."""
    frame = pan(1, 256, 224)[0]
    cv2.imwrite(str(path), np.concatenate((frame, frame[:, ::-1]), 1)[..., ::-1])
    return path


def alike(made, wanted):
    """Whether two videos show the same. Their bytes may differ: of a height that is no multiple of 16, x264 codes the
    rest differently each time."""
    one, other = (np.asarray(frames_of(path), int) for path in (made, wanted))
    return one.shape == other.shape and np.abs(one - other).mean() < 0.2


def clip(path, frames=20, *, sound=True, width=160, height=140, faces=True):
    """A short video, by its name's ending."""
    speech = write_speech(path.with_suffix(".speech.wav"), frames / 25) if sound else None
    pictures = pan(frames, width, height) if faces else np.zeros((frames, height, width, 3), np.uint8)
    return write_clip(path, pictures, FPS, audio=speech)
