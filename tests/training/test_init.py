"""What a network begins with: nothing, Stable Diffusion in both layouts, an earlier stage."""

import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from latentsync.errors import UserError
from latentsync.models.unet import UNet
from latentsync.models.unet_config import UNetConfig
from latentsync.training.unet.init import initial_unet, sd_unet
from latentsync.training.unet.lora import add_lora, merge_files, save_lora
from latentsync.weights import identify as identifying
from latentsync.weights.convert import save_model
from latentsync.weights.identify import identify
from latentsync.weights.load import load_unet

from ..tiny import lively, tiny_checkpoint
from .parts import recipe

LDM = [
    # diffusers' name on the right, CompVis' on the left, for widths (32, 64) and 2 layers a level
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("input_blocks.0.0", "conv_in"),
    *((f"input_blocks.{i}.0", f"down_blocks.0.resnets.{i - 1}") for i in (1, 2)),
    *((f"input_blocks.{i}.1", f"down_blocks.0.attentions.{i - 1}") for i in (1, 2)),
    ("input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
    *((f"input_blocks.{i}.0", f"down_blocks.1.resnets.{i - 4}") for i in (4, 5)),
    *((f"input_blocks.{i}.1", f"down_blocks.1.attentions.{i - 4}") for i in (4, 5)),
    ("middle_block.0", "mid_block.resnets.0"),
    ("middle_block.1", "mid_block.attentions.0"),
    ("middle_block.2", "mid_block.resnets.1"),
    *((f"output_blocks.{i}.0", f"up_blocks.0.resnets.{i}") for i in (0, 1, 2)),
    *((f"output_blocks.{i}.1", f"up_blocks.0.attentions.{i}") for i in (0, 1, 2)),
    ("output_blocks.2.2.conv", "up_blocks.0.upsamplers.0.conv"),
    *((f"output_blocks.{i}.0", f"up_blocks.1.resnets.{i - 3}") for i in (3, 4, 5)),
    *((f"output_blocks.{i}.1", f"up_blocks.1.attentions.{i - 3}") for i in (3, 4, 5)),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
]
INNER = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
]


@pytest.fixture(scope="module")
def sd():
    """The U-Net of a small Stable Diffusion: four latents in, text of 48 numbers."""
    unet = lively(UNet(UNetConfig((32, 64), 2, (True, True), 48, 4, "none")), 3)
    state = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
    return {**state, "conv_in.weight": state["conv_in.weight"][:, :4].contiguous()}


def original(state):
    """The same under the names of the original code, as they stand in a whole checkpoint."""
    out = {}
    for key, tensor in state.items():
        there = next(old + key.removeprefix(new) for old, new in LDM if key.startswith(f"{new}."))
        if ".resnets." in key:
            for old, new in INNER:
                there = re.sub(rf"\.{new}\.(weight|bias)$", rf".{old}.\1", there)
        out[f"model.diffusion_model.{there}"] = tensor
    return {**out, "first_stage_model.encoder.conv_in.weight": torch.zeros(1), "alphas_cumprod": torch.zeros(1000)}


def test_the_original_layout_is_read_by_its_names(sd):
    assert all(torch.equal(tensor, sd[key]) for key, tensor in sd_unet(original(sd)).items())
    assert sd_unet(original(sd)).keys() == sd.keys()
    assert sd_unet(sd).keys() == sd.keys()


@pytest.fixture(scope="module", params=["diffusers", "original"])
def sd_file(request, sd, tmp_path_factory):
    path = tmp_path_factory.mktemp("sd") / "sd15.safetensors"
    save_file({k: v.contiguous() for k, v in (sd if request.param == "diffusers" else original(sd)).items()}, path)
    return path


@pytest.mark.parametrize("stage", ["1", "2", "2-efficient"])
def test_stable_diffusion_gives_its_spatial_layers(sd, sd_file, stage):
    assert identify(sd_file).kind == "sd15"
    start = initial_unet(str(sd_file), recipe(stage), audio_dim=24)
    state = start.unet.state_dict()
    assert start.unet.config == UNetConfig((32, 64), 2, (True, True), 24, 4, recipe(stage).motion)
    for key, tensor in state.items():
        if "motion_modules" in key or ".attn2." in key:
            assert key in start.new
        elif key == "conv_in.weight":
            assert torch.equal(tensor[:, :4], sd[key])
            assert tensor[:, 4:].abs().sum() == 0
        else:
            assert key not in start.new
            assert torch.equal(tensor, sd[key]), key
    assert start.unet.config.prediction_type == "epsilon"


