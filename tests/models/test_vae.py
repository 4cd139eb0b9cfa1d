"""The VAE wrapper on tiny but real AutoencoderKLs, saved in every layout that users have."""

import json
import re

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import save_file

from latentsync.errors import UserError
from latentsync.weights.convert import save_model
from latentsync.weights.identify import identify
from latentsync.weights.vae_files import config_from_shapes, diffusers_layout, find_prefix, load_vae


def tiny(latents=4, widths=(32, 64), layers=1, attention=True, quant=True):
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=widths,
        layers_per_block=layers,
        latent_channels=latents,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        mid_block_add_attention=attention,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
    ).eval()


def to_original(state, levels):
    """The same tensors as the CompVis code names and shapes them."""
    out = {}
    for key, tensor in state.items():
        key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
        key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
        key = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}", key)
        key = re.sub(r"(up\.\d)\.resnets\.(\d)", r"\1.block.\2", key).replace("upsamplers.0", "upsample")
        key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
        key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0" in key:
            key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            key = key.replace("to_out.0", "proj_out")
            key = re.sub(r"to_([qkv])", r"\1", key)
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        out[key] = tensor.contiguous()
    return out


def to_old(state):
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, old in names.items():
        state = {re.sub(rf"(attentions\.0)\.{new}\.", rf"\1.{old}.", key): t for key, t in state.items()}
    return state


LAYOUTS = {
    "diffusers": lambda state, n: state,
    "old diffusers": lambda state, n: to_old(state),
    "original": to_original,
    "inside a checkpoint": lambda state, n: (
        {f"first_stage_model.{k}": v for k, v in to_original(state, n).items()}
        | {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2), "cond_stage_model.x": torch.zeros(1)}
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"latents": 16, "widths": (32, 64, 96, 128)},
        {"latents": 8, "widths": (32, 32, 64), "layers": 2, "attention": False, "quant": False},
    ],
)
def test_every_layout_gives_the_same_pictures_bit_for_bit(tmp_path, layout, shape):
    model = tiny(**shape)
    path = tmp_path / "vae.safetensors"
    save_file(LAYOUTS[layout](model.state_dict(), len(model.config.block_out_channels)), path)
    vae = load_vae(path)
    assert (vae.channels, vae.factor) == (model.config.latent_channels, 2 ** (len(model.config.block_out_channels) - 1))
    pixels = torch.rand(3, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        latents = vae.encode(pixels)
        pictures = vae.decode(latents)
        model = model.to(memory_format=torch.channels_last)
        expected = model.encode(pixels.contiguous(memory_format=torch.channels_last)).latent_dist.mean * 0.18215
        back = model.decode((expected / 0.18215).contiguous(memory_format=torch.channels_last)).sample
    assert torch.equal(latents, expected)
    assert torch.equal(pictures, back)


def test_our_names_agree_with_those_of_diffusers_own_converter():
    utils = pytest.importorskip("diffusers.loaders.single_file_utils")
    with torch.device("meta"):
        model = tiny(widths=(128, 256, 512, 512), layers=2)
    state = model.state_dict()
    original = to_original(state, 4)
    assert len(original) == 248  # as vae-ft-mse-840000-ema-pruned has
    ours = diffusers_layout(original)
    theirs = utils.convert_ldm_vae_checkpoint(
        {f"first_stage_model.{k}": v for k, v in original.items()}, dict(model.config)
    )
    assert ours.keys() == theirs.keys() == state.keys()
    assert all(ours[key].shape == state[key].shape for key in state)


def test_pt_checkpoints_and_diffusers_folders_load_too(tmp_path):
    model = tiny()
    torch.save({"global_step": 3, "state_dict": to_original(model.state_dict(), 2)}, tmp_path / "vae.ckpt")
    folder = tmp_path / "folder"
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5, "shift_factor": 0.25}))
    a, b = load_vae(tmp_path / "vae.ckpt"), load_vae(folder)
    assert (b.scaling, b.shift) == (0.5, 0.25)
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.allclose(a.encode(pixels) / a.scaling, b.encode(pixels) / b.scaling + b.shift, atol=1e-5)


def test_scaling_and_shift_come_from_our_metadata(tmp_path):
    from latentsync.models.unet import UNet
    from latentsync.models.unet_config import UNetConfig

    model = tiny(latents=8)
    unet = UNet(UNetConfig(widths=(32, 32), layers=1, cross=(True, False), latent_channels=8, motion="none"))
    path = save_model(
        tmp_path / "nano.safetensors",
        unet.state_dict(),
        vae_state=model.state_dict(),
        metadata={"vae_scaling": 0.75, "vae_shift": 0.125, "resolution": 64},
    )
    vae = load_vae(path)
    assert (vae.scaling, vae.shift, vae.channels) == (0.75, 0.125, 8)
    pixels = torch.rand(2, 3, 32, 32)
    mean = model.encode(pixels).latent_dist.mean
    assert torch.allclose(vae.encode(pixels), (mean - 0.125) * 0.75, atol=1e-5)
    assert torch.allclose(vae.decode(vae.encode(pixels)), model.decode(mean).sample, atol=1e-4)


