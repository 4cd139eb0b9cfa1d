"""What decides which face is meant, beside the faces: a clip's sound, or a photo."""

from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..face.choose import Clues, looks_in
from ..face.detect import FaceFinder
from ..media.image import read_image
from ..media.reader import VideoReader
from ..media.source import Part
from ..settings import is_photo
from .load import is_silent, load_audio


def clues_for(
    face: str, source: Any, frames: int, fps: Fraction, finder: Callable[[], FaceFinder], speech: Tensor | None = None
) -> Clues:
    """What `choose` needs for this face in so many first frames of a media.source.Source; asked for before the faces
    are followed, as a wrong photo is then told at once. speech: (T,) at 16 kHz from the first frame on, in place of
    the source's own sound where that has none. Raises UserError for a photo that cannot be read, or shows no face."""
    if face == "auto":
        own = _own_sound(source, frames / fps)
        heard = own if own is not None else speech
        return Clues(float(fps), None if heard is None or is_silent(heard) else heard.numpy())
    if is_photo(face):
        return Clues(wanted=looks_in(read_image(face), finder(), face), name=face, read=source.read)
    return Clues()


def _own_sound(source: Any, seconds: Fraction) -> Tensor | None:
    """(T,) at 16 kHz from a video's first used frame on; None where there is no sound to hear."""
    reader, first = (source.whole, source.first) if isinstance(source, Part) else (source, 0)
    if not isinstance(reader, VideoReader) or not reader.info.has_audio:
        return None
    info = reader.info
    with suppress(UserError):  # sound that cannot be decoded is nobody's voice, and no fault where another one is given
        heard = load_audio(info.path, info.start + first / info.fps, seconds).waveform
        return None if is_silent(heard) else heard
    return None
