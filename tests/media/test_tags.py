"""What a file says about itself goes along, unless it is not wanted."""

from fractions import Fraction

import av
import numpy as np
import pytest

from latentsync.media.audio_track import AudioTrack
from latentsync.media.source import Shown
from latentsync.media.tags import tags_of
from latentsync.media.writer import VideoWriter
from latentsync.settings import Settings

TITLES = {"title": "Löwe 狮子", "comment": "at the zoo", "artist": "me", "creation_time": "2021-03-04T05:06:07.000000Z"}


def source(path, fields=TITLES, chapters=((0, 800, "one"), (800, 2000, "two")), subtitles=True):
    """Two seconds of gray at 25 fps with all that a file can say."""
    if subtitles:
        lines = path.with_name("lines.srt")
        lines.write_text("1\n00:00:00,500 --> 00:00:01,000\nhello\n\n2\n00:00:01,400 --> 00:00:01,900\nthere\n")
        text = av.open(str(lines))
    with av.open(str(path), "w") as container:
        container.metadata.update(fields)
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.metadata["language"] = "deu"
        sound = container.add_stream("aac", rate=16000)
        sound.codec_context.layout = "mono"
        sound.metadata["language"] = "jpn"
        if chapters:
            container.set_chapters(
                [{"id": i, "start": a, "end": b, "time_base": Fraction(1, 1000), "metadata": {"title": title}}
                 for i, (a, b, title) in enumerate(chapters)]
            )  # fmt: skip
        if subtitles:
            target = container.add_stream_from_template(text.streams.subtitles[0])
            target.metadata["language"] = "fra"
        container.start_encoding()
        if subtitles:
            for packet in text.demux():
                if packet.size:
                    packet.stream = target
                    container.mux(packet)
        for i in range(50):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 99, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        wave = av.AudioFrame.from_ndarray(np.zeros((1, 32000), np.float32), format="fltp", layout="mono")
        wave.sample_rate, wave.pts, wave.time_base = 16000, 0, Fraction(1, 16000)
        container.mux(sound.encode(wave))
        container.mux(sound.encode(None))
    return path


def written(path, origin, out, frames=50, start=Fraction(0), metadata=None, **settings):
    with av.open(str(origin)) as container:
        shown = Shown(64, 48, Fraction(25), frames, start, said=tags_of(container, origin))
    tags = shown.tags(Fraction(frames, 25), Settings(**settings))
    track = AudioTrack(origin, start)
    with VideoWriter(out, 64, 48, Fraction(25), audio=track, tags=tags, metadata=metadata) as writer:
        for _ in range(frames):
            writer.write(np.full((48, 64, 3), 99, np.uint8))
    return out


def told(path):
    with av.open(str(path)) as container:
        fields = {name.lower(): text for name, text in container.metadata.items()}
        languages = [stream.metadata.get("language") for stream in container.streams]
        chapters = []
        for one in container.chapters():
            begin, end = (round(one[key] * one["time_base"] * 1000) for key in ("start", "end"))
            chapters.append((begin, end, one["metadata"]["title"]))
        lines = []
        if container.streams.subtitles:
            stream = container.streams.subtitles[0]
            lines = [(round(float(p.pts * p.time_base), 2), bytes(p)) for p in container.demux(stream) if p.size]
    return fields, languages, chapters, [(time, text) for time, text in lines if b"h" in text]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_title_dates_chapters_and_languages_stay(tmp_path, suffix):
    origin = source(tmp_path / "a.mkv")
    fields, languages, chapters, lines = told(written(tmp_path, origin, tmp_path / f"b{suffix}"))
    assert {name: fields.get(name) for name in TITLES} == TITLES
    assert languages[:2] == ["ger" if suffix == ".mov" else "deu", "jpn"]  # two names of one language
    assert chapters == [(0, 800, "one"), (800, 2000, "two")]
    if suffix == ".mkv":
        assert [time for time, _ in lines] == [0.5, 1.4]
        assert languages[2] == "fra"


def test_a_part_has_its_part_of_chapters_and_lines(tmp_path):
    origin = source(tmp_path / "a.mkv")
    out = written(tmp_path, origin, tmp_path / "b.mkv", 20, Fraction(1))
    _, _, chapters, lines = told(out)
    assert chapters == [(0, 800, "two")]
    assert [time for time, _ in lines] == [0.4]


def test_nothing_of_the_source_where_it_is_not_wanted(tmp_path):
    origin = source(tmp_path / "a.mkv")
    for suffix in (".mp4", ".mkv"):
        out = written(tmp_path, origin, tmp_path / f"b{suffix}", strip_metadata=True)
        fields, languages, chapters, lines = told(out)
        assert not set(TITLES) & set(fields)
        assert (chapters, lines) == ([], [])
        assert languages[0] in (None, "und", "eng")
        assert b"zoo" not in out.read_bytes()


def test_our_comment_comes_after_the_sources(tmp_path):
    origin = source(tmp_path / "a.mkv")
    fields, *_ = told(written(tmp_path, origin, tmp_path / "b.mp4", metadata={"comment": "made"}))
    assert fields["comment"] == "at the zoo\nmade"


def test_uncommon_fields_stay(tmp_path):
    origin = source(tmp_path / "a.mkv", {"title": "x", "location": "+48.1000+011.5000/", "camera": "Y"}, (), False)
    for suffix in (".mp4", ".mov", ".mkv"):
        fields, *_ = told(written(tmp_path, origin, tmp_path / f"b{suffix}"))
        assert (fields["title"], fields["location"], fields["camera"]) == ("x", "+48.1000+011.5000/", "Y"), suffix


def test_the_old_files_own_facts_do_not_stay(tmp_path):
    origin = source(tmp_path / "a.mp4", subtitles=False)
    fields, *_ = told(written(tmp_path, origin, tmp_path / "b.mkv"))
    assert not {"major_brand", "minor_version", "compatible_brands"} & set(fields)
