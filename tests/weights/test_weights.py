"""Recognising, loading, converting and saving weight files: good ones, wrong ones and hostile ones."""

import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from latentsync.errors import UserError
from latentsync.models.unet import UNet
from latentsync.models.unet_config import UNetConfig
from latentsync.settings import GUIDANCE, STEPS, Settings
from latentsync.weights import files as checkpoint
from latentsync.weights import identify as identifying
from latentsync.weights import registry
from latentsync.weights.convert import convert, save_model
from latentsync.weights.files import mismatch, read_header, read_tensors, write_safetensors
from latentsync.weights.identify import check_is_unet, identify
from latentsync.weights.load import default_settings, load_state, load_unet
from latentsync.weights.registry import find

STAGES = {
    "unet_stage1": ("none", "stage 1 (no motion modules), 850.0 M numbers"),
    "unet_stage2": ("all", "stage 2 (motion modules at all levels), 1267.9 M numbers"),
    "unet_stage2_efficient": ("decoder", "stage 2 efficient (motion modules in the decoder only), 1100.8 M numbers"),
}
SMALL = UNetConfig(widths=(32, 64), layers=1, cross=(True, False), audio_dim=32, motion="all")


def manifest(spec, name):
    shapes = json.loads((spec / "manifests" / f"{name}.json").read_text())
    return {key: tuple(shape) for key, shape in shapes.items()}


def zeros(shapes):
    """Full-size fp16 tensors that take no memory, nor room in a .pt file."""
    zero = torch.zeros(1, dtype=torch.float16)
    return {key: zero.expand(shape) if shape else zero[0] for key, shape in shapes.items()}


def small_state(config=SMALL):
    torch.manual_seed(0)
    return UNet(config).state_dict()


def problem_of(path):
    info = identify(path)
    with pytest.raises(UserError) as caught:
        check_is_unet(info)
    text = str(caught.value)
    with pytest.raises(UserError, match=re.escape(text)):
        load_unet(path)
    assert "\n" not in text
    assert str(path) in text
    return text


# The published checkpoints, by their keys


@pytest.mark.parametrize("name", STAGES)
def test_a_checkpoint_with_the_published_keys_loads_strictly_and_is_named(spec, tmp_path, name):
    motion, title = STAGES[name]
    path = tmp_path / "latentsync_unet.pt"
    torch.save({"global_step": 1, "state_dict": zeros(manifest(spec, name))}, path)
    info = identify(path)
    assert (info.kind, info.motion, info.problem) == ("unet", motion, None)
    assert title in info.title
    unet = load_unet(path, dtype=torch.float16, resolution=256)
    assert unet.config.resolution == 256
    assert unet.config.prediction_type == "epsilon"
    assert not unet.training
    assert {k: tuple(v.shape) for k, v in unet.state_dict().items()} == manifest(spec, name)


def test_a_full_size_safetensors_file_loads_without_being_read_into_memory(spec, tmp_path):
    path, shapes = tmp_path / "unet.safetensors", manifest(spec, "unet_stage2")
    entries, end = {}, 0
    for key, shape in shapes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        entries[key] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)  # a hole: no room on the disk
    unet = load_unet(path, dtype=torch.float16)
    assert identify(path).parameters == 1_267_944_644
    assert not unet.conv_in.weight.any()


