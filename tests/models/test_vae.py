"""The VAE wrapper on tiny but real AutoencoderKLs, saved in every layout that users have."""

import json
import re

import cv2
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import save_file

from latentsync.errors import UserError
from latentsync.models.tiny_vae import TinyAutoencoder, TinyConfig, TinyVAE
from latentsync.weights import registry
from latentsync.weights.convert import save_model
from latentsync.weights.identify import identify
from latentsync.weights.vae_files import config_from_shapes, diffusers_layout, find_prefix, load_vae

from ..tiny import SHARED, taesd_files, tiny_checkpoint, tiny_vae


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
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
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
    for text in ("[]", "[" * 100_000, "{"):
        (folder / "config.json").write_text(text)
        assert load_vae(folder).scaling == a.scaling
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
    monkeypatch.setattr(module, "PICTURE", 32 * 32)
    vae.pictures_at_once = 2
    vae.decode(vae.encode(torch.rand(5, 3, 32, 32)))
    assert sizes == [2, 2, 1, 2, 2, 1]


@torch.inference_mode()
def test_on_a_cpu_a_picture_does_not_depend_on_those_beside_it(tmp_path):
    save_file(tiny().state_dict(), tmp_path / "vae.safetensors")
    vae = load_vae(tmp_path / "vae.safetensors")
    pixels = torch.rand(5, 3, 32, 32)
    latents = vae.encode(pixels)
    assert torch.equal(latents[3:4], vae.encode(pixels[3:4]))
    assert torch.equal(vae.decode(latents)[3:4], vae.decode(latents[3:4]))


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


# tiny autoencoders


