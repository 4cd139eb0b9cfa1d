"""Every API workflow on the real server: queued as a script would, and its output looked at."""

import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from latentsync.audio.load import load_audio
from latentsync.pipeline import lipsync
from latentsync.settings import Settings
from latentsync.weights.bundle import load_models

from ..nodes.clips import frames_of
from .api import (
    FOLDER,
    QUICK,
    api,
    as_shipped,
    difference,
    faces_in,
    far_from,
    lips,
    media_folder,
    packets_of,
    pictures,
    played,
    psnr,
    saved,
    sound_of,
    the,
)
from .flows import APPS, FLOWS, filled
from .inputs import SPEECH, speaker

FRAME = 1 / 25
SETTINGS = {"steps": QUICK["steps"], "guidance": QUICK["guidance"]}


def test_the_files_are_what_flows_says(comfy):
    """python -m tests.workflows.build was run after the last change, so the defaults are those of the nodes."""
    assert {path.stem for path in (FOLDER / "api").glob("*.json")} == set(FLOWS)
    known = comfy.object_info()
    for name, flow in FLOWS.items():
        assert as_shipped(name).prompt == json.loads(json.dumps(filled(flow().flow.prompt, known))), name


def test_the_template_browser_lists_them(comfy):
    titles = {flow().title for flow in FLOWS.values()} | set(APPS)
    pack = next(names for names in comfy.get("/workflow_templates").values() if titles & set(names))
    assert set(pack) == titles
    for name in titles:
        picture = FOLDER / f"{name}.jpg"  # the one ending that the front end asks for
        assert picture.read_bytes().startswith(b"\xff\xd8"), name
        assert picture.stat().st_size < 60_000, name


def check_sound(path, frames):
    _, packets, seconds, loudness = sound_of(path)
    assert packets > 1
    assert loudness > 1e-3
    assert abs(seconds - frames * FRAME) < FRAME + 1024 / 16000  # a packet's length more at most


def check_pictures(before, after, *, whose=0):
    """That face's mouth is another one in most frames, and all that lies far from the faces is as it was.

    The files are lossy: what is as it was differs by the codec's noise.
    """
    assert after.shape == before.shape
    faces = faces_in(before[0])
    rows, columns = lips(faces[whose])
    far = far_from(faces, before.shape)
    assert far.mean() > 0.05
    noise = difference(before[:, far], after[:, far])
    mouth = difference(before[:, rows, columns], after[:, rows, columns])
    assert noise.max() < 3
    assert psnr(before[:, far], after[:, far]) > 34
    # where it says what the source says it looks alike
    assert (mouth > 3 * noise).mean() > 0.6, (mouth / noise).round(1).tolist()
    assert mouth.mean() > 6
    check_color(before[:, rows, columns], after[:, rows, columns])


def check_color(before, after):
    """A mouth is skin and lips in the colors of the source: red, green and blue within 25 of 255 on average."""
    source, made = (mouth.reshape(-1, 3).mean(0) for mouth in (before, after))
    assert np.abs(made - source).max() <= 25, f"mouth {made.round()} in place of {source.round()}"


def check_engine(after, before, speech, *, face="largest", **settings):
    """The pictures are those that the engine makes by itself: the mouths differ by 2 of 255 on average at most."""
    wanted = engine(before, speech, face=face, **settings)
    assert after.shape == wanted.frames.shape
    where = wanted.mask > 0.5
    assert np.abs(after[where].astype(int) - wanted.frames[where]).mean() <= 2


def engine(frames, speech, **settings):
    waveform, rate = load_audio(speech)
    with load_models("nano") as models:
        return lipsync(frames, waveform, rate, 25, models=models, settings=Settings(**settings))


