"""Doubling and convolution in one: the same numbers."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from latentsync.models.subpixel import SubPixelUpsample, quicken
from latentsync.weights.vae_files import load_vae

from .test_vae import tiny


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (6, 3), (8, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_same_as_doubling_and_then_a_convolution(size, bias):
    generator = torch.Generator().manual_seed(4)
    conv = nn.Conv2d(5, 7, 3, padding=1, bias=bias).double().requires_grad_(False)
    x = torch.randn(2, 5, *size, dtype=torch.float64, generator=generator)
    wanted = conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert torch.allclose(SubPixelUpsample(conv)(x), wanted, atol=1e-12)


@torch.inference_mode()
def test_a_vae_decodes_the_same(tmp_path):
    save_file(tiny(widths=(128, 128, 160)).state_dict(), tmp_path / "vae.safetensors")
    plain, quick = load_vae(tmp_path / "vae.safetensors"), quicken(load_vae(tmp_path / "vae.safetensors"))
    latents = torch.randn(2, plain.channels, 8, 6, generator=torch.Generator().manual_seed(5))
    assert sum(isinstance(m, SubPixelUpsample) for m in quick.modules()) == 2
    assert torch.allclose(quick.decode(latents), plain.decode(latents), atol=2e-5)


def test_narrow_and_tiny_ones_stay(tmp_path):
    save_file(tiny().state_dict(), tmp_path / "vae.safetensors")
    for vae in (load_vae(tmp_path / "vae.safetensors"), load_vae("nano")):
        assert not any(isinstance(m, SubPixelUpsample) for m in quicken(vae).modules())
