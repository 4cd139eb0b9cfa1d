"""Which device and number format are chosen when the user leaves it open."""

import pytest
import torch

from latentsync.errors import UserError
from latentsync.models import device
from latentsync.models.device import autocast, pick_dtype


@pytest.mark.parametrize(
    ("taken", "dtype"), [(0.1, torch.bfloat16), (0.5, torch.bfloat16), (0.9, torch.float32), (1.9, torch.float32)]
)
def test_a_cpu_takes_bf16_where_it_is_faster(monkeypatch, taken, dtype):
    """Instructions do not tell: Intel's AVX-512 BF16 without AMX takes 1.9 times as long as fp32."""
    monkeypatch.setattr(device, "_seconds", lambda dtype: taken if dtype == torch.bfloat16 else 1.0)
    device._gains_by_bf16.cache_clear()
    try:
        assert pick_dtype("auto", "cpu") == dtype
        assert pick_dtype("fp32", "cpu") == torch.float32
        with autocast("cpu"):
            assert torch.ones(2, 2).mm(torch.ones(2, 2)).dtype == dtype
    finally:
        device._gains_by_bf16.cache_clear()


def test_this_cpu_is_measured_once(monkeypatch):
    """The choice is part of what makes frames, so it must not change within a run."""
    device._gains_by_bf16.cache_clear()
    tried, real = [], device._seconds
    monkeypatch.setattr(device, "_seconds", lambda dtype: tried.append(dtype) or real(dtype))
    chosen = {pick_dtype("auto", "cpu") for _ in range(3)}
    assert len(chosen) == 1
    assert sorted(map(str, tried)) == ["torch.bfloat16", "torch.float32"]


@pytest.mark.parametrize(("capability", "dtype"), [((6, 1), torch.float32), ((7, 0), torch.float16)])
def test_a_card_takes_fp16_where_it_gains_by_it(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pick_dtype("auto", "cuda:0") == dtype


def test_unknown_formats_are_refused():
    with pytest.raises(UserError, match=r"fp8.*auto, fp32, fp16, bf16"):
        pick_dtype("fp8", "cpu")
