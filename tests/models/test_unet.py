"""The U-Net against the goldens, its config against the published key lists, and what may look across frames."""

import dataclasses
import json
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from latentsync.errors import UserError
from latentsync.models import unet as unet_module
from latentsync.models import unet_blocks
from latentsync.models.unet import UNet, lips_window
from latentsync.models.unet_blocks import position_code, timestep_embedding
from latentsync.models.unet_config import POSITIONS, UNetConfig, config_from_tensors
from latentsync.weights.convert import save_model
from latentsync.weights.files import shapes_of
from latentsync.weights.load import load_unet

from ..tiny import lively, tiny_config

CASES = [("out", 16), ("out_5frames_t21", 5)]
PORTABLE = ["unet_motion", "unet_plain"]


@cache
def case(folder, dtype=torch.float32):
    unet = load_unet(folder / "latentsync_unet.pt", dtype=dtype, resolution=256)
    return unet, {name: tensor.to(dtype) for name, tensor in load_file(folder / "io.safetensors").items()}


@torch.inference_mode()
def run(unet, data, name, frames):
    timestep = torch.tensor([21, 21]) if name.endswith("t21") else data["timestep"].long()
    return unet(data["sample"][:, :, :frames], timestep, data["audio"][:, :frames])


@pytest.mark.parametrize(("name", "frames"), CASES)
def test_full_golden(golden, name, frames):
    unet, data = case(golden / "full" / "unet_decoder_motion")
    assert unet.config.motion == "decoder"
    assert (run(unet, data, name, frames) - data[name]).abs().max() < 1e-4


# The portable goldens have 32 channels in 32 groups and shrink 8 x 8 cells to one pixel. There a group of a norm that
# runs per frame is a single number: minus its mean it is 0, of which float32 leaves a rounding error, which the norm's
# eps of 1e-6 then makes 1000 times larger. So the goldens themselves, made in float32, lie 3e-4 (motion) and 1.5e-4
# (plain) away from what exact arithmetic gives, and no two builds of float32 need agree to 1e-4. Hence three checks:
# float64 within that noise, float32 within twice as much again, and a strict one on all that comes before such a norm.


@pytest.mark.parametrize(("name", "frames"), CASES)
@pytest.mark.parametrize("folder", PORTABLE)
@pytest.mark.parametrize(("dtype", "largest"), [(torch.float64, 5e-4), (torch.float32, 1e-3)])
def test_portable_golden(golden_portable, folder, name, frames, dtype, largest):
    unet, data = case(golden_portable / folder, dtype)
    error = (run(unet, data, name, frames) - data[name]).abs()
    assert error.max() < largest
    assert error.median() < 5e-5


@pytest.mark.parametrize("folder", PORTABLE)
def test_portable_is_strict_up_to_the_first_norm_of_single_numbers(golden_portable, folder):
    before = ["conv_in", "time_embedding", "down_blocks.0", "down_blocks.1", "down_blocks.2", "down_blocks.3.resnets.0"]
    seen = {}
    for dtype in (torch.float32, torch.float64):
        unet, data = case(golden_portable / folder, dtype)
        hooks = [
            unet.get_submodule(name).register_forward_hook(
                lambda _module, _inputs, out, key=(name, dtype): seen.__setitem__(key, out)
            )
            for name in before
        ]
        run(unet, data, "out", 16)
        for hook in hooks:
            hook.remove()
    for name in before:
        exact = seen[name, torch.float64]
        assert exact.abs().max() > 0.1
        assert (seen[name, torch.float32] - exact).abs().max() < 2e-5, name


def per_frame(norm, x, frames):
    return norm(x)


@pytest.mark.parametrize("folder", PORTABLE)
def test_a_norm_per_frame_misses_the_golden(golden_portable, folder, monkeypatch):
    unet, data = case(golden_portable / folder)
    for module in (unet_module, unet_blocks):
        monkeypatch.setattr(module, "window_norm", per_frame)
    assert (run(unet, data, "out", 16) - data["out"]).abs().max() > 1e-2


def test_window_norm_is_a_group_norm_over_frames_and_pixels():
    x = torch.randn(6, 64, 5, 4) * torch.arange(1, 7)[:, None, None, None] + torch.arange(6)[:, None, None, None]
    norm = lively(nn.GroupNorm(32, 64), 0)
    clips = x.unflatten(0, (2, 3)).transpose(1, 2)
    expected = norm(clips).transpose(1, 2).flatten(0, 1)
    assert torch.allclose(unet_blocks.window_norm(norm, x, 3), expected, atol=1e-5)
    assert torch.allclose(unet_blocks.window_norm(norm, x, 1), norm(x), atol=1e-5)
    assert (unet_blocks.window_norm(norm, x, 3) - norm(x)).abs().max() > 0.1


