"""Find Faces, Fit Length and Composite on the real server."""

import math

import av
import cv2
import numpy as np
import pytest

from latentsync.media.audio_track import audio_duration

from .clips import VOICE
from .graphs import Graph

SIDE = 160


def loaded(g, clip):
    """Pictures, sound, rate."""
    return g.node("GetVideoComponents", video=g.node("LoadVideo", file=clip))


def find(g, images, **inputs):
    return g.node(
        "LatentSyncFindFaces", images=images, **{"face": "largest", "resolution": SIDE, "preview_frame": 0} | inputs
    )


def fitted(g, parts, sound, fit, found=None, **inputs):
    faces = {} if found is None else {"crops": found, "face_track": found[1]}
    return g.node("LatentSyncFitLength", images=parts, audio=sound, **{"fps": parts[2], "fit": fit} | faces | inputs)


def composite(g, images, crops, track):
    return g.node("LatentSyncComposite", images=images, crops=crops, face_track=track)


def transparent(g, images):
    """The pictures, 20 of 320 x 280, with a quarter of transparency."""
    gray = g.node("MaskToImage", mask=g.node("SolidMask", value=0.25, width=320, height=280))
    masks = g.node("ImageToMask", image=g.node("RepeatImageBatch", image=gray, amount=20), channel="red")
    return g.node("JoinImageWithAlpha", image=images, alpha=masks)


def seconds_of(g, sound, seconds):
    return g.node("TrimAudioDuration", audio=sound, start_index=0.0, duration=seconds)


def seen(comfy, run, node):
    """The pictures that a PreviewImage or SaveImage shows, (F, H, W, 3 or 4) in BGR."""
    paths = [comfy.path(one) for one in run.outputs[node.id]["images"]]
    return np.stack([cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths])


def test_faces_of_pictures(comfy, portrait_clip):
    g = Graph()
    found = find(g, loaded(g, portrait_clip), preview_frame=7)
    crops, preview = g.node("PreviewImage", images=found), g.node("PreviewImage", images=found[2])
    run = comfy.queue(g).check()
    assert seen(comfy, run, crops).shape == (20, SIDE, SIDE, 3)
    told = run.outputs[found.id]["latentsync_faces"][0]
    assert (told["frame"], told["width"], told["height"], told["chosen"]) == (7, 320, 280, 0)
    assert [face["index"] for face in told["faces"]] == [0]
    x0, y0, x1, y1 = told["faces"][0]["box"]
    assert 0 <= x0 < x1 <= 320
    assert 0 <= y0 < y1 <= 280
    plain = cv2.imread(str(comfy.path(told["image"]))).astype(int)
    boxed = seen(comfy, run, preview)[0].astype(int)
    drawn = np.abs(plain - boxed).max(-1) > 60
    assert drawn[round(y1), round(x0) + 5 : round(x1) - 5].all()
    assert not drawn[round(y0) + 5 : round(y1) - 5, round(x0) + 5 : round(x1) - 5].any()
    lines = run.stages()[found.id]
    assert lines[0].startswith("finding faces: 1 of 20")
    assert lines[-1] == "cropping: 20 of 20"


def test_a_video_gives_the_same_faces_as_its_pictures(comfy, portrait_clip):
    g = Graph()
    video = g.node("LoadVideo", file=portrait_clip)
    shown = [
        g.node("PreviewImage", images=find(g, images)) for images in (video, g.node("GetVideoComponents", video=video))
    ]
    run = comfy.queue(g).check()
    streamed, pictures = (seen(comfy, run, node).astype(int) for node in shown)
    assert streamed.shape == pictures.shape
    assert np.abs(streamed - pictures).mean() < 3  # two ways from YUV to RGB


def test_two_people_and_a_choice(comfy, media):
    g = Graph()
    image = g.node("LoadImage", image=comfy.put(media / "stills" / "two_faces_800x532.jpg"))
    found = {face: find(g, image, face=face) for face in ("left", "right", "1")}
    for node in found.values():
        g.node("PreviewImage", images=node)
    run = comfy.queue(g).check()
    told = {face: run.outputs[node.id]["latentsync_faces"][0] for face, node in found.items()}
    assert [face["index"] for face in told["left"]["faces"]] == [0, 1]
    assert [told[face]["chosen"] for face in found] == [0, 1, 1]
    left, right = (face["box"] for face in told["left"]["faces"])
    assert left[2] < right[0]
    point = f"{(right[0] + right[2]) / 2:.0f},{(right[1] + right[3]) / 2:.0f},0"
    g = Graph()
    node = find(g, g.node("LoadImage", image="two_faces_800x532.jpg"), face=point)
    g.node("PreviewImage", images=node)
    assert comfy.queue(g).check().outputs[node.id]["latentsync_faces"][0]["chosen"] == 1


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_new_mouths_and_nothing_else(comfy, portrait_clip, scale):
    """The crops come back inverted: what is outside the mask is still identical, alpha too."""
    g = Graph()
    images = loaded(g, portrait_clip)
    found = find(g, images)
    see_through = transparent(g, images)
    larger = g.node("ImageScaleBy", image=found, upscale_method="bicubic", scale_by=scale)
    made = composite(g, see_through, g.node("ImageInvert", image=larger), found[1])
    mask = g.node("PreviewImage", images=g.node("MaskToImage", mask=made[1]))
    before, after = (
        g.node("SaveImage", images=see_through, filename_prefix="a"),
        g.node("SaveImage", images=made, filename_prefix="b"),
    )
    run = comfy.queue(g).check()
    masks = seen(comfy, run, mask)[..., 0]
    source, result = (seen(comfy, run, node) for node in (before, after))
    assert source.shape == result.shape == (20, 280, 320, 4)
    assert np.array_equal(source[..., 3], result[..., 3])
    assert source[0, 0, 0, 3] == pytest.approx(255 * 0.75, abs=1)
    changed = (source != result).any(-1)
    outside = masks == 0
    assert outside.mean() > 0.5
    # PNG previews know 255 steps of the mask, and a weight below one of them moves a pixel by one
    assert np.abs(source.astype(int) - result)[outside].max() <= 1
    assert changed[masks > 200].mean() > 0.9
    assert run.stages()[made.id][-1] == "pasting: 20 of 20"


