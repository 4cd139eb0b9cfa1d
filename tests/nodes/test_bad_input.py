"""What users and other people's nodes may hand us: each gets one sentence on the node before anything is sampled."""

import os
import shutil
import urllib.error
import urllib.parse
import wave

import cv2
import numpy as np
import pytest

from .clips import portrait
from .graphs import Graph
from .parts import QUICK, condition, find, fit, in_one, loaded, loader, parts, save, streamed

SAMPLING = ("sampling", "painting")


@pytest.fixture(scope="module")
def clip(comfy, tmp_path_factory):
    """In the input folder: six frames of a portrait, 320 x 280, with the sample voice."""
    return comfy.put(portrait(tmp_path_factory.mktemp("clips") / "six.mp4", 6))


def left_behind(comfy):
    """What a run may not leave: FindFaces' picture for the browser stays, as PreviewImage's does."""
    return {file for file in comfy.files() if not file.endswith((".jpg", ".png"))}


def refused(comfy, graph, kind, *words):
    """The run of a graph that ends on a node of that class with one sentence that has these words in it."""
    before = left_behind(comfy)
    run = comfy.queue(graph)
    assert run.status == "error", f"{run.status} {run.refusals}"
    assert run.failure.kind == kind, run.failure
    assert run.failure.exception in ("UserError", "NoFaceError"), run.failure
    said = run.failure.message
    assert said.endswith(".")
    assert "\n" not in said
    assert len(said) < 500
    assert "latentsync_" not in said.replace("latentsync_unet", ""), "the name of a file that nobody knows"
    for word in words:
        assert word in said, said
    assert not [text for _, text in run.texts if text.startswith(SAMPLING)]
    assert not run.previews
    assert left_behind(comfy) <= before
    assert comfy.idle()
    return run


def shown(g, value):
    g.node("PreviewAny", source=value)
    return g


def odd_audio(g, **inputs):
    """Noise, mono at 16 kHz, a little longer than the clip."""
    usual = {"batch": 1, "channels": 1, "rate": 16000, "samples": 6000, "loudness": 0.1}
    return g.node("OddAudio", **usual | inputs)


def other_size(g, crops, side=256, height=None):
    return g.node("ImageScale", image=crops, upscale_method="area", width=side, height=height or side, crop="disabled")


def first(g, images, count):
    return g.node("ImageFromBatch", image=images, batch_index=0, length=count)


# frame rates


@pytest.mark.parametrize(("value", "reason"), [(0, "smaller than min"), (-25, "smaller than min"), (None, "convert")])
def test_frame_rates_that_cannot_be_typed(comfy, clip, value, reason):
    """ComfyUI itself refuses what is outside the range that the node states."""
    run = comfy.queue(parts(clip, fit={"fps": value}))
    assert run.status == "refused"
    assert reason in run.refusals["fit"]
    assert "fps" in run.refusals["fit"]


@pytest.mark.parametrize("value", [0.0, -3.0, float("nan"), 1e9])
@pytest.mark.parametrize(("node", "kind"), [("fit", "LatentSyncFitLength"), ("condition", "LatentSyncCondition")])
def test_frame_rates_that_come_by_wire(comfy, clip, value, node, kind):
    """These are checked by nobody but us."""
    g = parts(clip)
    g = g.changed(node, fps=g.node("PrimitiveFloat", value=value))
    refused(comfy, g, kind, f"The frame rate is {value:g}", "must be above 0, at most 1000", "connect the fps output")


def test_a_frame_rate_of_zero_in_one_node_and_in_the_score(comfy, clip):
    """The one node says so before it looks for faces."""
    g = Graph()
    source = loaded(g, clip)
    zero = g.node("PrimitiveFloat", value=0.0)
    shown(g, in_one(g, source, source[1], fps=zero))
    assert not refused(comfy, g, "LatentSyncLipSync", "The frame rate is 0").texts
    g = Graph()
    source = loaded(g, clip)
    zero = g.node("PrimitiveFloat", value=0.0)
    g.node("LatentSyncScore", images=source, audio=source[1], fps=zero, face="largest")
    refused(comfy, g, "LatentSyncScore", "The frame rate is 0")


# pictures


