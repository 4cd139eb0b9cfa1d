"""What a file says about itself (title, date, chapters, languages) and its subtitles, taken over into the output."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from av.error import FFmpegError

from .opening import clean_tags, exact, open_media

_log = logging.getLogger(__name__)

OF_THE_FILE = {"major_brand", "minor_version", "compatible_brands", "encoder", "duration", "alpha_mode", "handler_name"}
"""About the old file itself, and wrong of another one."""
MP4_FIELDS = {
    "title", "artist", "album_artist", "composer", "album", "date", "comment", "genre", "copyright", "grouping",
    "lyrics", "description", "synopsis", "show", "episode_id", "network", "keywords", "creation_time", "track", "disc",
}  # fmt: skip
"""What MP4 has fields of its own for, which other programs read."""
SUBTITLES = {
    "mp4": {"mov_text"},
    "mov": {"mov_text"},
    "webm": {"webvtt"},
    "matroska": {"subrip", "srt", "ass", "ssa", "webvtt", "hdmv_pgs_subtitle", "pgssub", "dvd_subtitle", "dvdsub"},
}
"""What each container holds as it is."""


MOV_LANGUAGES = {"deu": "ger", "zho": "chi", "nld": "dut", "ces": "cze", "ell": "gre", "fas": "per", "ron": "rum"}
"""QuickTime's names of languages, where they are not those of other containers."""


@dataclass(frozen=True)
class Tags:
    """Of a source. start: the time on its clock that the output begins with; duration: how long that is."""

    path: Path | None = None
    start: Fraction = Fraction(0)
    duration: Fraction = Fraction(0)
    fields: Mapping[str, str] = field(default_factory=dict)
    language: str = ""
    chapters: tuple[Any, ...] = ()
    subtitled: bool = False

    def with_fields(self, more: Mapping[str, str]) -> dict[str, str]:
        """The source's fields and ours; a comment of the source stays before ours."""
        merged = {**self.fields, **more}
        if "comment" in more and self.fields.get("comment"):
            merged["comment"] = f"{self.fields['comment']}\n{more['comment']}"
        return merged


def tags_of(container: Any, path: Path) -> Tags:
    """Of a video that is open already."""
    kept = {name: text for name, text in clean_tags(container.metadata).items() if text}
    facts = clean_tags(container.streams.video[0].metadata)
    for name in ("title", "creation_time"):  # some cameras write them with the picture alone
        if name in facts:
            kept.setdefault(name, facts[name])
    kept = {name: text for name, text in kept.items() if name not in OF_THE_FILE}
    chapters = tuple(container.chapters()) if hasattr(container, "chapters") else ()
    subtitled = bool(getattr(container.streams, "subtitles", ()))
    return Tags(path, fields=kept, language=facts.get("language", ""), chapters=chapters, subtitled=subtitled)


class Extras:
    """Chapters and subtitles of a source, put into an output container that is about to be written."""

    def __init__(self, tags: Tags, output: Any) -> None:
        self.tags, self.output, self.source = tags, output, None
        self.pairs: list[tuple[Any, Any]] = []
        self._chapters()
        if tags.path is not None and tags.subtitled and hasattr(output, "add_stream_from_template"):
            self.source = open_media(tags.path, "a video")
            for stream in self.source.streams.subtitles:
                self._take(stream)

    def write(self) -> None:
        """All subtitles; the container puts them where they belong."""
        targets = {stream.index: target for stream, target in self.pairs}
        if self.source is None or not targets:
            return
        with suppress(FFmpegError):  # the file ends in the middle of a packet
            for packet in self.source.demux([stream for stream, _ in self.pairs]):
                if not packet.size or packet.pts is None:
                    continue
                tick = exact(packet.time_base)
                begin = packet.pts - round(self.tags.start / tick)
                if begin + (packet.duration or 0) <= 0 or begin * tick >= self.tags.duration:
                    continue
                packet.pts = packet.dts = max(0, begin)
                packet.stream = targets[packet.stream.index]
                self.output.mux(packet)

    def close(self) -> None:
        if self.source is not None:
            self.source.close()
            self.source = None

    def _take(self, stream: Any) -> None:
        codec = None if stream.codec_context is None else stream.codec_context.name
        if codec not in SUBTITLES[self.output.format.name]:
            _log.info("%s: subtitles in %s do not fit into this file; .mkv holds more", self.tags.path, codec)
            return
        target = self.output.add_stream_from_template(stream)
        target.metadata.update({k: v for k, v in stream.metadata.items() if k.lower() in ("language", "title")})
        self.pairs.append((stream, target))

    def _chapters(self) -> None:
        if not hasattr(self.output, "set_chapters"):
            return
        if kept := list(self._shifted()):
            self.output.set_chapters(kept)

    def _shifted(self) -> Iterator[dict[str, Any]]:
        """Those that begin or go on within the output; times count from its first frame."""
        for number, one in enumerate(self.tags.chapters):
            base = exact(one["time_base"])
            begin, end = (round(one[key] * base * 1000 - self.tags.start * 1000) for key in ("start", "end"))
            begin, end = max(0, begin), min(end, round(self.tags.duration * 1000))
            if end > begin:
                yield {"id": number + 1, "start": begin, "end": end, "time_base": Fraction(1, 1000),
                       "metadata": dict(one["metadata"])}  # fmt: skip
