"""Our nodes beside other people's: VideoHelperSuite's Load and Combine, and files that go on from node to node."""

import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ..nodes.clips import frames_of
from ..nodes.graphs import Graph
from ..nodes.parts import in_one, save, streamed
from ..nodes.server import PACK, ROOT, ComfyServer
from .api import difference, faces_in, lips, pictures, played
from .inputs import CLIP, SPEECH, put_inputs
from .test_workflows import check_color, check_engine, check_pictures

QUICK = {"steps": 1, "guidance": 1.0, "seed": 1247}


@pytest.fixture(scope="module")
def suite(comfyui, tmp_path_factory):
    """A server with VideoHelperSuite, and the example files in its input folder."""
    place = Path(os.environ.get("VIDEOHELPERSUITE_PATH", comfyui.path.parent / "ComfyUI-VideoHelperSuite"))
    if not (place / "videohelpersuite").is_dir():
        pytest.skip(f"No VideoHelperSuite at {place}; VIDEOHELPERSUITE_PATH names its folder.")
    folder = tmp_path_factory.mktemp("suite")
    with ComfyServer(comfyui, folder / "base", packs={PACK: ROOT, place.name: place}) as server:
        (folder / "files").mkdir()
        put_inputs(server, folder / "files", None)
        yield server


def test_videohelpersuite_loads_and_combines(suite):
    """Its pictures and its sound, which is decoded only when somebody asks for it."""
    g = Graph()
    whole = {"force_rate": 0, "custom_width": 0, "custom_height": 0, "frame_load_cap": 0, "skip_first_frames": 0}
    clip = g.node("VHS_LoadVideo", video="face.mp4", **whole, select_every_nth=1)
    speech = g.node("VHS_LoadAudioUpload", audio="speech.flac", start_time=0, duration=0)
    made = in_one(g, clip, speech, fps=25.0, **QUICK)
    kept = {"loop_count": 0, "filename_prefix": "vhs", "pingpong": False, "save_output": True}
    how = {"format": "video/h264-mp4", "pix_fmt": "yuv420p", "crf": 12, "save_metadata": True, "trim_to_audio": False}
    g.node("VHS_VideoCombine", images=made, audio=made[1], frame_rate=25, **kept, **how)
    run = suite.queue(g).check()
    (shown,) = run.shown("VHS_VideoCombine", "gifs")
    # its file with sound lies beside the one without
    path = max(suite.output.glob("vhs*.mp4"), key=lambda file: len(file.name))
    assert shown["filename"] == path.name
    before = played(frames_of(suite.input / "face.mp4"), Fraction(SPEECH, 25))
    check_pictures(before, frames_of(path))
    with av.open(str(path)) as file:
        assert file.streams.audio


def test_load_video_to_video_to_save_video(comfy, files):
    """Only the frames 5 to 14 are used, with their own sound; Save Video copies the file."""
    g = Graph()
    made = streamed(g, g.node("LoadVideo", file="face.mp4"), **QUICK, start=0.2, duration=0.4, fit="silence")
    save(g, made)
    run = comfy.queue(g).check()
    result = frames_of(comfy.path(run.shown("SaveVideo", "images")[0]))
    source = frames_of(files / "face.mp4")[5:15]
    assert result.shape == source.shape
    face = faces_in(source[0])[0]
    rows, columns = lips(face)
    far = np.ones(source.shape[1:3], bool)
    far[int(face.box[1]) - 40 :] = False  # above the face
    assert difference(source[:, far], result[:, far]).max() < 3, "the right frames"
    check_color(source[:, rows, columns], result[:, rows, columns])


def test_a_part_of_the_speech(comfy, files):
    """The same as with a speech that was cut before."""
    g = Graph()
    video = g.node("LoadVideo", file="face.mp4")
    long = g.node("LoadAudio", audio="speech.flac")
    save(g, streamed(g, video, **QUICK, audio=long, audio_start=0.2, audio_duration=0.4))
    first = comfy.queue(g).check()
    g = Graph()
    long = g.node("LoadAudio", audio="speech.flac")
    cut = g.node("TrimAudioDuration", audio=long, start_index=0.2, duration=0.4)
    save(g, streamed(g, g.node("LoadVideo", file="face.mp4"), **QUICK, audio=cut))
    second = comfy.queue(g).check()
    one, two = (frames_of(comfy.path(run.shown("SaveVideo", "images")[0])) for run in (first, second))
    assert len(one) == len(two) == 10
    assert difference(one, two).max() < 0.5


def test_video_alone_keeps_its_file_with_the_workflow_in_it(comfy, files):
    """save_to output needs nothing behind it; what it writes can be dropped on ComfyUI again."""
    g = Graph()
    speech = g.node("LoadAudio", audio="speech.flac")
    how = {"save_to": "output", "filename_prefix": "alone/kept"}
    node = streamed(g, g.node("LoadVideo", file="face.mp4"), **QUICK, audio=speech, **how)
    canvas = {"nodes": [{"id": 1, "title": "Ärger — “quoted”"}], "links": []}
    run = comfy.queue(g, extra_data={"extra_pnginfo": {"workflow": canvas}}).check()
    (pair,) = [pair for output in run.outputs.values() for pair in output.get("latentsync_compare", [])]
    path = comfy.path(pair["after"])
    assert path.parent == comfy.output / "alone"
    with av.open(str(path)) as file:
        said = dict(file.metadata)
        assert file.streams.video[0].frames == SPEECH
    written = json.loads(said["prompt"])  # ComfyUI adds facts of its own
    assert {name: {key: written[name][key] for key in own} for name, own in g.prompt.items()} == g.prompt
    assert json.loads(said["workflow"]) == canvas
    assert node.id in json.loads(said["prompt"])
    check_engine(frames_of(path), frames_of(files / "face.mp4"), files / "speech.flac", **QUICK)


def test_what_is_kept_out_stays(comfy, files):
    """A mask over the left half of the picture: there not one bit changes, right of it the mouth does."""
    g = Graph()
    source = g.node("GetVideoComponents", video=g.node("LoadVideo", file="face.mp4"))
    height, width = frames_of(files / "face.mp4").shape[1:3]
    half = g.node("SolidMask", value=1.0, width=width // 2, height=height)
    blank = g.node("SolidMask", value=0.0, width=width, height=height)
    keep = g.node("MaskComposite", destination=blank, source=half, x=0, y=0, operation="add")
    made = in_one(g, source, g.node("LoadAudio", audio="speech.flac"), fps=25.0, **QUICK, fit="trim", keep_out=keep)
    g.node("SaveImage", "after", images=made, filename_prefix="kept_out")
    g.node("SaveImage", "before", images=source, filename_prefix="kept_before")
    run = comfy.queue(g).check()
    before, after = (pictures(comfy, run, name) for name in ("before", "after"))
    assert len(before) == len(after) == CLIP
    assert np.array_equal(before[:, :, : width // 2], after[:, :, : width // 2])
    assert np.abs(before.astype(int) - after).max() > 20
