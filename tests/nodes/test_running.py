"""While it runs: progress, previews, cancelling, what is kept and what is left behind, what goes into the one node."""

import io
import time
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from latentsync.audio.load import load_audio
from latentsync.media.audio_track import audio_duration
from latentsync.media.probe import probe

from .clips import cut, frames_of, portrait
from .graphs import Graph
from .parts import find, in_one, loaded, loader, parts, save, streamed

STAGES = {
    "find": ["finding faces", "cropping"],
    "hear": ["encoding audio"],
    "condition": ["encoding"],
    "sample": ["sampling"],
    "paste": ["pasting"],
}
"""What the nodes of `parts` say they do, in this order."""
MEGABYTE = 2**20
NEAR = 200 * MEGABYTE
"""What the server may hold more after a cancelled run than before."""


@pytest.fixture(scope="module")
def short(comfy, tmp_path_factory):
    """In the input folder: six frames of a portrait, 320 x 280, with the sample voice."""
    return comfy.put(portrait(tmp_path_factory.mktemp("clips") / "short.mp4", 6))


@pytest.fixture(scope="module")
def whole_run(comfy, portrait_clip):
    """The parts on 20 frames in two windows, three steps."""
    return comfy.queue(parts(portrait_clip, sample={"steps": 3})).check()


def counts(lines):
    """Progress text by stage: {"encoding": [(1, 20), …]}, in the order in which the stages began."""
    found = {}
    for line in lines:
        stage, _, numbers = line.partition(": ")
        done, total = numbers.split(" of ")
        found.setdefault(stage, []).append((int(done), int(total)))
    return found


def check_stages(lines, expected):
    found = counts(lines)
    assert list(found) == expected
    for stage, steps in found.items():
        done, totals = zip(*steps, strict=True)
        assert list(done) == sorted(done), stage
        assert len(set(totals)) == 1, stage
        assert done[-1] == totals[-1], f"{stage} ends at {steps[-1]}"
    return found


def check_preview(picture):
    """Bytes that a browser shows, with something to see in them."""
    seen = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), float)
    assert seen.shape[1] > seen.shape[0] > 100
    assert seen.std() > 20
    return seen


def states(run):
    """By node: the states that progress_state told, in order, each once."""
    found = {}
    for event, data in run.messages:
        if event == "progress_state":
            for node, said in data["nodes"].items():
                known = found.setdefault(node, [])
                if said["state"] not in known[-1:]:
                    known.append(said["state"])
    return found


# progress and previews


def test_every_stage_tells_how_far_it_is(whole_run):
    said = whole_run.stages()
    assert set(said) == set(STAGES)
    for node, expected in STAGES.items():
        check_stages(said[node], expected)
    assert counts(said["find"])["finding faces"] == [(n, 20) for n in range(1, 21)]
    assert counts(said["sample"])["sampling"] == [(1, 3), (2, 3), (3, 3)]


def test_bars_move_with_the_words(whole_run):
    for node in STAGES:
        bars = [(p.value, p.total) for p in whole_run.progress if p.node == node]
        words = [pair for steps in counts(whole_run.stages()[node]).values() for pair in steps]
        # newer ComfyUI leaves out messages that follow each other closely, never the last of a bar
        told = iter(words)
        assert all(bar in told for bar in bars)
        assert set(bars) >= {steps[-1] for steps in counts(whole_run.stages()[node]).values()}
        assert states(whole_run)[node] == ["running", "finished"]


def test_previews_belong_to_the_sampler(whole_run):
    assert len(whole_run.previews) == 3
    assert {preview.node for preview in whole_run.previews} <= {"sample", ""}
    first, *_, last = (check_preview(preview.picture) for preview in whole_run.previews)
    assert first.shape == last.shape
    assert np.abs(first - last).mean() > 0.2