def diffusers_file(folder, model):
    save_file(model.state_dict(), folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


def diffusers_folder(folder, model):
    model.save_pretrained(folder / "tiny")
    return folder / "tiny"


def in_nano(folder, model):
    return tiny_checkpoint(folder / "nano.safetensors", taesd=True)


TINY_LAYOUTS = {
    "a file of diffusers": diffusers_file,
    "a folder of diffusers": diffusers_folder,
    "nano": in_nano,
    "two files": lambda folder, model: taesd_files(folder, model),
    "two older files": lambda folder, model: taesd_files(folder, model, ".pth"),
    "the encoder of two": lambda folder, model: taesd_files(folder, model) / "taesd_encoder.safetensors",
    "the decoder of two": lambda folder, model: taesd_files(folder, model, ".pth") / "taesd_decoder.pth",
}


@pytest.mark.parametrize("layout", TINY_LAYOUTS)
def test_every_layout_of_a_tiny_vae_gives_the_same_pictures(tmp_path, layout):
    model = tiny_vae()
    vae = load_vae(TINY_LAYOUTS[layout](tmp_path, model))
    assert isinstance(vae, TinyVAE)
    assert (vae.channels, vae.factor, vae.scaling, vae.shift) == (4, 8, 1.0, 0.0)
    pixels = torch.rand(3, 3, 32, 64) * 2 - 1
    latents = vae.encode(pixels)
    assert latents.shape == (3, 4, 4, 8)
    assert torch.allclose(latents, model.encode(pixels).latents, atol=1e-5)
    assert torch.allclose(vae.decode(latents), model.decode(latents).sample, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_tiny_vae_in_half_precision(tmp_path, dtype):
    model = tiny_vae()
    path = taesd_files(tmp_path, model.to(dtype))
    vae, exact = load_vae(path, dtype=dtype), load_vae(path)
    assert (vae.dtype, exact.dtype) == (dtype, torch.float32)
    latents = torch.randn(1, 4, 4, 4)
    assert vae.decode(latents).dtype == torch.float32
    assert torch.allclose(vae.decode(latents), exact.decode(latents), atol=0.05)


def test_a_tiny_vae_of_another_size(tmp_path):
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    model = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(16, 16),
        num_encoder_blocks=(2, 1),
        num_decoder_blocks=(1, 2),
        latent_channels=6,
    )
    save_file(model.state_dict(), tmp_path / "vae.safetensors")
    vae = load_vae(tmp_path / "vae.safetensors")
    assert (vae.channels, vae.factor) == (6, 2)
    assert torch.allclose(vae.decode(torch.ones(1, 6, 4, 4)), model.decode(torch.ones(1, 6, 4, 4)).sample, atol=1e-5)


def test_a_decoder_that_gets_narrower(tmp_path):
    """Against the same sums by hand."""
    vae = TinyVAE(TinyAutoencoder(TinyConfig((1, 1), (1, 2), 4, (8, 6)))).eval().requires_grad_(False)
    save_file(vae.model.state_dict(), tmp_path / "vae.safetensors")
    again, latents = load_vae(tmp_path / "vae.safetensors"), torch.randn(1, 4, 4, 4)
    layers = again.model.decoder.layers
    assert [layer.weight.shape[:2] for layer in layers if isinstance(layer, torch.nn.Conv2d)] == [
        (8, 4),
        (6, 8),
        (3, 6),
    ]
    x = 3 * torch.tanh(latents / 3)
    for layer in layers:
        x = layer(x.clone())
    assert torch.allclose(again.decode(latents), x * 2 - 1, atol=1e-6)
    assert torch.allclose(again.decode(latents, 4)[:, :, 4:], x[:, :, 4:] * 2 - 1, atol=1e-6)


@pytest.mark.parametrize("top", [1, 16, 37, 72, 88, 120])
def test_rows_that_nobody_looks_at_are_left_out_and_the_others_stay(tmp_path, top):
    vae = load_vae(taesd_files(tmp_path, tiny_vae()))
    heights = []
    vae.model.decoder.layers[-1].register_forward_pre_hook(lambda _, args: heights.append(args[0].shape[-2]))
    latents = 2 * torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    whole, part = vae.decode(latents), vae.decode(latents, top)
    assert part.shape == whole.shape
    assert (part - whole)[:, :, top:].abs().max() < 1e-5
    assert torch.equal(part[:, :, :top], part[:, :, top : top + 1].expand(-1, -1, top, -1))
    assert heights[0] == 128
    assert heights[1] == 128 if top == 1 else 128 - top <= heights[1] <= 128 - top + 6


def test_a_tiny_vae_stores_latents_as_the_full_one_does(tmp_path):
    """ComfyUI's LATENT is Stable Diffusion's before scaling, whichever VAE made it."""
    tiny_one, full = load_vae(taesd_files(tmp_path, tiny_vae())), load_vae(diffusers_file(tmp_path, tiny()))
    assert tiny_one.stored == full.stored == (0.18215, 0.0)


TINY_DAMAGE = {
    "missing: decoder.layers.0.bias": drop("decoder.layers.0.bias"),
    "missing: encoder.layers.1.conv.0.weight": drop("encoder.layers.1.conv.0.weight"),
    "first convolution": drop("decoder.layers.0.weight"),
    "a decoder undoes its encoder": drop("encoder.layers.2.weight"),
    "not known: encoder.layers.1.pool.0.weight": lambda s: s | {"encoder.layers.1.pool.0.weight": torch.zeros(1)},
    "of another shape: decoder.layers.18.bias is 5 where 3": lambda s: s | {"decoder.layers.18.bias": torch.zeros(5)},
}


@pytest.mark.parametrize("sentence", TINY_DAMAGE)
def test_a_damaged_tiny_vae_is_refused_with_the_reason(tmp_path, sentence):
    state = tiny_vae().state_dict()
    save_file(TINY_DAMAGE[sentence](state), tmp_path / "vae.safetensors")
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        load_vae(tmp_path / "vae.safetensors")
    assert "vae.safetensors is not a usable VAE" in str(caught.value)


def test_half_a_tiny_vae_is_refused(tmp_path):
    folder = taesd_files(tmp_path / "a", tiny_vae())
    (folder / "taesd_encoder.safetensors").unlink()
    for given in (folder, folder / "taesd_decoder.safetensors"):
        with pytest.raises(UserError, match=r"put the encoder next to it.*download taesd"):
            load_vae(given)
    (folder / "taesd_encoder.safetensors").write_bytes((folder / "taesd_decoder.safetensors").read_bytes())
    for given in (folder, folder / "taesd_decoder.safetensors"):
        with pytest.raises(UserError, match=r"alone|should be the encoder of a tiny autoencoder and is the decoder"):
            load_vae(given)


def test_a_tiny_vae_is_recognized(tmp_path):
    folder = taesd_files(tmp_path, tiny_vae())
    assert identify(diffusers_file(tmp_path, tiny_vae())).kind == "vae"
    assert "tiny VAE (diffusers layout" in identify(tmp_path / "tiny.safetensors").title
    for half in ("encoder", "decoder"):
        info = identify(folder / f"taesd_{half}.safetensors")
        assert info.kind == "taesd"
        assert f"the {half} of a tiny VAE" in info.title
    nano = identify(in_nano(tmp_path, None))
    assert (nano.kind, nano.problem, nano.latent_channels) == ("nano", None, 4)


def test_the_name_taesd_is_nanos_own_vae_or_the_two_files(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSYNC_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(registry, "ASSETS", tmp_path / "assets")
    (tmp_path / "assets").mkdir()
    nano = tmp_path / "assets" / registry.NANO_FILE
    tiny_checkpoint(nano)
    with pytest.raises(UserError, match=r"TAESD.*download taesd"):
        load_vae("taesd")
    taesd_files(tmp_path / "models", tiny_vae(seed=5))
    bias = "decoder.layers.0.bias"
    assert torch.equal(load_vae("taesd").model.state_dict()[bias], tiny_vae(seed=5).state_dict()[bias])
    tiny_checkpoint(nano, taesd=True)
    assert torch.equal(load_vae("TAESD").model.state_dict()[bias], tiny_vae(seed=1).state_dict()[bias])


def test_the_real_taesd_gives_the_picture_back():
    if not (SHARED / "taesd").is_dir():
        pytest.skip("TAESD's two files are not beside the repository")
    vae = load_vae(SHARED / "taesd")
    picture = cv2.imread(str(registry.ASSETS / "portrait.jpg"))[:, :, ::-1]
    pixels = torch.from_numpy(cv2.resize(picture, (256, 256)).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    latents = vae.encode(pixels)
    assert 0.5 < latents.std() < 1.2  # scaled: those of the full VAE have 5.5 times as much
    error = (vae.decode(latents) - pixels).square().mean()
    assert 10 * torch.log10(4 / error) > 28