EDITS = {
    "missing": lambda s, k: s.pop(k),
    "renamed": lambda s, k: s.update({f"{k}_x": s.pop(k)}),
    "unexpected": lambda s, k: s.update({"something.else": (1,)}),
    "longer": lambda s, k: s.update({k: (s[k][0] + 32, *s[k][1:])}),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name", STAGES)
def test_one_wrong_tensor_is_named_itself(spec, tmp_path, name, edit):
    shapes = manifest(spec, name)
    picked = [
        "conv_in.weight",
        "conv_out.weight",
        "down_blocks.1.resnets.0.conv1.weight",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
        list(shapes)[len(shapes) * 2 // 3],
    ]
    for key in picked[:: 1 if edit == "longer" and name == "unet_stage2" else 4]:
        changed = dict(shapes)
        EDITS[edit](changed, key)
        path = tmp_path / "bad.pt"
        torch.save({"state_dict": zeros(changed)}, path)
        text = str(identify(path).problem)
        assert ("something.else" if edit == "unexpected" else key) in text
        assert "more" not in text
        if edit == "longer":
            assert "of another shape" in text
            assert text.count(" where ") == 1


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_one_wrong_tensor_of_a_small_unet_is_named(data):
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in UNet(SMALL).state_dict().items()}
    key = data.draw(st.sampled_from(sorted(shapes)))
    edit = data.draw(st.sampled_from(["missing", "renamed", "longer"]))
    changed = dict(shapes)
    EDITS[edit](changed, key)
    problem = identifying._fit(changed)[1]
    assert key in problem
    assert len(problem) < 400


@pytest.mark.parametrize("edit", ["missing", "renamed", "longer"])
@pytest.mark.parametrize(
    "key",
    [
        "conv_in.weight",
        "conv_out.weight",
        "conv_out.bias",
        "down_blocks.0.resnets.0.conv1.weight",
        "down_blocks.1.resnets.0.conv1.weight",
        "down_blocks.1.resnets.0.conv2.weight",
        "down_blocks.0.attentions.0.proj_in.weight",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
    ],
)
def test_so_is_one_that_the_architecture_is_read_from(key, edit):
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in UNet(SMALL).state_dict().items()}
    EDITS[edit](shapes, key)
    problem = identifying._fit(shapes)[1]
    assert key in problem
    assert problem.count(" where ") == (edit == "longer")


def test_five_names_are_enough():
    text = mismatch({str(i): (1,) for i in range(8)}, {})
    assert text == "missing: 0, 1, 2, 3, 4 and 3 more"
    assert mismatch({"a": (1, 2), "b": ()}, {"a": (2, 1), "b": (), "c": (1,)}) == (
        "not known: c; of another shape: a is 2×1 where 1×2 is needed"
    )


def test_load_state_takes_meta_tensors_and_is_strict(spec):
    shapes = manifest(spec, "unet_stage2_efficient")
    with torch.device("meta"):
        unet = UNet(UNetConfig(motion="decoder"))
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
    load_state(unet, state)
    del state["conv_norm_out.bias"]
    with pytest.raises(UserError, match=r"missing: conv_norm_out\.bias"):
        load_state(unet, state)


# Loading


@pytest.mark.parametrize("folder", ["unet_motion", "unet_plain"])
def test_the_golden_checkpoints_load_and_run(golden_portable, folder):
    unet = load_unet(golden_portable / folder / "latentsync_unet.pt")
    assert unet.config.motion == ("all" if folder == "unet_motion" else "none")
    assert unet.config.resolution == 0
    assert "resolution not recorded" in identify(golden_portable / folder / "latentsync_unet.pt").title
    with torch.inference_mode():
        out = unet(torch.zeros(1, 13, 2, 8, 8), 1.0, torch.zeros(1, 2, 50, 384))
    assert out.shape == (1, 4, 2, 8, 8)