@pytest.mark.parametrize(
    ("fit", "seconds", "frames", "lasts"),
    [
        ("pingpong", 1.3, 33, 1.3),
        ("loop", 1.3, 33, 1.3),
        ("hold", 0.5, 13, 0.5),
        ("trim", 1.3, 20, 0.8),
        ("trim", 0.5, 13, 0.52),
        ("silence", 0.5, 20, 0.8),
        ("silence", 1.3, 20, 0.8),
    ],
)
def test_one_length(comfy, portrait_clip, voice, fit, seconds, frames, lasts):
    g = Graph()
    parts = loaded(g, portrait_clip)
    found = find(g, parts)
    fit_node = fitted(g, parts, seconds_of(g, g.node("LoadAudio", audio=voice), seconds), fit, found)
    pictures, crops = g.node("PreviewImage", images=fit_node), g.node("PreviewImage", images=fit_node[2])
    sound = g.node("SaveAudio", audio=fit_node[1], filename_prefix="fit")
    made = g.node("PreviewImage", images=composite(g, fit_node, fit_node[2], fit_node[3]))
    run = comfy.queue(g).check()
    assert len(seen(comfy, run, pictures)) == len(seen(comfy, run, crops)) == len(seen(comfy, run, made)) == frames
    with av.open(str(comfy.path(run.outputs[sound.id]["audio"][0]))) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
        assert samples == round(lasts * container.streams.audio[0].sample_rate)


def test_one_picture_lasts_as_long_as_the_sound(comfy, media, voice):
    g = Graph()
    image = g.node("LoadImage", image=comfy.put(media / "stills" / "two_faces_800x532.jpg"))
    found = find(g, image)
    sound = g.node("LoadAudio", audio=voice)
    fit = fitted(g, image, sound, "silence", found, fps=10.0)
    crops = g.node("PreviewImage", images=fit[2])
    assert len(seen(comfy, comfy.queue(g).check(), crops)) == math.ceil(10 * audio_duration(VOICE))


def test_other_sound_finds_no_faces_again(comfy, portrait_clip, voice):
    g = Graph()
    parts = loaded(g, portrait_clip)
    found = find(g, parts, face="left")
    sound = seconds_of(g, g.node("LoadAudio", audio=voice), 1.0)
    fit = fitted(g, parts, sound, "pingpong", found)
    g.node("PreviewImage", images=composite(g, fit, fit[2], fit[3]))
    assert "LatentSyncFindFaces" in comfy.queue(g).check().ran_kinds()
    again = comfy.queue(g.changed(sound, duration=1.2)).check()
    assert "LatentSyncFindFaces" not in again.ran_kinds()
    assert {"LatentSyncFitLength", "LatentSyncComposite"} <= set(again.ran_kinds())


def no_size(g, parts):
    return find(g, parts, resolution=0)


def no_frame(g, parts):
    return find(g, parts, preview_frame=20)


def no_such_face(g, parts):
    return find(g, parts, face="7")


def nobody(g, parts):
    return find(g, g.node("EmptyImage", width=64, height=64, batch_size=1, color=0))


def no_rate(g, parts):
    return fitted(g, parts, parts[1], "loop", fps=g.node("PrimitiveFloat", value=0.0))


def half_a_face(g, parts):
    return fitted(g, parts, parts[1], "loop", crops=find(g, parts))


def fewer_pictures(g, parts):
    found = find(g, parts)
    return composite(g, g.node("ImageFromBatch", image=parts, batch_index=0, length=8), found, found[1])


def other_size(g, parts):
    found = find(g, parts)
    return composite(g, g.node("ImageScaleBy", image=parts, upscale_method="area", scale_by=0.5), found, found[1])


def fewer_crops(g, parts):
    found = find(g, parts)
    return composite(g, parts, g.node("ImageFromBatch", image=found, batch_index=0, length=8), found[1])


def oblong_crops(g, parts):
    found = find(g, parts)
    crops = g.node("ImageScale", image=found, upscale_method="area", width=160, height=128, crop="disabled")
    return composite(g, parts, crops, found[1])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (no_size, "The size of the crops is not known; connect the MODEL"),
        (no_frame, "preview_frame is 20 and the frames are 0 to 19"),
        (no_such_face, "There is no face '7'"),
        (nobody, "No face was found"),
        (no_rate, "The frame rate is 0 and must be above 0, at most 1000; connect the fps output"),
        (half_a_face, "crops is connected and face_track is not"),
        (fewer_pictures, "There are 8 images and the FACE_TRACK has 20 frames"),
        (other_size, "The images are 160×140 px and the face was found in 320×280 px"),
        (fewer_crops, "There are 8 crops and the FACE_TRACK has 20 frames"),
        (oblong_crops, "The crops are 160×128 px and must be square"),
    ],
)
def test_what_cannot_be_is_one_sentence(comfy, portrait_clip, wrong, words):
    g = Graph()
    node = wrong(g, loaded(g, portrait_clip))
    g.node("PreviewImage", images=node)
    run = comfy.queue(g)
    assert run.status == "error"
    assert run.failure.node == node.id
    assert words in run.failure.message