def test_one_node_shows_the_progress_of_its_parts(comfy, short):
    g = Graph()
    source = loaded(g, short)
    g.node("PreviewImage", images=in_one(g, source, source[1], fps=source[2]))
    run = comfy.queue(g).check()
    assert set(run.stages()) == {"lipsync"}
    check_stages(run.stages()["lipsync"], [stage for stages in STAGES.values() for stage in stages])
    told = [data["nodes"] for event, data in run.messages if event == "progress_state"]
    shown = {said["display_node_id"] for nodes in told for node, said in nodes.items() if node.startswith("lipsync")}
    assert shown == {"lipsync"}
    assert len(run.previews) == 2
    assert {preview.node.partition(".")[0] for preview in run.previews} <= {"lipsync", ""}
    check_preview(run.previews[-1].picture)


def test_the_streaming_node_shows_its_stages(comfy, portrait_clip):
    g = Graph()
    save(g, streamed(g, g.node("LoadVideo", file=portrait_clip)))
    run = comfy.queue(g).check()
    found = check_stages(run.stages()["video"], ["finding faces", "sampling"])
    assert set(run.stages()) == {"video"}
    assert found["sampling"] == [(n, 4) for n in range(1, 5)]
    assert len(run.previews) == 4
    assert {preview.node.partition(".")[0] for preview in run.previews} <= {"video", ""}
    for preview in run.previews:
        check_preview(preview.picture)


# caching


def test_another_seed_only_samples_again(comfy, short):
    first, second = (parts(short, sample={"steps": 1, "seed": seed}) for seed in (1, 2))
    comfy.queue(first).check()
    run = comfy.queue(second).check()
    assert run.ran_kinds() == ["LatentSyncSampler", "VAEDecode", "LatentSyncComposite", "CreateVideo", "SaveVideo"]
    assert {"find", "fit", "hear", "condition"} <= run.cached
    assert not comfy.queue(second).check().ran


def test_another_seed_only_samples_again_in_one_node(comfy, short):
    def graph(seed):
        g = Graph()
        source = loaded(g, short)
        g.node("PreviewImage", images=in_one(g, source, source[1], steps=1, seed=seed))
        return g

    comfy.queue(graph(1)).check()
    run = comfy.queue(graph(2)).check()
    assert counts(run.stages()["lipsync"]).keys() == {"sampling", "pasting"}


# cancelling


class Cancel:
    """Presses Cancel when a node has told its first progress (or some stage has begun), and counts what still comes."""

    def __init__(self, comfy, node, stage=""):
        self.comfy, self.node, self.stage = comfy, node, stage
        self.seen = self.after = 0

    def __call__(self, run, event):
        if event != "progress" or run.progress[-1].node.partition(".")[0] != self.node:
            return
        if self.stage and not (run.texts and run.texts[-1].text.startswith(self.stage)):
            return
        self.seen += 1
        if self.seen == 1:
            self.comfy.interrupt()
        else:
            self.after += 1


def left_behind(comfy):
    """What no run may leave; the pictures that Find Faces shows stay, as those of PreviewImage do."""
    return {file for file in comfy.files() if not (file.startswith("temp/") and file.endswith(".jpg"))}


def cancelled(comfy, graph, node, stage=""):
    """Run and cancel; nothing may be left but free memory. Gives what came after the cancelling."""
    files, memory = left_behind(comfy), comfy.rss()
    cancel = Cancel(comfy, node, stage)
    run = comfy.queue(graph, watch=cancel)
    assert run.status == "interrupted", f"{run.status} {run.failure} {run.refusals}"
    assert cancel.seen, "it was never cancelled"
    told = next(data for event, data in run.messages if event == "execution_interrupted")
    assert told["node_id"] == node
    assert comfy.idle()
    assert left_behind(comfy) <= files
    assert comfy.rss() < memory + NEAR
    return cancel.after


def with_stock_sampler(graph, **inputs):
    g = graph.changed("sample")
    ours = g.prompt.pop("sample")["inputs"]
    wired = {name: ours[name] for name in ("model", "positive", "negative")} | {"latent_image": ours["latent"]}
    how = {"seed": 1, "cfg": 1.0, "sampler_name": "ddim", "scheduler": "ddim_uniform", "denoise": 1.0}
    g.node("KSampler", "sample", **wired | how | inputs)
    return g