@pytest.mark.parametrize("prefix", ["", "module.", "model.diffusion_model.", "diffusion_model."])
@pytest.mark.parametrize("form", ["pt", "legacy", "bare", "safetensors"])
def test_every_container_gives_the_same_tensors(tmp_path, form, prefix):
    state = small_state()
    named = {prefix + key: tensor for key, tensor in state.items()}
    path = tmp_path / f"unet.{'safetensors' if form == 'safetensors' else 'pt'}"
    if form == "safetensors":
        save_file(named, path)
    elif form == "legacy":
        torch.save({"state_dict": named}, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(named if form == "bare" else {"global_step": 7, "state_dict": named}, path)
    loaded = load_unet(path).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_loaded_small_file_can_be_overwritten_in_place(tmp_path):
    state = small_state()
    path = tmp_path / "unet.safetensors"
    save_file(state, path)
    unet = load_unet(path)
    path.write_bytes(b"")
    assert all(torch.equal(tensor, state[key]) for key, tensor in unet.state_dict().items())


def test_tensors_that_a_foreign_writer_did_not_align(tmp_path):
    header = json.dumps(
        {
            "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
        }
    ).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\7" + struct.pack("<2f", 1.5, -2.0))
    assert read_tensors(path)["b"].tolist() == [1.5, -2.0]


# Files that are something else


def make(path, form):
    """Write a file of a kind that people give by mistake."""
    if form == "lora":
        save_file({"lora_unet_down_blocks_0.lora_up.weight": torch.zeros(2, 2)}, path)
    elif form == "sd15":
        torch.save({"state_dict": {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2, 2)}}, path)
    elif form == "sd15 diffusers":
        keys = ("down_blocks.0.resnets.0.conv1.weight", "up_blocks.0.resnets.0.conv1.weight")
        tensors = {key: torch.zeros(32, 32, 3, 3) for key in keys}
        tensors |= {"conv_in.weight": torch.zeros(32, 4, 3, 3), "conv_out.weight": torch.zeros(4, 32, 3, 3)}
        save_file(tensors, path)
    elif form == "syncnet v2":
        torch.save({"netcnnaud.0.weight": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    elif form == "syncnet":
        keys = ("audio_encoder.conv_in.weight", "visual_encoder.conv_in.weight")
        torch.save({"global_step": 1, "state_dict": {key: torch.zeros(2) for key in keys}}, path)
    elif form == "vae":
        keys = ("encoder.conv_in.weight", "decoder.conv_in.weight", "decoder.mid.block_1.conv1.weight")
        save_file({key: torch.zeros(4, 4, 3, 3) for key in keys}, path)
    elif form == "whisper":
        state = {"encoder.conv1.weight": torch.zeros(2), "encoder.positional_embedding": torch.zeros(2)}
        torch.save({"dims": {"n_mels": 80}, "model_state_dict": state}, path)
    elif form == "nothing known":
        save_file({"a.weight": torch.zeros(2)}, path)
    elif form == "no tensors":
        torch.save({"epoch": 3}, path)


@pytest.mark.parametrize(
    ("form", "kind", "words"),
    [
        ("lora", "lora", "a LoRA"),
        ("sd15", "sd15", "a Stable Diffusion checkpoint"),
        ("sd15 diffusers", "sd15", "a Stable Diffusion U-Net"),
        ("syncnet", "syncnet", "a StableSyncNet"),
        ("syncnet v2", "syncnet", "the SyncNet of Chung & Zisserman"),
        ("vae", "vae", "a Stable Diffusion VAE"),
        ("whisper", "whisper", "a Whisper model"),
        ("nothing known", "unknown", "no kind that is known"),
        ("no tensors", "unknown", "holds no named tensors"),
    ],
)
def test_other_models_are_named_for_what_they_are(tmp_path, form, kind, words):
    path = tmp_path / "latentsync_unet.pt"
    make(path, form)
    assert identify(path).kind == kind
    assert words in problem_of(path)


@pytest.mark.parametrize("name", ["syncnet_16_pixel_attn", "syncnet_16_latent", "syncnet_v2"])
def test_real_syncnets_by_their_keys(spec, tmp_path, name):
    torch.save({"state_dict": zeros(manifest(spec, name))}, tmp_path / "x.pt")
    assert identify(tmp_path / "x.pt").kind == "syncnet"


def cut(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])


JUNK = {
    "empty": (b"", "an empty file"),
    "html": (b"\xef\xbb\xbf\n <!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
    "xml error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5072348184\n", "Git LFS pointer"),
    "text": (b"not a model at all\n", "a text file"),
    "bytes": (bytes(range(1, 200)) * 9, "not a weight file"),
    "mp4": (b"\0\0\0\x20ftypisom" + bytes(100), "not a weight file"),
    "safetensors that claims too much": (struct.pack("<Q", 50_000_000) + b'{"a":', "cut off or damaged"),
    "safetensors with a broken header": (struct.pack("<Q", 20) + b'{"a":' + b"x" * 30, "damaged"),
    "safetensors with lying offsets": (
        struct.pack("<Q", 56) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}  ' + bytes(4),
        "damaged",
    ),
}


@pytest.mark.parametrize("name", JUNK)
def test_files_that_are_no_weights(tmp_path, name):
    content, words = JUNK[name]
    path = tmp_path / "latentsync_unet.pt"
    path.write_bytes(content)
    assert words in problem_of(path)


