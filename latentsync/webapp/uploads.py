"""Uploads: identified by their content, checked against the limits, and stored under random names.

Names from a browser never reach the disk. FFmpeg also reads playlists that name other files and addresses (HLS, concat,
SDP): only containers with their own sound and pictures are accepted.
"""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import UserError
from ..files import safe_name
from .config import Limits
from .queue import ReportFn
from .words import duration, length

CONTAINERS = {
    "mov": ".mp4", "matroska": ".mkv", "avi": ".avi", "mpeg": ".mpg", "mpegts": ".ts", "flv": ".flv", "asf": ".wmv",
    "ogg": ".ogg", "wav": ".wav", "mp3": ".mp3", "flac": ".flac", "aac": ".aac", "aiff": ".aiff", "gif": ".gif",
    "amr": ".amr", "caf": ".caf", "w64": ".w64",
}  # fmt: skip
"""FFmpeg's name of a container -> the suffix of the stored file."""
PICTURES = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp", "TIFF": ".tiff", "BMP": ".bmp"}
"""The same for Pillow's image formats."""
FACE_ENDINGS: Sequence[str] = "mp4 mov m4v webm mkv avi mpg mpeg ts wmv png jpg jpeg webp tif tiff bmp".split()  # noqa: SIM905 — read like this
VOICE_ENDINGS: Sequence[str] = "wav mp3 m4a aac flac ogg oga opus aiff wma amr mp4 mov webm mkv avi mpg".split()  # noqa: SIM905
"""What a file dialog offers; whether a file is accepted depends on its content."""

CHUNK = 1 << 20
NEW_CODECS = ("vp9", "libvpx-vp9", "av1", "libdav1d")
"""FFmpeg's decoders of what browsers play from an .mp4 as well as from a .webm."""
WEB_SOUNDS = ("opus", "libopus", "vorbis")
MP4_SOUNDS = ("aac", "mp3", "mp3float", "opus", "libopus", "flac")
"""The same of sound. Safari alone plays ALAC, AC-3 and PCM."""
PREVIEW_SIDE = 720  # longest side of the copy for browsers that cannot play the original


@dataclass(frozen=True)
class Media:
    """An accepted file. kind: "video", "picture", "sound" or "lora"; name: its owner's, for display only. seconds,
    frames: 0 and 1 for a picture. playable: by browsers, as it is. tracks: number and name of each sound track.
    """

    path: Path
    name: str
    kind: str
    seconds: Fraction = Fraction(0)
    frames: int = 1
    fps: Fraction = Fraction(25)
    width: int = 0
    height: int = 0
    has_sound: bool = False
    playable: bool = True
    tracks: tuple[tuple[int, str], ...] = ()

    @property
    def summary(self) -> str:
        size = f"{self.width} × {self.height}"
        if self.kind == "picture":
            return f"picture, {size}"
        if self.kind == "sound":
            return length(self.seconds)
        return f"{length(self.seconds)}, {size}, {float(self.fps):.4g} frames per second"


def take_face(stream: BinaryIO, name: str, folder: Path, limits: Limits) -> Media:
    """Store a video or a picture. After a UserError nothing is stored."""
    with _stored(stream, name, folder, limits) as path:
        if picture := _picture_ending(path, limits):
            from ..media.image import read_image

            path = path.rename(path.with_suffix(picture))
            height, width = read_image(path).shape[:2]
            return Media(path, safe_name(name), "picture", width=width, height=height)
        ending = _container_ending(path, "a video or a picture")
        return _video(path.rename(path.with_suffix(ending)), name, limits)


def take_voice(stream: BinaryIO, name: str, folder: Path, limits: Limits) -> Media:
    with _stored(stream, name, folder, limits) as path:
        path = path.rename(path.with_suffix(_container_ending(path, "a recording")))
        seconds = _sound_seconds(path, limits)
        from ..audio.load import check_speech, load_audio

        check_speech(load_audio(path).waveform, str(path))
        return Media(path, safe_name(name), "sound", seconds, has_sound=True, tracks=_sound_tracks(path))