def test_one_node_and_again_with_other_sound_and_seed(comfy, files):
    """Faces are looked for once and the model is loaded once in all three runs, whatever ComfyUI's cache drops."""
    graph = api("lip_sync_a_video", **QUICK)
    kept = graph.node("SaveImage", images=[the(graph, "LatentSyncLipSync"), 0], filename_prefix="one_node")
    loads = comfy.log.count(LOADS)
    first = comfy.queue(graph).check()
    result = saved(comfy, first)
    check_pictures(played(frames_of(files / "face.mp4"), Fraction(SPEECH, 25)), frames_of(result))
    made = pictures(comfy, first, kept.id)  # before any codec
    check_engine(made, frames_of(files / "face.mp4"), files / "speech.flac", **SETTINGS)
    check_sound(result, SPEECH)
    assert "finding faces" in stages(first)
    assert comfy.log.count(LOADS) - loads <= 1  # none where another test has it loaded

    loads = comfy.log.count(LOADS)
    other = comfy.queue(graph.changed(the(graph, "LoadAudio"), audio="voice_a.flac")).check()
    assert "finding faces" not in stages(other)
    assert "encoding" in stages(other)
    assert len(frames_of(saved(comfy, other))) == SPEECH // 2

    seed = graph.changed(the(graph, "LoadAudio"), audio="voice_a.flac")
    take = comfy.queue(seed.changed(the(seed, "LatentSyncLipSync"), seed=5)).check()
    assert "finding faces" not in stages(take)
    assert {"sampling", "pasting"} <= stages(take)
    assert comfy.log.count(LOADS) == loads
    assert psnr(frames_of(saved(comfy, take)), frames_of(saved(comfy, other))) < 60


LOADS = "model weight dtype"
"""ComfyUI says so for every U-Net that is built."""


def stages(run):
    """What it said it was doing: "sampling: 1 of 2"."""
    return {line.partition(":")[0] for lines in run.stages().values() for line in lines}


def test_parts_to_the_bit_and_again_with_other_sound_and_seed(comfy, files):
    graph = api("single_nodes", **QUICK)
    composite, fitted = the(graph, "LatentSyncComposite"), the(graph, "LatentSyncFitLength")
    # a picture of 8 bits would show a mask of less than 1/255 as nothing
    mask = graph.node("MaskToImage", mask=graph.node("ThresholdMask", mask=[composite, 1], value=0.0))
    keep = {
        name: graph.node("SaveImage", name, images=source, filename_prefix=name)
        for name, source in (("before", [fitted, 0]), ("after", [composite, 0]), ("mask", mask))
    }
    first = comfy.queue(graph).check()
    before, after, painted = (pictures(comfy, first, node.id) for node in keep.values())
    check_sound(saved(comfy, first), SPEECH)
    assert np.array_equal(before, played(before[:20], Fraction(SPEECH, 25)))
    check_pictures(before, after)
    check_pictures(before, frames_of(saved(comfy, first)))
    outside = painted[..., 0] == 0
    assert 0.02 < 1 - outside.mean() < 0.5
    assert np.array_equal(before[outside], after[outside])
    check_engine(after, before[:20], files / "speech.flac", **SETTINGS)

    sound = graph.changed(the(graph, "LoadAudio"), audio="voice_a.flac")
    other = comfy.queue(sound).check()
    assert the(graph, "LatentSyncFindFaces") in other.cached
    assert the(graph, "LatentSyncCondition") in other.ran
    take = comfy.queue(sound.changed(the(sound, "LatentSyncSampler"), seed=5)).check()
    for kind in ("LatentSyncFindFaces", "LatentSyncFitLength", "LatentSyncEncodeAudio", "LatentSyncCondition"):
        assert the(graph, kind) in take.cached
    assert the(graph, "LatentSyncSampler") in take.ran


def test_ksampler(comfy, files):
    run = comfy.queue(api("ksampler", **QUICK)).check()
    result = saved(comfy, run)
    check_pictures(played(frames_of(files / "face.mp4"), Fraction(SPEECH, 25)), frames_of(result))
    check_sound(result, SPEECH)