def test_folders_missing_files_zips_and_truncated_files(tmp_path):
    assert "is a folder" in problem_of(tmp_path)
    assert "There is no file" in problem_of(tmp_path / "no.pt")
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("model/readme.txt", "x")
    assert "a zip archive" in problem_of(tmp_path / "a.pt")
    for suffix, share in (("pt", 0.5), ("pt", 0.999), ("safetensors", 0.5), ("safetensors", 0.999)):
        path = tmp_path / f"unet.{suffix}"
        state = small_state()
        torch.save(state, path) if suffix == "pt" else save_file(state, path)
        assert identify(path).problem is None
        cut(path, share)
        assert "is cut off" in problem_of(path)


@given(st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_no_bytes_make_recognise_raise(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("junk") / "x.pt"
    path.write_bytes(content)
    assert identify(path).problem


@given(st.integers(0, 60_000), st.binary(min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_no_flipped_bytes_make_recognise_raise(tmp_path_factory, at, content):
    whole = _small_pt(tmp_path_factory)
    at %= len(whole)
    path = tmp_path_factory.mktemp("flipped") / "x.pt"
    path.write_bytes(whole[:at] + content + whole[at + len(content) :])
    assert identify(path).title


def _small_pt(factory, cache=[]):  # noqa: B006
    if not cache:
        path = factory.mktemp("small") / "x.pt"
        torch.save({"state_dict": {"conv_in.weight": torch.zeros(3), "b": torch.zeros(4)}}, path)
        cache.append(path.read_bytes())
    return cache[0]


class Evil:
    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return (os.mkdir, (str(self.flag),))


@pytest.mark.parametrize("form", ["zip", "in a state dict", "legacy", "pickle", "pickle protocol 0"])
def test_a_malicious_pickle_never_runs(tmp_path, form):
    flag, path = tmp_path / "it-ran", tmp_path / "latentsync_unet.pt"
    evil = Evil(flag)
    if form == "zip":
        torch.save(evil, path)
    elif form == "in a state dict":
        torch.save({"state_dict": small_state() | {"x": evil}}, path)
    elif form == "legacy":
        torch.save({"state_dict": {"x": evil}}, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(evil, protocol=0 if form.endswith("0") else None))
    text = problem_of(path)
    for reader in (read_header, read_tensors, lambda p: convert(p, tmp_path / "out.safetensors")):
        with pytest.raises(UserError):
            reader(path)
    assert not flag.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latentsync_unet.pt"]
    if form in ("zip", "in a state dict", "legacy"):
        assert "mkdir" in text
        assert "not opened" in text
    pickle.loads(pickle.dumps(evil))  # the trap does spring when it is opened the careless way
    assert flag.exists()


def test_a_pickled_module_and_a_script_are_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    assert "torch.nn.modules.linear.Linear" in problem_of(tmp_path / "module.pt")
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/constants.pkl", "x")
        archive.writestr("x/data.pkl", "x")
    assert "TorchScript" in problem_of(path)


def test_the_face_landmarker_by_size_or_name(tmp_path):
    path = tmp_path / "face_landmarker.task"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("face_detector.tflite", "x")
    assert identify(path).kind == "face_landmarker"
    assert "MediaPipe face landmarker" in problem_of(path)
    path.write_bytes(b"PK\x03\x04")
    assert "cut off" in str(identify(path).problem)


# Identity: version and resolution


def test_the_published_files_are_known_by_their_size(tmp_path, monkeypatch):
    path = tmp_path / "renamed.pt"
    torch.save({"global_step": 1, "state_dict": small_state()}, path)
    entries = [e if e.name != "1.6" else _sized(e, path.stat().st_size) for e in registry.ENTRIES]
    monkeypatch.setattr(identifying, "ENTRIES", tuple(entries))
    info = identify(path)
    assert (info.version, info.resolution, info.prediction_type) == ("1.6", 512, "epsilon")
    assert info.title.startswith("LatentSync 1.6 U-Net for 512 px, stage 2")
    with pytest.raises(UserError, match="not its SHA-256"):
        convert(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def _sized(entry, size):
    from dataclasses import replace

    return replace(entry, bytes=size)


# Converting and saving


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_convert_keeps_the_numbers_and_says_what_it_is(tmp_path, name, dtype):
    state = small_state()
    source, target = tmp_path / "unet.pt", tmp_path / "unet.safetensors"
    torch.save({"global_step": 1, "state_dict": state}, source)
    seen = []
    convert(source, target, dtype=name, resolution=512, version="1.6", on_progress=lambda d, t: seen.append((d, t)))
    assert seen[-1] == (target.stat().st_size,) * 2
    out = load_file(target)  # the library of the format reads what we wrote
    assert out.keys() == state.keys()
    assert all(torch.equal(out[key], state[key].to(dtype)) for key in state)
    with safe_open(target, "pt") as file:
        said = file.metadata()
    assert said["format"] == "latentsync"
    assert (said["kind"], said["version"], said["resolution"]) == ("unet", "1.6", "512")
    assert said["prediction_type"] == "epsilon"
    assert (said["latent_channels"], said["vae_scaling"]) == ("4", "0.18215")
    assert said["source_sha256"] == checkpoint_sha(source)
    assert json.loads(said["config"])["widths"] == [32, 64]
    info = identify(target)
    assert (info.version, info.resolution, info.problem) == ("1.6", 512, None)
    again = convert(target, tmp_path / "again.safetensors", dtype="fp32")
    assert (identify(again).version, identify(again).resolution) == ("1.6", 512)


def checkpoint_sha(path):
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_convert_refuses_and_leaves_nothing(tmp_path):
    source, target = tmp_path / "unet.pt", tmp_path / "unet.safetensors"
    torch.save(small_state() | {"conv_out.bias": torch.tensor([1.0, 2.0, 3.0, 70000.0])}, source)
    cases = [
        ({"dtype": "int8"}, target, "dtype is 'int8'"),
        ({}, tmp_path / "unet.pt2", "name the output unet.safetensors"),
        ({}, tmp_path / "no" / "unet.safetensors", "does not exist"),
        ({"dtype": "fp16"}, target, "conv_out.bias does not fit float16"),
    ]
    for options, out, words in cases:
        with pytest.raises(UserError, match=re.escape(words)):
            convert(source, out, **options)
    make(tmp_path / "lora.safetensors", "lora")
    with pytest.raises(UserError, match="a LoRA"):
        convert(tmp_path / "lora.safetensors", target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lora.safetensors", "unet.pt"]
    assert convert(source, target, dtype="bf16").exists()


def test_a_failed_write_leaves_the_old_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"a": torch.ones(3)}, {"k": "v"})
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_raw", full)
    with pytest.raises(UserError, match="No space left"):
        write_safetensors(path, {"a": torch.zeros(3)}, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=12),
        st.tuples(
            st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]),
            st.lists(st.integers(0, 4), max_size=3),
        ),
        max_size=6,
    )
)
@settings(max_examples=60, deadline=None)
def test_what_we_write_the_library_and_we_read(tmp_path_factory, spec_of):
    path = tmp_path_factory.mktemp("round") / "x.safetensors"
    spec_of.pop("__metadata__", None)
    tensors = {key: torch.ones(shape, dtype=dtype) for key, (dtype, shape) in spec_of.items()}
    write_safetensors(path, tensors, {"naïve": "ü\n"})
    for read in (load_file(path), read_tensors(path)):
        assert read.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert read[key].dtype == tensor.dtype
            assert torch.equal(read[key], tensor)
    assert read_header(path).metadata == {"naïve": "ü\n"}


