"""Which device and number format are chosen when the user leaves it open."""

import pytest
import torch

from latentsync.errors import UserError
from latentsync.models import device
from latentsync.models.device import pick_dtype


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({"amx_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_a_cpu_takes_bf16_where_it_multiplies_it_in_hardware(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(device.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert pick_dtype("auto", "cpu") == dtype
    assert pick_dtype("fp32", "cpu") == torch.float32


def test_a_torch_that_cannot_tell_takes_fp32(monkeypatch):
    monkeypatch.setattr(device.platform, "machine", lambda: "AMD64")
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert pick_dtype("auto", "cpu") == torch.float32


@pytest.mark.parametrize(("taken", "dtype"), [(0.5, torch.bfloat16), (0.9, torch.float32), (40, torch.float32)])
def test_another_processor_is_measured(monkeypatch, taken, dtype):
    """An Apple or a server Arm: some have the instructions, and torch does not name them."""
    monkeypatch.setattr(device.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(device, "_seconds", lambda dtype: taken if dtype == torch.bfloat16 else 1.0)
    assert pick_dtype("auto", "cpu") == dtype


@pytest.mark.parametrize(("capability", "dtype"), [((6, 1), torch.float32), ((7, 0), torch.float16)])
def test_a_card_takes_fp16_where_it_gains_by_it(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_dtype("auto", "cuda:0") == dtype


def test_unknown_formats_are_refused():
    with pytest.raises(UserError, match=r"fp8.*auto, fp32, fp16, bf16"):
        pick_dtype("fp8", "cpu")
