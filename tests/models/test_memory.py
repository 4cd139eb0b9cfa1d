"""How much is computed at once, and the order in which that is made less."""

import pytest

from latentsync.models.memory import MemoryPlan, plans
from latentsync.models.unet_config import UNetConfig


def test_smaller_plans_give_up_windows_first_then_branches_then_pictures():
    assert [(p.windows, p.together, p.pictures) for p in plans(MemoryPlan(5))] == [
        (5, True, 4),
        (2, True, 4),
        (1, True, 4),
        (1, False, 4),
        (1, False, 1),
    ]


@pytest.mark.parametrize(
    ("plan", "resolution", "guided", "gigabytes"),
    [
        # counted on meta tensors, 2 bytes a number: docs/performance.md
        (MemoryPlan(), 256, True, 0.54),
        (MemoryPlan(), 256, False, 0.40),  # four pictures in the VAE
        (MemoryPlan(), 512, True, 2.16),
        (MemoryPlan(1, False), 512, True, 1.08),
        (MemoryPlan(4), 256, True, 2.16),
        (MemoryPlan(1, False, 1), 512, True, 1.08),
        (MemoryPlan(1, False, 1), 256, True, 0.27),
    ],
)
def test_memory_of_a_plan(plan, resolution, guided, gigabytes):
    assert plan.bytes(UNetConfig(), resolution, 2, guided=guided) / 1e9 == pytest.approx(gigabytes, abs=0.01)
    assert plan.bytes(UNetConfig(), resolution, 4, guided=guided) / 1e9 == pytest.approx(2 * gigabytes, abs=0.02)


def test_every_smaller_plan_takes_less_or_as_much():
    for resolution in (256, 512):
        sizes = [plan.bytes(UNetConfig(), resolution, 2, guided=True) for plan in plans(MemoryPlan(8))]
        assert sizes == sorted(sizes, reverse=True)