def inputs(config, batch=1, frames=4, side=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, config.in_channels, frames, side, side, generator=generator)
    return sample, torch.randn(batch, frames, 50, config.audio_dim, generator=generator)


def tiny(motion="none", seed=0):
    config = tiny_config(audio_dim=16, motion=motion)
    return lively(UNet(config), seed).eval().requires_grad_(False)


def changed_frames(unet, frame):
    """Largest change per frame of the output when the sound of one frame changes."""
    sample, audio = inputs(unet.config)
    other = audio.clone()
    other[:, frame] += 1
    return (unet(sample, 500, audio) - unet(sample, 500, other)).abs().amax((0, 1, 3, 4))


def test_a_frame_hears_its_own_sound_only(monkeypatch):
    """Without motion modules only the norms carry anything across; with norms per frame nothing does."""
    coupled = changed_frames(tiny(), 2)
    assert (coupled > 0).all()
    assert coupled.argmax() == 2
    for module in (unet_module, unet_blocks):
        monkeypatch.setattr(module, "window_norm", per_frame)
    alone = changed_frames(tiny(), 2)
    assert alone[2] > 0.01
    assert all(alone[i] < 1e-6 for i in (0, 1, 3))
    moving = changed_frames(tiny("all"), 2)  # the motion modules do look across
    assert all(moving[i] > 1e-5 for i in (0, 1, 3))


@pytest.mark.parametrize("motion", ["all", "none"])
def test_windows_of_a_batch_do_not_see_each_other(motion):
    unet = tiny(motion)
    sample, audio = inputs(unet.config, batch=2)
    both = unet(sample, torch.tensor([900, 20]), audio)
    for i, timestep in enumerate((900, 20)):
        one = unet(sample[i : i + 1], timestep, audio[i : i + 1])
        assert (both[i : i + 1] - one).abs().max() < 1e-5


def test_order_of_frames_matters_with_motion_modules_only():
    for motion, same in (("none", True), ("decoder", False), ("all", False)):
        unet = tiny(motion)
        sample, audio = inputs(unet.config)
        turned = unet(sample.flip(2), 500, audio.flip(1)).flip(2)
        assert ((turned - unet(sample, 500, audio)).abs().max() < 1e-5) == same


@torch.inference_mode()
def test_a_residual_one_adds_the_reference(tmp_path):
    """And the file's metadata makes it one, in the host's form of the network too."""
    plain = tiny()
    sample, audio = inputs(plain.config)
    window = lips_window(*sample.shape[-2:])
    assert window.max() > 0.5
    wanted = window * plain(sample, 500, audio) + sample[:, -plain.config.latent_channels :]
    facts = {"unet_residual": "reference", "prediction_type": "sample"}
    loaded = load_unet(save_model(tmp_path / "own.safetensors", plain.state_dict(), metadata=facts))
    assert torch.allclose(loaded(sample, 500, audio), wanted, atol=1e-5)
    assert loaded.config.residual == "lips"
    facts.pop("unet_residual")
    other = load_unet(save_model(tmp_path / "other.safetensors", plain.state_dict(), metadata=facts))
    assert torch.allclose(other(sample, 500, audio), plain(sample, 500, audio), atol=1e-5)


def test_what_is_added_is_around_the_lips_alone():
    window = lips_window(20, 20)
    assert (window[13, 10], window[15, 10]) == (1, 1)
    assert window[:6].max() == window[18:].max() == window[:, :3].max() == window[:, -3:].max() == 0
    assert (window - window.flip(1)).abs().max() < 1e-6


def test_an_audio_projection_makes_one_token_and_knows_when_each_was():
    config = dataclasses.replace(tiny_config(), audio_rank=3)
    unet, dim = lively(UNet(config), 0).eval().requires_grad_(False), config.audio_dim
    sample, audio = torch.randn(1, config.in_channels, 2, 4, 4), torch.randn(1, 2, 50, dim)
    mix, out = unet.audio_projection.mix.weight, unet.audio_projection.out
    times = audio.reshape(2, 10, 5 * dim) @ mix.T
    token = times.reshape(2, 30) @ out.weight.T + out.bias
    plain = UNet(tiny_config()).eval()
    plain.load_state_dict({k: v for k, v in unet.state_dict().items() if not k.startswith("audio_projection.")})
    made = unet(sample, 500, audio)
    assert torch.allclose(made, plain(sample, 500, token[None, :, None].expand(-1, -1, 50, -1)), atol=1e-5)
    assert not torch.allclose(made, unet(sample, 500, audio.unflatten(2, (10, 5)).flip(2).flatten(2, 3)), atol=1e-3)