def nano(tmp_path, **facts):
    state = small_state(UNetConfig((32, 64), 1, (True, False), 384, 8, "none"))
    vae = {"encoder.conv_in.weight": torch.zeros(2), "decoder.conv_in.weight": torch.zeros(2)}
    metadata = {"version": "nano", "resolution": 128, "prediction_type": "sample", "vae_scaling": 0.5} | facts
    return save_model(tmp_path / "nano.safetensors", state, vae_state=vae, metadata=metadata), state


def test_a_bundle_of_unet_and_vae(tmp_path):
    path, state = nano(tmp_path)
    info = identify(path)
    assert (info.kind, info.version, info.resolution, info.prediction_type) == ("nano", "nano", 128, "sample")
    assert info.latent_channels == 8
    assert info.title.startswith("LatentSync nano U-Net and VAE for 128 px, stage 1 (no motion modules)")
    assert info.metadata["vae_scaling"] == "0.5"
    unet = load_unet(path)
    assert all(torch.equal(tensor, state[key]) for key, tensor in unet.state_dict().items())
    half = convert(path, tmp_path / "half.safetensors")
    assert identify(half).metadata["vae_scaling"] == "0.5"
    assert {k.split(".")[0] for k in read_header(half).shapes} == {"unet", "vae"}


def test_the_prediction_type_is_one_of_three(tmp_path):
    with pytest.raises(UserError, match="epsilon, sample, v_prediction"):
        nano(tmp_path, prediction_type="x0")
    assert list(tmp_path.iterdir()) == []