def test_cancel_in_our_sampler(comfy, portrait_clip, whole_run):
    assert cancelled(comfy, parts(portrait_clip, sample={"steps": 60}), "sample") < 2
    run = comfy.queue(parts(portrait_clip, sample={"steps": 1})).check()
    assert run.ran_kinds()[0] == "LatentSyncSampler", "what was done before the cancelling is kept"


def test_cancel_in_the_stock_sampler(comfy, portrait_clip, whole_run):
    g = parts(portrait_clip)
    assert cancelled(comfy, with_stock_sampler(g, steps=60), "sample") < 2
    comfy.queue(with_stock_sampler(g, steps=1)).check()


@pytest.mark.parametrize("save_to", ["temp", "output"])
def test_cancel_in_the_streaming_node(comfy, portrait_clip, whole_run, save_to):
    """Its pictures and its sound come from memory, so that files are made of them on the way."""

    def graph(**inputs):
        g = Graph()
        source = loaded(g, portrait_clip)
        video = g.node("CreateVideo", images=source, fps=25.0)
        save(g, streamed(g, video, audio=source[1], save_to=save_to, **inputs))
        return g

    assert cancelled(comfy, graph(steps=60), "video", "sampling") < 2
    comfy.queue(graph(steps=1)).check()


def test_cancel_while_faces_are_looked_for(comfy, tmp_path):
    clip = comfy.put(portrait(tmp_path / "longer.mp4", 250))

    def graph(clip):
        g = Graph()
        g.node("PreviewImage", images=find(g, g.node("LoadVideo", file=clip), resolution=160))
        return g

    assert cancelled(comfy, graph(clip), "find") < 125
    g = Graph()
    save(g, streamed(g, g.node("LoadVideo", file=clip), steps=60))
    assert cancelled(comfy, g, "video", "finding faces") < 125
    comfy.queue(graph(comfy.put(portrait(tmp_path / "few.mp4", 3)))).check()


# files


def temporary_videos(comfy):
    return {path.name for path in comfy.temp.rglob("*.mp4")}


def gone(comfy, names, seconds=30):
    """Whether the temporary videos of these names go away; the server tidies up when nothing runs."""
    end = time.monotonic() + seconds
    while names & temporary_videos(comfy) and time.monotonic() < end:
        time.sleep(0.2)
    return not names & temporary_videos(comfy)


@pytest.mark.parametrize("source", ["file", "pictures"])
def test_temporary_videos_go_when_nobody_shows_them(comfy, short, source):
    def graph(seed, steps=1):
        g = Graph()
        video = g.node("LoadVideo", file=short)
        sound = None
        if source == "pictures":
            components = g.node("GetVideoComponents", video=video)
            video, sound = g.node("CreateVideo", images=components, fps=25.0), components[1]
        save(g, streamed(g, video, seed=seed, steps=steps, **({"audio": sound} if sound else {})))
        return g

    def made(seed):
        """The names of the temporary videos of a run, which both can be looked at."""
        run = comfy.queue(graph(seed)).check()
        (shown,) = [pair for output in run.outputs.values() for pair in output.get("latentsync_compare", [])]
        sides = shown["before"], shown["after"]
        for side in sides:
            assert comfy.view(side)[4:8] == b"ftyp"
        assert shown["before"]["type"] == ("temp" if source == "pictures" else "input")
        return {side["filename"] for side in sides if side["type"] == "temp"}

    comfy.free(unload=False)
    others = temporary_videos(comfy)
    first, second = made(1), made(2)
    assert not first & second
    assert gone(comfy, first)
    assert temporary_videos(comfy) - others == second
    assert not list(comfy.temp.glob("latentsync_*.wav"))
    cancelled = comfy.queue(graph(3, steps=200), watch=lambda run, event: event == "text" and comfy.interrupt())
    assert cancelled.status == "interrupted"
    comfy.free()  # the comparison in the browser still shows them
    assert not gone(comfy, second, seconds=2)