def test_size_and_shape():
    config = UNetConfig((32, 64, 64), 2, (False, True, True), 16, 8, "decoder")
    unet = lively(UNet(config), 0).eval().requires_grad_(False)
    sample = torch.randn(2, 25, 3, 4, 8)
    assert unet(sample, 10, torch.randn(2, 3, 50, 16)).shape == (2, 8, 3, 4, 8)


def test_timestep_embedding_and_position_code():
    code = timestep_embedding(torch.tensor([0, 7]), 8)
    assert torch.equal(code[0], torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]))
    assert torch.allclose(
        code[1, [0, 4]], torch.tensor([7.0, 7.0]).sin().where(torch.tensor([False, True]), code[1, 0])
    )
    assert torch.allclose(code[1, 0], torch.tensor(7.0).cos())
    assert torch.allclose(code[1, 1], torch.tensor(0.7).cos())
    pe = position_code(6, 3)
    assert pe.shape == (1, 3, 6)
    assert torch.allclose(pe[0, 2, :2], torch.stack((torch.tensor(2.0).sin(), torch.tensor(2.0).cos())))


def test_stored_position_code_is_the_formula(golden_portable):
    unet, _ = case(golden_portable / "unet_motion")
    stored = [b for n, b in unet.named_buffers() if n.endswith("pos_encoder.pe")]
    assert stored
    for code in stored:
        assert torch.allclose(code, position_code(code.shape[-1]), atol=1e-6)


MANIFESTS = [
    ("unet_stage1", "none", 850.0),
    ("unet_stage2", "all", 1267.9),
    ("unet_stage2_efficient", "decoder", 1100.8),
]


@pytest.mark.parametrize(("name", "motion", "millions"), MANIFESTS)
def test_published_key_lists(spec, name, motion, millions):
    wanted = {k: tuple(v) for k, v in json.loads((spec / "manifests" / f"{name}.json").read_text()).items()}
    config = config_from_tensors(wanted)
    assert config == UNetConfig(motion=motion)
    with torch.device("meta"):
        unet = UNet(config)
    assert shapes_of(unet.state_dict()) == wanted
    assert round(sum(t.numel() for t in unet.state_dict().values()) / 1e6, 1) == millions


@st.composite
def configs(draw):
    levels = draw(st.integers(2, 4))
    return UNetConfig(
        widths=tuple(draw(st.sampled_from((32, 64, 96))) for _ in range(levels)),
        layers=draw(st.integers(1, 2)),
        cross=tuple(draw(st.booleans()) for _ in range(levels)),
        audio_dim=draw(st.sampled_from((16, 384, 768))),
        latent_channels=draw(st.sampled_from((4, 8, 16))),
        motion=draw(st.sampled_from(("none", "decoder", "all"))),
        audio_rank=draw(st.sampled_from((0, 6))),
    )


@given(configs())
@settings(max_examples=15, deadline=None)
def test_config_is_read_back_from_any_network(config):
    with torch.device("meta"):
        unet = UNet(config)
    assert config_from_tensors(shapes_of(unet.state_dict())) == config


def test_config_of_another_network_is_refused():
    for shapes in ({}, {"conv_out.weight": (4, 320, 3, 3)}, {"conv_out.weight": ()}, {"down_blocks.x.weight": (1,)}):
        with pytest.raises(UserError, match="not a LatentSync U-Net"):
            config_from_tensors(shapes)
    with torch.device("meta"):
        shapes = shapes_of(UNet(tiny_config()).state_dict())
    shapes["conv_in.weight"] = (32, 9, 3, 3)
    with pytest.raises(UserError, match="takes 9 channels; with 4 latent channels it must take 13"):
        config_from_tensors(shapes)