def test_alpha_is_kept_bit_for_bit(comfy, clip):
    g = Graph()
    source = loaded(g, clip)
    cv2.imwrite(str(comfy.input / "ramp.png"), np.tile(np.linspace(0, 255, 320).astype(np.uint8), (280, 1)))
    ramp = g.node("LoadImage", image="ramp.png")
    masks = g.node("ImageToMask", image=g.node("RepeatImageBatch", image=ramp, amount=6), channel="red")
    clear = g.node("JoinImageWithAlpha", image=source, alpha=masks)
    given = g.node("PreviewImage", images=clear)
    made = g.node("PreviewImage", images=in_one(g, clear, source[1], steps=1, fit="silence"))
    run = comfy.queue(g).check()
    before, after = (pictures(comfy, run, node) for node in (given, made))
    assert before.shape == after.shape == (6, 280, 320, 4)
    assert np.ptp(before[..., 3]) > 100
    assert (before[..., 3] == after[..., 3]).all()
    changed = (before != after).any(-1)
    assert 0.01 < changed.mean() < 0.5


def pictures(comfy, run, node):
    paths = [comfy.path(one) for one in run.outputs[node.id]["images"]]
    return np.stack([cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in paths])


def test_pixels_that_are_no_numbers(comfy, clip):
    g = Graph()
    shown(g, find(g, g.node("OddImage", image=loaded(g, clip)), resolution=192))
    refused(comfy, g, "LatentSyncFindFaces", "Frame 5 of images", "NaN")


def test_no_face(comfy):
    g = Graph()
    black = g.node("EmptyImage", width=96, height=96, batch_size=3, color=0)
    shown(g, find(g, black, resolution=192))
    refused(comfy, g, "LatentSyncFindFaces", "No face was found in any of the 3 frames")
    g = Graph()
    black = g.node("EmptyImage", width=96, height=96, batch_size=3, color=0)
    save(g, streamed(g, g.node("CreateVideo", images=black, fps=25.0), audio=odd_audio(g)))
    refused(comfy, g, "LatentSyncVideo", "No face was found in any of the 3 frames")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"face": "7"}, ("no face '7'", "115 px high")),
        ({"face": "the tall one"}, ("face is 'the tall one'; it must be", '"largest", "left", "right"')),
        ({"face": "3,3,0"}, ("No face near the point (3, 3) in frame 0",)),
        ({"preview_frame": 6}, ("preview_frame is 6", "0 to 5")),
        ({"resolution": 0}, ("size of the crops is not known", "192 for nano")),
    ],
)
def test_what_is_asked_of_find_faces(comfy, clip, inputs, words):
    g = Graph()
    shown(g, find(g, loaded(g, clip), **{"resolution": 192} | inputs))
    refused(comfy, g, "LatentSyncFindFaces", *words)


# sound


@pytest.mark.parametrize(
    ("sound", "words"),
    [
        ({"batch": 2}, ("2 recordings in a batch",)),
        ({"samples": 1000}, ("lasts 0.0625 s", "at least 0.15 s")),
        ({"samples": 0}, ("AUDIO is empty",)),
        ({"rate": 0}, ("0 samples per second",)),
        ({"loudness": float("nan")}, ("NaN",)),
    ],
)
def test_sound_that_cannot_be_used(comfy, clip, sound, words):
    g = Graph()
    shown(g, g.node("LatentSyncEncodeAudio", audio_encoder=loader(g)[2], audio=odd_audio(g, **sound)))
    refused(comfy, g, "LatentSyncEncodeAudio", *words)
    g = Graph()
    save(g, streamed(g, g.node("LoadVideo", file=clip), audio=odd_audio(g, **sound)))
    refused(comfy, g, "LatentSyncVideo", *words)


def test_a_silent_piece_stops_nothing(comfy, clip):
    """A pause between two pieces of a dubbed film is a piece as well."""
    g = Graph()
    silence = odd_audio(g, loudness=0.0)
    save(g, streamed(g, g.node("LoadVideo", file=clip), audio=silence, steps=1))
    shown(g, in_one(g, loaded(g, clip), silence, steps=1))
    comfy.queue(g).check()
    assert "the speech is silent" in comfy.log


def test_two_recordings_in_one_node(comfy, clip):
    g = Graph()
    shown(g, in_one(g, loaded(g, clip), odd_audio(g, batch=2)))
    refused(comfy, g, "LatentSyncLipSync", "2 recordings in a batch")


@pytest.mark.parametrize(("channels", "rate"), [(1, 8000), (1, 44100), (6, 48000), (2, 96000)])
def test_any_rate_and_number_of_channels(comfy, channels, rate):
    name = f"noise_{channels}_{rate}.wav"
    write_noise(comfy.input / name, channels, rate)
    g = Graph()
    heard = g.node("LatentSyncEncodeAudio", audio_encoder=loader(g)[2], audio=g.node("LoadAudio", audio=name))
    run = comfy.queue(shown(g, heard)).check()
    assert "'audio_samples': 8000" in run.shown("PreviewAny", "text")[0]