def test_the_built_in_model_is_whole():
    if not (registry.ASSETS / registry.NANO_FILE).is_file():
        pytest.skip("the built-in model is not trained yet")
    info = identify(find("nano"))
    assert (info.kind, info.version) == ("nano", "nano")
    assert info.resolution
    assert info.bytes <= 24_000_000


@pytest.mark.parametrize(
    ("said", "steps", "guidance"),
    [
        ({}, STEPS, GUIDANCE),
        ({"default_steps": 3}, 3, GUIDANCE),
        ({"default_steps": 3, "default_guidance": 1.0}, 3, 1.0),
        ({"usual_steps": 3, "usual_guidance": 1.0}, 3, 1.0),  # as files of the first version spell it
    ],
)
def test_a_file_may_say_which_steps_and_guidance_suit_it(tmp_path, said, steps, guidance):
    path = save_model(tmp_path / "own.safetensors", small_state(), metadata=said)
    assert default_settings(path) == Settings(steps=steps, guidance=guidance)
    config = load_unet(path).config
    assert (config.default_steps, config.default_guidance) == (steps, guidance)


@pytest.mark.parametrize(
    "said",
    [
        {"default_steps": "many"},
        {"default_steps": 0},
        {"usual_steps": "0"},
        {"default_steps": 1001},
        {"default_guidance": -1},
        {"usual_guidance": "nan"},
        {"reference_mode": "sometimes"},
        {"unet_groups": "0"},
    ],
)
def test_metadata_that_make_no_sense_are_named_and_not_replaced(tmp_path, said):
    path = save_model(tmp_path / "own.safetensors", small_state(), metadata=said)
    ((key, value),) = said.items()
    for load in (default_settings, load_unet):
        with pytest.raises(UserError) as caught:
            load(path)
        assert key.replace("usual", "default") in str(caught.value)
        assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    ("said", "mode"),
    [({}, "per_frame"), ({"reference": "still"}, "first_frame"), ({"reference_mode": "first_frame"}, "first_frame")],
)
def test_a_file_says_how_its_reference_is_used(tmp_path, said, mode):
    path = save_model(tmp_path / "own.safetensors", small_state(), metadata=said)
    assert load_unet(path).config.reference_mode == mode


def test_what_is_not_here_gets_the_usual_settings(tmp_path):
    assert (
        default_settings(tmp_path / "none.safetensors")
        == default_settings("no-such")
        == Settings(steps=STEPS, guidance=GUIDANCE)
    )


def test_unknown_names_and_absent_models(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSYNC_MODELS", str(tmp_path))
    with pytest.raises(
        UserError, match=r"5\.07 GB.*`latentsync download 1\.6`.*huggingface\.co/ByteDance/LatentSync-1\.6"
    ):
        load_unet("1.6")
    with pytest.raises(UserError, match=r"There is no file 1\.7"):
        load_unet("1.7")


def test_importing_changes_nothing():
    code = (
        "import os, sys; before = dict(os.environ);"
        "import latentsync.weights.load, latentsync.weights.download, latentsync.models.vae;"
        "assert dict(os.environ) == before;"
        "assert not {'diffusers', 'transformers', 'mediapipe', 'av', 'cv2', 'librosa'} & set(sys.modules)"
    )
    root = str(registry.ASSETS.parents[1])
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env={**os.environ, "PYTHONPATH": root})