def refusal(unet, sample, audio):
    with pytest.raises(UserError) as caught:
        unet(sample, 1, audio)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_inputs_are_named():
    unet = tiny("all")
    sample, audio = inputs(unet.config)
    assert "got 12 channels; it takes 13" in refusal(unet, sample[:, :12], audio)
    assert "latents of 3×4; both must be multiples of 2" in refusal(unet, sample[..., :3, :], audio)
    assert "audio of shape (1, 3, 50, 16); it takes (1, 4, 50, 16)" in refusal(unet, sample, audio[:, :3])
    assert "audio of shape (1, 4, 50, 8); it takes (1, 4, 50, 16)" in refusal(unet, sample, audio[..., :8])
    assert "audio of shape (2, 4, 50, 16)" in refusal(unet, sample, audio.expand(2, -1, -1, -1))
    sample, audio = inputs(unet.config, frames=POSITIONS + 1, side=2)
    assert f"{POSITIONS + 1} frames at once; its motion modules take at most {POSITIONS}" in refusal(
        unet, sample, audio
    )
    assert tiny("none")(sample, 1, audio).shape[2] == POSITIONS + 1  # without them any number goes


def counting(base, made):
    return type(
        base.__name__, (base,), {"__init__": lambda self, *a, **k: made.append(self) or base.__init__(self, *a, **k)}
    )


def test_every_weight_lies_in_an_injected_layer():
    """A host (ComfyUI) brings layers of its own; one that was made otherwise would stay on the wrong device."""
    made: list[nn.Module] = []
    kinds = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
    ops = SimpleNamespace(**{kind.__name__: counting(kind, made) for kind in kinds})
    unet = UNet(tiny_config(audio_dim=16), ops)
    held = [m for m in unet.modules() if any(True for _ in m.parameters(recurse=False))]
    assert {id(m) for m in held} == {id(m) for m in made}
    assert {type(m).__name__ for m in held} == {kind.__name__ for kind in kinds}
    assert all(name.endswith("pos_encoder.pe") for name, _ in unet.named_buffers())
    assert shapes_of(unet.state_dict()) == shapes_of(UNet(tiny_config(audio_dim=16)).state_dict())


def test_a_residual_network_trains_in_a_process_that_has_sampled():
    """Nothing that is made while sampling, or while a dry run counts memory, may stay in the network."""
    weight = torch.ones((), requires_grad=True)
    for mode in (torch.inference_mode(), FakeTensorMode()):
        with mode:
            lips_window(8, 8)
        weight.grad = None
        (weight * lips_window(8, 8)).sum().backward()
        assert weight.grad == lips_window(8, 8).sum() > 0


@pytest.mark.parametrize("motion", ["none", "all"])
def test_deep_layers_that_stand_in_give_the_same_and_cost_little(motion):
    unet = tiny(motion).double()
    sample, audio = (t.double() for t in inputs(unet.config, batch=2))
    calls = []
    for module in unet.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_: calls.append(1))
    deep: list[torch.Tensor] = []
    whole = unet(sample, 500, audio, deep)
    full, calls[:] = len(calls), []
    assert len(deep) == 1
    assert torch.allclose(whole, unet(sample, 500, audio), atol=1e-12)
    calls.clear()
    assert torch.allclose(unet(sample, 500, audio, deep), whole, atol=1e-12)
    assert len(calls) < full / 3
    # another noise and time: the outermost layers see them, the deep ones are those kept
    other, last = sample + 1, unet.up_blocks[-1]
    time = unet.time_embedding(torch.tensor([300, 300]), other.dtype)
    x = unet.conv_in(other.transpose(1, 2).flatten(0, 1))
    x = last.layer(len(last.resnets) - 1, torch.cat((deep[0], x), 1), time, audio.flatten(0, 1), 4)
    x = unet.conv_out(torch.nn.functional.silu(unet_blocks.window_norm(unet.conv_norm_out, x, 4)))
    wanted = x.unflatten(0, (2, 4)).transpose(1, 2)
    assert torch.allclose(unet(other, 300, audio, deep), wanted, atol=1e-12)


def test_attention_along_time_is_that_of_every_pixel_alone():
    attention = lively(unet_blocks.TemporalAttention(32, nn), 3).double()
    x = torch.randn(2, 5, 6, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    coded = x + position_code(32)[0, :5, None].double()
    for batch in range(2):
        for pixel in range(6):
            q, k, v = (f(coded[batch, :, pixel]) for f in (attention.to_q, attention.to_k, attention.to_v))
            heads = []
            for head in range(8):
                own = slice(4 * head, 4 * head + 4)
                weights = torch.softmax(q[:, own] @ k[:, own].T / 4**0.5, -1)
                heads.append(weights @ v[:, own])
            wanted = attention.to_out[0](torch.cat(heads, -1))
            assert torch.allclose(attention(x)[batch, :, pixel], wanted, atol=1e-12)