def test_a_picture_to_compare_with(comfy, media, voice):
    g = Graph()
    image = g.node("LoadImage", image=comfy.put(media / "stills" / "two_faces_800x532.jpg"))
    sound = g.node("TrimAudioDuration", audio=g.node("LoadAudio", audio=voice), start_index=0.0, duration=0.2)
    save(g, streamed(g, image, audio=sound, steps=1, face="left"))
    run = comfy.queue(g).check()
    (shown,) = [pair for output in run.outputs.values() for pair in output.get("latentsync_compare", [])]
    assert Image.open(io.BytesIO(comfy.view(shown["before"]))).size == (800, 532)
    assert frames_of(saved(comfy, run)).shape == (5, 532, 800, 3)


# what goes into the streaming node


def saved(comfy, run):
    return comfy.path(run.shown("SaveVideo", "images")[0])


def kept(comfy, run):
    """The file that LatentSyncVideo wrote itself."""
    (shown,) = [pair for output in run.outputs.values() for pair in output.get("latentsync_compare", [])]
    return comfy.path(shown["after"]), shown["after"]


def trimmed_voice(g, voice, seconds):
    return g.node("TrimAudioDuration", audio=g.node("LoadAudio", audio=voice), start_index=0.0, duration=seconds)


def changed_part(before, after):
    """Share of the pixels that differ by more than an encoder's noise."""
    return (np.abs(before.astype(int) - after.astype(int)).max(-1) > 24).mean()


@pytest.mark.parametrize(
    ("codec", "ending", "decoder"),
    [
        ("vp9", ".webm", "vp9"),
        ("h265", ".mp4", "hevc"),
        ("prores", ".mov", "prores"),
        ("copy-like-source", ".mkv", "vp9"),
    ],
)
def test_codecs_and_tracks(comfy, short, codec, ending, decoder):
    """The file is of the kind that suits its codec, and has the sound track that was asked for."""
    name = f"two_voices_{codec}.mkv"
    low, high = two_voices(comfy.input / short, comfy.input / name)
    for number, pitch in ((0, low), (1, high)):
        g = Graph()
        how = {"steps": 1, "save_to": "output", "filename_prefix": f"codec/{codec}", "codec": codec}
        g.node("PreviewAny", source=streamed(g, g.node("LoadVideo", file=name), audio_track=number, **how))
        path, _ = kept(comfy, comfy.queue(g).check())
        with av.open(str(path)) as file:
            assert (path.suffix, file.streams.video[0].codec_context.name.removeprefix("libvpx-")) == (ending, decoder)
        sound = load_audio(path).waveform
        assert abs(pitch_of(sound) - pitch) < 20
    source, made = frames_of(comfy.input / name), frames_of(path)
    assert source.shape == made.shape
    assert np.abs(source.astype(int) - made).mean() < 6


def two_voices(clip, path):
    """The clip as VP9 with two sound tracks, tones; returns their pitches in Hz."""
    pitches = (200, 700)
    with av.open(str(clip)) as source, av.open(str(path), "w") as out:
        picture = source.streams.video[0]
        stream = out.add_stream("libvpx-vp9", rate=picture.average_rate, options={"crf": "10", "b": "0"})
        stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "yuv420p"
        tracks = [out.add_stream("pcm_s16le", rate=16000, layout="mono") for _ in pitches]
        frames = [frame.to_ndarray(format="rgb24") for frame in source.decode(picture)]
        for pixels in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())
        times = np.arange(int(len(frames) / picture.average_rate * 16000)) / 16000
        for pitch, track in zip(pitches, tracks, strict=True):
            wave = (8000 * np.sin(2 * np.pi * pitch * times)).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            frame.sample_rate = 16000
            out.mux(track.encode(frame))
            out.mux(track.encode())
    return pitches