def test_the_name_sd15_finds_the_file(sd_file, tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSYNC_MODELS", str(tmp_path))
    with pytest.raises(UserError, match="No Stable Diffusion"):
        initial_unet("sd15", recipe("1"))
    (tmp_path / "v1-5-pruned-emaonly.safetensors").write_bytes(sd_file.read_bytes())
    start = initial_unet("sd15", recipe("1"))
    assert start.unet.config.widths == (32, 64)
    assert start.metadata == {"license": "CreativeML OpenRAIL-M"}


def inputs(config, frames=4):
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(1, config.in_channels, frames, 8, 8, generator=generator)
    return sample, 300, torch.randn(1, frames, 50, config.audio_dim, generator=generator)


@pytest.fixture
def stage1(tmp_path):
    unet = lively(UNet(UNetConfig((32, 32), 1, (True, True), 384, 4, "none")), 4)
    path = save_model(tmp_path / "unet.safetensors", unet.state_dict(), metadata={"resolution": 64})
    return unet, path


@pytest.mark.parametrize("stage", ["2", "2-efficient"])
def test_new_motion_modules_change_nothing_yet(stage1, stage):
    unet, path = stage1
    start = initial_unet(str(path), recipe(stage))
    assert start.new
    assert all("motion_modules." in key for key in start.new)
    assert start.unet.config.resolution == 64
    with torch.no_grad():
        assert torch.allclose(start.unet(*inputs(unet.config)), unet(*inputs(unet.config)), atol=1e-5)


def test_an_earlier_stage_of_the_same_kind_is_taken_whole(stage1):
    unet, path = stage1
    start = initial_unet(str(path), recipe("1"))
    assert start.new == ()
    assert all(torch.equal(t, unet.state_dict()[k]) for k, t in start.unet.state_dict().items())


def test_a_bundle_brings_its_own_kind(tmp_path):
    path = tiny_checkpoint(tmp_path / "nano.safetensors")
    start = initial_unet(str(path), recipe("2"))
    assert (start.unet.config.prediction_type, start.unet.config.resolution) == ("sample", 64)


STATED = {"license": "Apache-2.0", "default_steps": "3", "default_guidance": "2.0", "latent_rgb": "[[1, 2, 3]]"}


def starts(folder, monkeypatch, name):
    """A start of each kind, and what whoever is trained from it inherits."""
    unet = lively(UNet(UNetConfig((32, 32), 1, (True, True), 384, 4, "all")), 4)
    facts = {"resolution": 64, "version": "nano", "steps": 9, "source_sha256": "ab", "unet_residual": "jaw"}
    path = folder / "start.safetensors"
    if name in ("1.5", "1.6"):  # a file without metadata, known by its size
        path = path.with_suffix(".pt")
        torch.save({"global_step": 1, "state_dict": unet.state_dict()}, path)
        entries = [e if e.name != name else replace(e, bytes=path.stat().st_size) for e in identifying.ENTRIES]
        monkeypatch.setattr(identifying, "ENTRIES", tuple(entries))
        return path, {"license": "OpenRAIL++"}
    if name == "old":
        save_model(path, unet.state_dict(), metadata={"resolution": 64, "usual_steps": "3", "reference": "still"})
        return path, {"default_steps": "3"}
    save_model(path, unet.state_dict(), metadata=facts | STATED)
    if name == "merged LoRA":
        add_lora(unet, 2)
        lora = save_lora(folder / "lora.safetensors", unet, {})
        path = merge_files(str(path), lora, folder / "merged.safetensors")
    return path, STATED | {"unet_residual": "jaw"}


@pytest.mark.parametrize("name", ["nano", "1.5", "1.6", "old", "merged LoRA"])
def test_what_is_trained_inherits_what_its_start_states(tmp_path, monkeypatch, name):
    path, wanted = starts(tmp_path, monkeypatch, name)
    start = initial_unet(str(path), recipe("2"))
    assert start.metadata == wanted
    assert str(start.unet.config.default_steps) == wanted.get("default_steps", "20")


def test_a_merged_lora_keeps_what_its_base_is(tmp_path, monkeypatch):
    base, _ = starts(tmp_path, monkeypatch, "1.6")
    unet = load_unet(base)
    add_lora(unet, 2)
    merged = identify(
        merge_files(str(base), save_lora(tmp_path / "l.safetensors", unet, {}), tmp_path / "m.safetensors")
    )
    assert (merged.version, merged.resolution, merged.license) == ("1.6", 512, "OpenRAIL++")


def test_motion_modules_are_not_thrown_away(tmp_path):
    path = tiny_checkpoint(tmp_path / "nano.safetensors")
    with pytest.raises(UserError, match="would drop"):
        initial_unet(str(path), recipe("1"))


def test_a_file_that_is_something_else(sd, tmp_path):
    save_file({"weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="not a LatentSync U-Net"):
        initial_unet(str(tmp_path / "x.safetensors"), recipe("1"))
    broken = {key: tensor for key, tensor in sd.items() if key != "mid_block.resnets.0.conv1.weight"}
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(UserError, match=r"mid_block\.resnets\.0\.conv1\.weight"):
        initial_unet(str(tmp_path / "broken.safetensors"), recipe("1"))


def test_nothing_but_a_seed():
    first, again = (initial_unet("none", recipe("2"), size="tiny") for _ in range(2))
    other = initial_unet("none", recipe("2", seed=5), size="tiny")
    key = "mid_block.attentions.0.proj_in.weight"
    assert torch.equal(first.unet.state_dict()[key], again.unet.state_dict()[key])
    assert not torch.equal(first.unet.state_dict()[key], other.unet.state_dict()[key])
    state = torch.random.get_rng_state()
    initial_unet("none", recipe("1"), size="tiny")
    assert torch.equal(torch.random.get_rng_state(), state)