def write_noise(path, channels, rate):
    """Half a second."""
    samples = np.random.default_rng(0).integers(-9000, 9000, (rate // 2, channels)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def test_a_video_without_sound_and_no_other(comfy, clip):
    g = Graph()
    save(g, streamed(g, g.node("CreateVideo", images=loaded(g, clip), fps=25.0)))
    refused(comfy, g, "LatentSyncVideo", "no sound of its own", "connect a recording of speech")
    g = Graph()
    save(g, streamed(g, first(g, loaded(g, clip), 1)))
    refused(comfy, g, "LatentSyncVideo", "A picture has no sound")


def test_pictures_are_no_video(comfy, clip):
    g = Graph()
    save(g, streamed(g, loaded(g, clip), audio=odd_audio(g)))
    refused(comfy, g, "LatentSyncVideo", "got 6 images", "Create Video")


# things that do not belong together


COMPOSITES = {
    "fewer pictures": (
        lambda g, p, c, t: (first(g, p, 4), c, t),
        ("4 images and the FACE_TRACK has 6 frames", "connect both from the same"),
    ),
    "larger pictures": (
        lambda g, p, c, t: (other_size(g, p, 330, 280), c, t),
        ("330×280", "the face was found in 320×280", "connect the images"),
    ),
    "fewer crops": (lambda g, p, c, t: (p, first(g, c, 3), t), ("3 crops and the FACE_TRACK has 6 frames",)),
    "crops out of shape": (lambda g, p, c, t: (p, other_size(g, c, 128, 192), t), ("128×192", "must be square")),
    "another pack's": (lambda g, p, c, t: (p, c, g.node("OddTrack")), ("face_track is a list",)),
}


@pytest.mark.parametrize("case", COMPOSITES)
def test_a_face_track_of_another_clip(comfy, clip, case):
    swap, words = COMPOSITES[case]
    g = Graph()
    source = loaded(g, clip)
    found = find(g, source, resolution=192)
    images, crops, track = swap(g, source, found, found[1])
    made = g.node("LatentSyncComposite", images=images, crops=crops, face_track=track)
    refused(comfy, shown(g, made), "LatentSyncComposite", *words)


def test_fit_length_wants_both_or_none(comfy, clip):
    g = Graph()
    source = loaded(g, clip)
    fitted = fit(g, source, source[1], find(g, source, resolution=192))
    del g.prompt["fit"]["inputs"]["face_track"]
    refused(comfy, shown(g, fitted), "LatentSyncFitLength", "crops is connected and face_track is not")


def sampled(clip, **swap):
    """The parts up to the sampler; swap: name of a value → what comes instead, given the graph and the value."""

    def use(name, value):
        return swap[name](g, value) if name in swap else value

    g = Graph()
    model = loader(g)
    found = find(g, loaded(g, clip), model=model) if "find" not in swap else swap["find"](g, loaded(g, clip))
    heard = g.node("LatentSyncEncodeAudio", audio_encoder=model[2], audio=odd_audio(g))
    wired = use("vae", model[1]), use("crops", found), use("heard", heard), use("track", found[1])
    asked = condition(g, *wired, fps=swap.get("fps", 25.0))
    wired = {
        "model": use("model", model[0]),
        "positive": use("positive", asked[0]),
        "negative": use("negative", asked[1]),
    }
    if swap.get("stock"):
        how = {"sampler_name": "ddim", "scheduler": "ddim_uniform", "cfg": 2.0, "denoise": 1.0}
        made = g.node("KSampler", latent_image=use("latent", asked[2]), seed=1, steps=2, **how, **wired)
    else:
        made = g.node("LatentSyncSampler", latent=use("latent", asked[2]), **wired, **QUICK)
    return shown(g, made)


def alien(g, _):
    return g.node("OddModel")[1]


CONDITIONS = {
    "scaled crops": ({"crops": other_size}, ("256×256", "192 px", "connect the crops as Find Faces gives them")),
    "fewer crops": ({"crops": lambda g, c: first(g, c, 3)}, ("3 crops and the FACE_TRACK has 6 frames",)),
    "another pack's track": ({"track": lambda g, _: g.node("OddTrack")}, ("face_track is a list",)),
    "shorter sound": (
        {"heard": lambda g, _: g.node("OddHearing", layers=5, width=384, samples=4000)[1], "fps": 10.0},
        ("audio lasts 0.25 s", "6 frames at 10 fps 0.60 s", "Fit Length"),
    ),
    "no layers": (
        {"heard": lambda g, _: g.node("OddHearing", layers=0, width=384, samples=16000)[1]},
        ("AUDIO_ENCODER_OUTPUT does not hold all layers",),
    ),
}
SAMPLERS = {
    "crops for another model": (
        {"find": lambda g, images: find(g, images, resolution=256)},
        ("crops are 256 px wide and the model takes 192 px", "connect the MODEL to LatentSync: Find Faces"),
    ),
    "a VAE of other channels": (
        {"vae": lambda g, _: g.node("VAELoader", vae_name="pixel_space")},
        ("VAE gave latents with 3 channels and the model takes 4",),
    ),
    "another encoder's speech": (
        {"heard": lambda g, _: g.node("OddHearing", layers=25, width=1024, samples=16000)[1]},
        ("1024 numbers per token and the model takes 384", "AUDIO_ENCODER"),
    ),
    "another latent": (
        {"latent": lambda g, _: g.node("EmptyLatentImage", width=256, height=256, batch_size=6)},
        ("(6, 4, 32, 32)", "(6, 4, 24, 24)"),
    ),
    "a prompt in words": ({"positive": alien}, ("CONDITIONING was not made for LatentSync",)),
    "a negative prompt in words": ({"negative": alien}, ("CONDITIONING was not made for LatentSync",)),
    "a prompt beside ours": (
        {"positive": lambda g, c: g.node("ConditioningCombine", conditioning_1=c, conditioning_2=alien(g, c))},
        ("CONDITIONING was not made for LatentSync",),
    ),
    "Stable Diffusion": (
        {"model": lambda g, _: g.node("OddModel")},
        ("MODEL is a BaseModel", "connect that of LatentSync: Load Model"),
    ),
}
STOCK = [case for case in SAMPLERS if case not in ("Stable Diffusion", "another latent")]
"""What the stock sampler hands on to our MODEL; it mends the channels of an empty latent by itself."""


@pytest.mark.parametrize("case", CONDITIONS)
def test_what_does_not_go_into_a_condition(comfy, clip, case):
    swap, words = CONDITIONS[case]
    refused(comfy, sampled(clip, **swap), "LatentSyncCondition", *words)


@pytest.mark.parametrize("case", SAMPLERS)
def test_what_does_not_go_into_the_sampler(comfy, clip, case):
    swap, words = SAMPLERS[case]
    refused(comfy, sampled(clip, **swap), "LatentSyncSampler", *words)


@pytest.mark.parametrize("case", STOCK)
def test_what_does_not_go_into_the_stock_sampler(comfy, clip, case):
    swap, words = SAMPLERS[case]
    refused(comfy, sampled(clip, stock=True, **swap), "KSampler", *words)


def test_conditioning_that_stock_nodes_have_changed(comfy, clip):
    """Zero Out takes the speech out of ours, and nothing else."""
    zero = {"positive": lambda g, c: g.node("ConditioningZeroOut", conditioning=c)}
    comfy.queue(sampled(clip, **zero)).check()


def test_a_size_that_is_not_the_models(comfy, clip):
    g = Graph()
    shown(g, find(g, loaded(g, clip), model=loader(g), resolution=256))
    refused(comfy, g, "LatentSyncFindFaces", "resolution is 256 and the model takes crops of 192 px")


@pytest.mark.parametrize(
    ("name", "other", "words"),
    [
        ("model", lambda g: g.node("OddModel"), ("MODEL is a BaseModel",)),
        ("vae", lambda g: g.node("VAELoader", vae_name="pixel_space"), ("VAE has 3 latent channels", "takes 4")),
        (
            "audio_encoder",
            lambda g: g.node("OddHearing", layers=5, width=384, samples=9),
            ("not LatentSync's Whisper",),
        ),
    ],
)
def test_other_peoples_parts_in_the_streaming_node(comfy, clip, name, other, words):
    g = Graph()
    save(g, streamed(g, g.node("LoadVideo", file=clip), **{name: other(g)}))
    refused(comfy, g, "LatentSyncVideo", *words)


# files


@pytest.mark.parametrize("name", ["1.5", "1.6"])
def test_a_checkpoint_that_is_not_there(comfy, name):
    g = Graph()
    words = (f"LatentSync {name}", "5.07 GB", f"Download Model with the name {name}", "https://")
    refused(comfy, shown(g, loader(g, name)), "LatentSyncLoader", *words)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/../../../secret.safetensors", "none.pt"])
def test_a_checkpoint_elsewhere(comfy, clip, name):
    shutil.copyfile(comfy.input / clip, comfy.models / "secret.safetensors")
    g = Graph()
    run = comfy.queue(shown(g, loader(g, name)))
    if run.status != "refused":  # newer ComfyUI checks the list itself
        assert run.failure.message.startswith(f"There is no {name} in models/latentsync")


@pytest.mark.parametrize(
    ("content", "word"), [(b"", "is an empty file"), (b"what?", "is a text file"), (bytes(range(256)) * 9, "model")]
)
def test_files_that_are_no_checkpoint(comfy, content, word):
    folder = comfy.models / "latentsync"
    folder.mkdir(exist_ok=True)
    path = folder / f"no_checkpoint_{len(content)}.safetensors"
    path.write_bytes(content)
    g = Graph()
    refused(comfy, shown(g, loader(g, path.name)), "LatentSyncLoader", path.name, word)


def test_a_video_that_cannot_be_read(comfy):
    (comfy.input / "broken.mp4").write_bytes(bytes(1000))
    g = Graph()
    save(g, streamed(g, g.node("LoadVideo", file="broken.mp4")))
    refused(comfy, g, "LatentSyncVideo", "broken.mp4 cannot be read as", "give a file that plays")
    g = Graph()
    shown(g, find(g, g.node("LoadVideo", file="broken.mp4"), resolution=192))
    refused(comfy, g, "LatentSyncFindFaces", "broken.mp4 cannot be read as a video")


@pytest.mark.parametrize(
    ("prefix", "word"),
    [
        ("../../gone", "not inside the output folder"),
        ("/nowhere/video", "not inside the output folder"),
        ("a\0b", "plain characters"),
        ("a\nb", "plain characters"),
        ("", "1 to 200"),
        ("long" * 60, "1 to 200"),
    ],
)
def test_output_names(comfy, clip, prefix, word):
    g = Graph()
    save(g, streamed(g, g.node("LoadVideo", file=clip), save_to="output", filename_prefix=prefix))
    refused(comfy, g, "LatentSyncVideo", "filename_prefix is", word)
    assert not list(comfy.base.rglob("*gone*"))


@pytest.fixture(scope="module")
def secret(comfy, clip):
    """A video beside the input folder, and two links to it from inside."""
    path = comfy.base / "secret.mp4"
    shutil.copyfile(comfy.input / clip, path)
    (comfy.input / "link.mp4").symlink_to(path)
    (comfy.input / "links").symlink_to(comfy.base, target_is_directory=True)
    return path


def asked(comfy, route, query):
    """Status and body of an answer of our routes."""
    try:
        return 200, comfy.fetch(f"/latentsync/{route}?{query}")
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize("route", ["frame", "faces"])
def test_routes_stay_in_their_folders(comfy, clip, secret, route):
    whole = urllib.parse.quote(str(secret))
    outside = [
        "../secret.mp4", "..%2fsecret.mp4", "%2e%2e/secret.mp4", "..%5csecret.mp4", whole, f"/{whole}", "~/secret.mp4",
        "../secret.mp4%20[output]", "../secret.mp4%20[temp]", f"{whole}%20[input]", f"../input/{clip}%20[output]",
        "link.mp4", "links/secret.mp4", "links/../secret.mp4", "....//secret.mp4", "secret.mp4",
    ]  # fmt: skip
    for name in outside:
        status, said = asked(comfy, route, f"file={name}")
        assert (status, b" is outside " in said or b"There is no file" in said) == (400, True), (name, said)
        assert str(comfy.base).encode() not in said.replace(urllib.parse.unquote(name).encode(), b""), said
    assert asked(comfy, route, f"file={clip}")[0] == 200


@pytest.mark.parametrize("route", ["frame", "faces"])
@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("", "names no file"),
        ("file=", "names no file"),
        ("file=a%00b", "names no file"),
        ("file=.", "no file"),
        ("file=" + "x" * 300, "no file"),
        ("file=broken.mp4", "broken.mp4 cannot be read"),
        ("file=six.mp4&frame=6", "from 0 to 5"),
        ("file=six.mp4&frame=-1", "from 0 to 5"),
        ("file=six.mp4&frame=1e3", "whole number"),
    ],
)
def test_what_routes_cannot_answer(comfy, clip, route, query, word):
    (comfy.input / "broken.mp4").write_bytes(os.urandom(1000))
    status, said = asked(comfy, route, query)
    assert status == 400
    assert word in said.decode()
    assert str(comfy.base) not in said.decode()


def test_the_server_still_works(comfy, clip):
    comfy.queue(parts(clip, sample={"steps": 1})).check()
