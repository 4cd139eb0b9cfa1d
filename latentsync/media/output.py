"""The file that a run writes: like its source in all that the container can hold, and a word on what it cannot."""

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..settings import Settings
from ..timeline import Timeline
from .audio_track import AudioTrack
from .color import Color
from .encoding import SCREENED, Encoding, choose_encoding
from .hdr import HLG, PQ
from .image import flattened, is_image, read_picture, within
from .journal import Journal
from .reader import VideoReader
from .sequence import CONTAINER, pictures_of, sound_of
from .source import Shown
from .watermark import COMMENT
from .writer import VideoWriter, container_of


@contextmanager
def open_output(
    out: str | Path,
    video: str | Path,
    shown: Shown,
    timeline: Timeline,
    settings: Settings,
    audio: AudioTrack,
    metadata: Mapping[str, str] | None = None,
    journal: Journal | None = None,
) -> Iterator[tuple[VideoWriter, tuple[str, ...]]]:
    """The writer, and what of the source could not stay as it was. journal: see VideoWriter."""
    encoding, color, notes = encoding_for(container_of(out), shown, settings)
    comment = {} if settings.watermark == "none" else {"comment": COMMENT}
    look: Any = {"color": color, "aspect": shown.aspect, "metadata": comment | dict(metadata or {})}
    look |= {"tags": shown.tags(timeline.duration, settings), "encoding": encoding, "screen": shown.screen}
    if container_of(out) == CONTAINER:
        _check_inputs(Path(out), video, audio.path)
        journal = None  # files that are finished need none
    if encoding.keeps_alpha and encoding.encoder == "libvpx-vp9":
        journal = None  # its packets carry the transparency beside them, where PyAV does not reach it
    first = 0 if journal is None else journal.frames
    deep = deep_frames(video, settings, shown, timeline.source_indices(first)) if encoding.deep else None
    look["journal"] = journal
    try:
        with VideoWriter(out, shown.width, shown.height, shown.fps, audio=audio, deep=deep, **look) as writer:
            yield writer, notes
    finally:
        if deep is not None:
            deep.close()


def _check_inputs(out: Path, *inputs: str | Path) -> None:
    """UserError where pictures or their sound would replace what they are made of."""
    written = {path.resolve() for path in (*pictures_of(out).values(), out, sound_of(out))}
    for path in inputs:
        if Path(path).resolve() in written:
            raise UserError(f"{path} would be replaced by what is written as {out}; give --out another name or folder.")


def encoding_for(container: str, shown: Shown, settings: Settings) -> tuple[Encoding, Color | None, tuple[str, ...]]:
    """How the output is encoded, its colors, and all that could not stay as it was."""
    encoding = choose_encoding(container, (shown.width, shown.height), shown.kind, settings)
    notes = (*shown.notes, *encoding.notes)
    if shown.color is None or shown.color.transfer not in (PQ, HLG) or encoding.deep:
        if shown.screen and encoding.deep and encoding.encoder not in SCREENED:
            notes = (*notes, f"HDR that states the screen it was graded on; {encoding.encoder} leaves that out")
        return encoding, shown.color, notes
    return encoding, Color(), (*notes, "HDR; written as SDR, its brighter tones pressed together")


def deep_frames(
    video: str | Path, settings: Settings, shown: Shown, indices: Iterable[int]
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Each frame as it is seen and as the source has it, read a second time. indices: of frames from shown.start on."""
    if shown.still and is_image(video):
        whole = within(read_picture(Path(video)), settings.max_side)
        pair = flattened(whole, settings.background), whole.astype(np.uint16) * 257
        yield from (pair for _ in indices)
        return
    with VideoReader.open(video, settings.background) as reader:
        first = round((shown.start - reader.info.start) * reader.info.fps)
        yield from reader.read_deep(first + i for i in indices)