def take_lora(stream: BinaryIO, name: str, folder: Path, limits: Limits) -> Media:
    """Whether it belongs to the model is found out when both are loaded."""
    from ..weights.lora import open_lora

    with _stored(stream, name, folder, limits) as path:
        path = path.rename(path.with_suffix(".safetensors"))  # whatever it was called: nothing else is read as such
        open_lora(path)
        return Media(path, safe_name(name), "lora")


@contextmanager
def _stored(stream: BinaryIO, name: str, folder: Path, limits: Limits) -> Iterator[Path]:
    """The stream as a file. After an error nothing is left, and the message has the owner's name of the file."""
    path = folder / uuid.uuid4().hex
    try:
        _copy(stream, path, limits)
        yield path
    except BaseException as error:
        message = str(error)
        for left in folder.glob(f"{path.name}*"):
            message = message.replace(str(left), safe_name(name))
            left.unlink(missing_ok=True)
        if isinstance(error, UserError):
            raise UserError(message) from None
        raise


def _copy(stream: BinaryIO, path: Path, limits: Limits) -> None:
    size, limit = 0, limits.megabytes << 20
    try:
        with path.open("xb") as file:
            while chunk := stream.read(CHUNK):
                size += len(chunk)
                if size > limit:
                    raise UserError(f"The file is larger than {limits.megabytes} MB; give a shorter or smaller one.")
                file.write(chunk)
    except OSError as error:
        raise UserError("The file could not be stored: the disk of this server is full or broken.") from error
    if not size:
        raise UserError("The file is empty; was it saved completely?")