def test_many_frames_go_through_a_few_at_a_time(tmp_path, monkeypatch):
    from latentsync.models import vae as module

    save_file(tiny().state_dict(), tmp_path / "vae.safetensors")
    vae = load_vae(tmp_path / "vae.safetensors")
    sizes = []
    vae.model.encoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    vae.model.decoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    monkeypatch.setattr(module, "PIXELS_AT_ONCE", 2 * 32 * 32)
    vae.decode(vae.encode(torch.rand(5, 3, 32, 32)))
    assert sizes == [2, 2, 1, 2, 2, 1]


def test_half_precision_keeps_the_callers_dtype(tmp_path):
    save_file(tiny().state_dict(), tmp_path / "vae.safetensors")
    vae = load_vae(tmp_path / "vae.safetensors", dtype=torch.bfloat16)
    assert vae.dtype == torch.bfloat16
    assert vae.encode(torch.rand(1, 3, 32, 32)).dtype == torch.float32


def test_the_global_generator_is_left_alone(tmp_path):
    save_file(tiny().state_dict(), tmp_path / "vae.safetensors")
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    vae = load_vae(tmp_path / "vae.safetensors")
    vae.encode(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.rand(1), expected)


def drop(key):
    return lambda s: {k: v for k, v in s.items() if k != key}


DAMAGE = {
    "missing: decoder.conv_norm_out.bias": drop("decoder.conv_norm_out.bias"),
    "missing: encoder.mid_block.attentions.0.to_q.weight": drop("encoder.mid_block.attentions.0.to_q.weight"),
    "missing: encoder.down_blocks.0.resnets.0.conv1.weight": drop("encoder.down_blocks.0.resnets.0.conv1.weight"),
    "not known: extra.weight": lambda s: s | {"extra.weight": torch.zeros(1)},
    "of another shape: decoder.conv_out.bias is 5 where 3": lambda s: s | {"decoder.conv_out.bias": torch.zeros(5)},
}


@pytest.mark.parametrize("sentence", DAMAGE)
@pytest.mark.parametrize("original", [False, True])
def test_a_damaged_vae_is_refused_with_the_tensor_named(tmp_path, sentence, original):
    state = DAMAGE[sentence](tiny().state_dict())
    save_file(to_original(state, 2) if original else state, tmp_path / "vae.safetensors")
    with pytest.raises(UserError, match=re.escape(sentence)):
        load_vae(tmp_path / "vae.safetensors")


def test_what_holds_no_vae_is_refused(tmp_path, golden_portable):
    with pytest.raises(UserError, match="holds no VAE"):
        load_vae(golden_portable / "unet_plain" / "latentsync_unet.pt")
    with pytest.raises(UserError, match="There is no file"):
        load_vae(tmp_path / "none.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"<!DOCTYPE html><html></html>")
    with pytest.raises(UserError, match="web page"):
        load_vae(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="groups"):
        config_from_shapes({k: tuple(v.shape) for k, v in tiny().state_dict().items()}, groups=24)


def test_wrong_shapes_of_input_are_named(tmp_path):
    save_file(tiny().state_dict(), tmp_path / "vae.safetensors")
    vae = load_vae(tmp_path / "vae.safetensors")
    for pixels in (torch.rand(1, 4, 32, 32), torch.rand(1, 3, 33, 32), torch.rand(3, 32, 32)):
        with pytest.raises(UserError, match="multiples of 2"):
            vae.encode(pixels)
    with pytest.raises(UserError, match=r"\(N, 4, h, w\)"):
        vae.decode(torch.rand(1, 8, 4, 4))


def test_recognised_as_a_vae_in_both_layouts(tmp_path):
    state = tiny().state_dict()
    save_file(state, tmp_path / "a.safetensors")
    save_file(to_original(state, 2), tmp_path / "b.safetensors")
    a, b = identify(tmp_path / "a.safetensors"), identify(tmp_path / "b.safetensors")
    assert (a.kind, b.kind) == ("vae", "vae")
    assert "diffusers layout" in a.title
    assert "original layout" in b.title
    assert find_prefix(["first_stage_model.encoder.conv_in.weight", "first_stage_model.decoder.x"])
    assert find_prefix(["conv_in.weight"]) is None