def test_still(comfy, files):
    run = comfy.queue(api("talking_portrait", **QUICK)).check()
    result = frames_of(saved(comfy, run))
    check_sound(saved(comfy, run), SPEECH)
    picture = np.asarray(Image.open(files / "face.png").convert("RGB"))
    check_pictures(np.repeat(picture[None], SPEECH, 0), result)
    check_engine(result, picture[None], files / "speech.flac", **SETTINGS)
    rows, columns = lips(faces_in(picture)[0])
    assert difference(result[1:, rows, columns], result[:-1, rows, columns]).max() > 0.5  # it moves


def test_long_video(comfy, files):
    run = comfy.queue(api("long_video", **QUICK)).check()
    result = frames_of(saved(comfy, run))
    check_pictures(played(frames_of(files / "face.mp4"), Fraction(SPEECH, 25)), result)
    check_engine(result, frames_of(files / "face.mp4"), files / "speech.flac", **SETTINGS)
    check_sound(saved(comfy, run), SPEECH)


def test_long_video_without_a_speech_keeps_its_own_sound(comfy, files):
    """What the workflow's note says; the sound's packets are copied."""
    graph = api("long_video", **QUICK)
    del graph.prompt[the(graph, "LatentSyncVideo")]["inputs"]["audio"]
    run = comfy.queue(graph).check()
    source = packets_of(files / "face.mp4")
    copied = packets_of(saved(comfy, run))
    assert len(copied) >= len(source) - 2
    assert copied == source[: len(copied)]


def test_two_people(comfy, files):
    run = comfy.queue(api("two_people", **QUICK)).check()
    after = frames_of(saved(comfy, run))
    before = played(frames_of(files / "two_people.mp4"), Fraction(SPEECH, 25))
    check_sound(saved(comfy, run), SPEECH)
    for face in (0, 1):
        check_pictures(before, after, whose=face)
    # with the voices swapped each mouth moves otherwise, but only while it is that face's turn
    swapped = api("two_people", **QUICK)
    for number, name in enumerate(("voice_b.flac", "voice_a.flac")):
        swapped.prompt[the(swapped, "LoadAudio", number)]["inputs"]["audio"] = name
    other = frames_of(saved(comfy, comfy.queue(swapped).check()))
    half, boxes = SPEECH // 2, [lips(face) for face in faces_in(before[0])]
    first, second = (difference(after[:, rows, columns], other[:, rows, columns]) for rows, columns in boxes)
    assert first[:half].mean() > 1.5 * first[half:].mean(), first
    assert second[half:].mean() > 1.5 * second[:half].mean(), second


def test_score(comfy, files, tmp_path):
    graph = api("score_a_video", file=comfy.put(speaker(tmp_path / "three_seconds.mp4", 75, media_folder())))
    run = comfy.queue(graph).check()
    found = comfy.history(run)["outputs"][the(graph, "LatentSyncScore")]["latentsync_score"][0]
    assert found["fps"] == 25
    assert 0 <= found["confidence"] <= 2
    assert -1 <= found["correlation"] <= 1
    assert found["offset"] in found["lags"]
    assert len(found["opening"]) == len(found["loudness"]) == 75
    assert max(found["opening"]) > 0.02
    chart = pictures(comfy, run, the(graph, "PreviewImage"))[0]
    assert min(chart.shape[:2]) > 200
    assert chart.std() > 5
    assert len(np.unique(chart.reshape(-1, 3), axis=0)) > 20


@pytest.mark.parametrize("name", FLOWS)
def test_a_missing_file_is_refused_by_name(comfy, files, name):
    graph = api(name)
    node = next(node for node in graph.prompt if graph.prompt[node]["class_type"].startswith("Load"))
    key = next(iter(graph.prompt[node]["inputs"]))
    refused = comfy.queue(graph.changed(node, **{key: "not there.mp4"}))
    assert refused.status == "refused"
    assert "not there.mp4" in refused.refusals[node]