def _picture_ending(path: Path, limits: Limits) -> str:
    """The suffix for a still picture, "" for anything else. Its size is checked before it is decoded."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            kind, (width, height) = str(picture.format), picture.size
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    if kind in PICTURES:
        _check_size(width, height, limits)
    return PICTURES.get(kind, "")


def _check_size(width: int, height: int, limits: Limits) -> None:
    if width * height > limits.pixels:
        most = f"at most {limits.pixels / 1e6:.0f} million pixels are allowed here"
        raise UserError(f"The picture is {width} × {height} pixels; {most}.")


def _container_ending(path: Path, wanted: str) -> str:
    """The suffix for an accepted container; UserError for anything else."""
    import av
    from av.error import FFmpegError

    from ..media.opening import ANY_TAGS, file_url

    options = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
    try:
        with av.open(file_url(path), options=options, **ANY_TAGS) as container:
            return _own_ending(container, path) or CONTAINERS[container.format.name.split(",")[0]]
    except (FFmpegError, OSError, KeyError, ValueError):
        raise UserError(f"{path} could not be read as {wanted}, despite its file extension.") from None


def _own_ending(container: Any, path: Path) -> str:
    """FFmpeg has one name for each of these pairs, but a result that is like its source has to tell them apart."""
    if container.metadata.get("major_brand", "").strip() == "qt":
        return ".mov"
    with path.open("rb") as file:
        return ".webm" if container.format.name.startswith("matroska") and b"webm" in file.read(64) else ""


def _video(path: Path, name: str, limits: Limits) -> Media:
    from ..media.probe import probe

    info = probe(path)
    if info.duration > limits.seconds:
        most = f"at most {duration(limits.seconds)} are allowed here, so cut it first"
        raise UserError(f"The video lasts {duration(float(info.duration))}; {most}.")
    _check_size(info.width, info.height, limits)
    if info.fps > limits.rate:
        most = f"at most {limits.rate} are allowed here"
        raise UserError(f"The video has {float(info.fps):.4g} frames per second; {most}.")
    return Media(
        path, safe_name(name), "video", info.duration, info.frames, info.fps, info.width, info.height, info.has_audio,
        plays_in_browsers(path), _sound_tracks(path),
    )  # fmt: skip


def _sound_tracks(path: Path) -> tuple[tuple[int, str], ...]:
    """Those that can be decoded."""
    from ..media.opening import open_media
    from ..media.tracks import decodable

    with open_media(path, "a video or a recording") as container:
        return tuple((i, _track_name(i, one)) for i, one in enumerate(container.streams.audio) if decodable(one))


def _track_name(number: int, stream: Any) -> str:
    """Counted from 0, as everywhere else."""
    from ..media.opening import clean_tags

    count = stream.codec_context.layout.nb_channels
    tags = clean_tags(stream.metadata)
    said = (tags.get(key, "")[:40] for key in ("title", "language"))
    known = [text for text in said if text not in ("", "und")]
    return f"Track {number}: {', '.join([*known, {1: 'mono', 2: 'stereo'}.get(count, f'{count} channels')])}"


def _sound_seconds(path: Path, limits: Limits) -> Fraction:
    """Length of the sound; decoding stops once it is too long."""
    from ..media.audio_track import has_audio
    from ..media.sound import Sound

    if not has_audio(path):
        raise UserError(f"{path} has no sound in it; give a recording of speech.")
    seconds = Fraction(0)
    with Sound(path) as sound:
        for piece in sound.pieces():
            seconds = piece.end - sound.origin
            if seconds > limits.seconds + 1:
                raise UserError(f"The recording is longer than {duration(limits.seconds)}, the most allowed here.")
    return seconds


def plays_in_browsers(path: Path) -> bool:
    """Picture and sound, in all common ones."""
    from ..media.opening import open_media

    with open_media(path, "a video") as container:
        stream: Any = container.streams.video[0]
        form, codec, pixels = container.format.name, stream.codec_context.name, stream.codec_context.pix_fmt
        sound = next((one.codec_context.name for one in container.streams.audio if one.codec_context), "")
    if form.startswith("matroska"):
        return codec in ("vp8", "libvpx", *NEW_CODECS) and sound in ("", *WEB_SOUNDS)
    plain = codec == "h264" and pixels in ("yuv420p", "yuvj420p")
    return "mp4" in form.split(",") and (plain or codec in NEW_CODECS) and sound in ("", *MP4_SOUNDS)


def browser_copy(media: Media, folder: Path, report: ReportFn, part: range | None = None) -> Path:
    """A video that browsers can play: the file itself, or a smaller copy. part: these of its frames alone."""
    if media.playable and part is None:
        return media.path
    return small_copy(media.path, folder, report, "before", part)


def small_copy(path: Path, folder: Path, report: ReportFn, stage: str, part: range | None = None) -> Path:
    """A video, or some of its frames, as every browser plays it. stage: what to report."""
    import cv2

    from ..media.audio_track import AudioTrack
    from ..media.probe import probe
    from ..media.reader import VideoReader
    from ..media.writer import VideoWriter

    info = probe(path)
    part = part or range(info.frames)
    scale = min(1.0, PREVIEW_SIDE / max(info.width, info.height))
    width, height = (max(2, 2 * round(side * scale / 2)) for side in (info.width, info.height))
    # not steady: encoded as AAC, whatever it was
    sound = AudioTrack(path, info.start + part.start / info.fps, steady=False) if info.has_audio else None
    out = folder / f"{uuid.uuid4().hex}.mp4"
    with (
        VideoReader(info) as reader,
        VideoWriter(out, width, height, info.fps, audio=sound, aspect=info.aspect) as writer,
    ):
        for i, frame in enumerate(reader.read(part)):
            report(stage, i, len(part))
            writer.write(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA))
    return out


def sample_files(folder: str | None) -> list[Path]:
    if folder is None:
        return []
    if not Path(folder).is_dir():
        raise UserError(f"There is no folder {folder} with samples; give one that exists.")
    return sorted(path for path in Path(folder).iterdir() if path.is_file() and not path.name.startswith("."))


def take_file(path: Path, take: Any, folder: Path, limits: Limits) -> Media:
    with path.open("rb") as stream:
        return take(stream, path.name, folder, limits)
