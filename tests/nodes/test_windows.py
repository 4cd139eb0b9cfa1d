"""The U-Net as ComfyUI calls it: a clip of any length costs the device one window at a time."""

import pytest
import torch

from ..pack import pack_module
from ..tiny import tiny_config

windows = pack_module("nodes.windows")
sizes = pack_module("latentsync.models.unet").UNetConfig


def network():
    config = sizes(
        **{
            name: getattr(tiny_config(), name)
            for name in ("widths", "layers", "cross", "audio_dim", "motion", "groups")
        }
    )
    torch.manual_seed(0)
    return windows.FrameUNet(config, torch.nn, lambda: None).eval()


@pytest.mark.parametrize("branches", [1, 2])
@torch.inference_mode()
def test_conditions_go_to_the_device_window_by_window(monkeypatch, branches):
    """In float64 they stand for what lies elsewhere: only what a window needs may be converted."""
    frames, unet = 40, network()
    c = unet.config.latent_channels
    noisy = torch.randn(branches * frames, c, 8, 8)
    conditions = [torch.randn(frames, 2 * c + 1, 8, 8, dtype=torch.float64) for _ in range(branches)]
    tokens = [torch.randn(frames, 50, unet.config.audio_dim, dtype=torch.float64) for _ in range(branches)]
    segment = torch.zeros(branches * frames, dtype=torch.long)
    moved = []
    original = torch.Tensor.to

    def to(tensor, *rest, **more):
        if tensor.dtype == torch.float64:
            moved.append(tensor.shape[:2])
        return original(tensor, *rest, **more)

    monkeypatch.setattr(torch.Tensor, "to", to)
    made = unet(
        noisy,
        torch.full((branches * frames,), 500.0),
        conditions=windows.Branches(conditions),
        tokens=windows.Branches(tokens),
        segment=segment,
    )
    monkeypatch.undo()
    assert moved == [(branches, 16)] * 6  # three windows, conditions and tokens each
    inputs = torch.cat((noisy.unflatten(0, (branches, frames)), torch.stack(conditions).float()), 2)
    for branch in range(branches):
        audio = tokens[branch].float()
        for start, stop, keep in ((0, 16, 0), (16, 32, 16), (24, 40, 32)):
            wanted = unet.window(
                inputs[branch, start:stop].transpose(0, 1)[None], torch.tensor(500.0), audio[None, start:stop]
            )
            got = made.unflatten(0, (branches, frames))[branch, keep:stop]
            assert torch.allclose(got, wanted[0].transpose(0, 1)[keep - start :], atol=1e-5)