def pitch_of(sound):
    return float(np.abs(np.fft.rfft(sound)).argmax() * 16000 / len(sound))


def test_the_output_folder(comfy, short):
    """Numbered names below a folder, with the size in it; the file stays when the cache is dropped."""
    paths = []
    for seed in (1, 2):
        g = Graph()
        how = {"steps": 1, "seed": seed, "save_to": "output", "filename_prefix": "takes/%width%x%height%"}
        g.node("PreviewAny", source=streamed(g, g.node("LoadVideo", file=short), **how))
        path, shown = kept(comfy, comfy.queue(g).check())
        assert (shown["type"], shown["subfolder"]) == ("output", "takes")
        paths.append(path)
    assert [path.name for path in paths] == ["320x280_00001_.mp4", "320x280_00002_.mp4"]
    comfy.free(unload=False)
    time.sleep(2)
    assert all(path.is_file() for path in paths)
    before, after = frames_of(comfy.input / short), frames_of(paths[1])
    assert before.shape == after.shape
    assert 0.003 < changed_part(before, after) < 0.3
    assert audio_duration(paths[1]) == audio_duration(comfy.input / short)


@pytest.mark.parametrize("kind", ["pictures", "a file in memory"])
def test_videos_that_are_no_files(comfy, short, kind):
    g = Graph()
    video = g.node("LoadVideo", file=short)
    if kind == "pictures":
        components = g.node("GetVideoComponents", video=video)
        video = g.node("CreateVideo", images=components, audio=components[1], fps=Fraction(24).numerator)
    else:
        video = g.node("OddVideo", video=video)
    save(g, streamed(g, video, steps=1))
    info = probe(saved(comfy, comfy.queue(g).check()))
    assert (info.width, info.height, info.frames) == (320, 280, 6)
    assert info.fps == (24 if kind == "pictures" else 25)
    assert info.has_audio


def test_an_odd_size(comfy, media, tmp_path):
    clip = comfy.put(cut(media / "edge" / "odd_size_333x301_yuv444.mp4", tmp_path / "odd.mp4", 6))
    g = Graph()
    save(g, streamed(g, g.node("LoadVideo", file=clip), steps=1))
    before, after = frames_of(comfy.input / clip), frames_of(saved(comfy, comfy.queue(g).check()))
    assert before.shape == after.shape == (6, 301, 333, 3)
    assert changed_part(before, after) < 0.3


def test_a_video_without_sound_and_a_recording(comfy, media, tmp_path, voice):
    clip = comfy.put(cut(media / "edge" / "no_audio_stream.mp4", tmp_path / "mute.mp4", 5))
    g = Graph()
    save(g, streamed(g, g.node("LoadVideo", file=clip), audio=trimmed_voice(g, voice, 0.4), steps=1, fit="pingpong"))
    made = saved(comfy, comfy.queue(g).check())
    assert probe(made).frames == 10
    assert float(audio_duration(made)) == pytest.approx(0.4, abs=0.06)


def test_variable_frame_rate(comfy, media, voice):
    """As the file comes from a telephone: HEVC, times that are not even; only the start is asked for."""
    clip = comfy.put(media / "edge" / "face_then_noface_vfr_hevc.mov")
    g = Graph()
    save(g, streamed(g, g.node("LoadVideo", file=clip), audio=trimmed_voice(g, voice, 0.4), steps=1, fit="trim"))
    info = probe(saved(comfy, comfy.queue(g).check()))
    assert (info.width, info.height) == (960, 540)
    assert float(info.duration) == pytest.approx(0.4, abs=0.06)


def test_a_loader_of_its_own_serves_the_streaming_node(comfy, short):
    g = Graph()
    model = loader(g)
    save(g, streamed(g, g.node("LoadVideo", file=short), model=model, vae=model[1], audio_encoder=model[2], steps=1))
    run = comfy.queue(g).check()
    assert [node for node in run.ran if "." in node] == []
    assert probe(saved(comfy, run)).frames == 6
