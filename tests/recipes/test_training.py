"""What the trainer stands on: losses of pictures, the schedule, averages, checkpoints, the loop."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from latentsync.training.logging import read_log
from latentsync.training.loop import Trainer, fit, trapezoid
from latentsync.training.optim import averaged_model
from latentsync.training.unet.critic import AdversarialLoss, adversarial_weight
from latentsync.training.unet.picture_losses import edge_loss, plain_losses, texture_loss, tone_loss


def test_texture_is_compared_whatever_its_place():
    """A picture blurred is worse by texture than one whose grain lies elsewhere; by plain difference it is better."""
    torch.manual_seed(0)
    grain, other = torch.randn(2, 1, 3, 64, 64) * 0.2
    blurred = torch.nn.functional.avg_pool2d(grain, 5, 1, 2)
    assert texture_loss(blurred, grain) > 3 * texture_loss(other, grain)
    assert (blurred - grain).abs().mean() < (other - grain).abs().mean()


def test_each_loss_sees_what_it_is_for():
    torch.manual_seed(0)
    picture = torch.nn.functional.avg_pool2d(torch.randn(1, 3, 72, 72), 9, 1)
    brighter, blurred = picture + 0.1, torch.nn.functional.avg_pool2d(picture, 3, 1, 1, count_include_pad=False)
    assert edge_loss(brighter, picture) < 1e-5 < 1e-2 * edge_loss(blurred, picture)
    assert tone_loss(brighter, picture) == pytest.approx(0.2, rel=1e-3)
    assert tone_loss(blurred, picture) < 0.02
    assert all(loss == 0 for loss in plain_losses(picture, picture).values())


def test_the_critic_pulls_as_hard_as_the_rest_once_it_can_tell():
    made = torch.randn(2, 3, 8, 8, requires_grad=True)
    total, fool = (made * 3).square().sum(), -made.mean()
    for hinge, share in ((0.0, 1.0), (1.0, 0.5), (2.0, 0.0), (2.5, 0.0)):
        factor = adversarial_weight(total, {"g_loss": fool, "d_loss": torch.tensor(hinge)}, made, max_weight=1e6)
        pulls = [torch.autograd.grad(loss, made, retain_graph=True)[0].norm() for loss in (total, factor * fool)]
        assert float(pulls[1]) == pytest.approx(share * float(pulls[0]), rel=0.01)


def test_the_critic_learns_to_tell_and_pulls_the_made_towards_the_true():
    torch.manual_seed(0)
    adversarial, true = AdversarialLoss(), torch.full((2, 3, 32, 32), 0.5)
    made = torch.full((2, 3, 32, 32), -0.5, requires_grad=True)
    losses = [adversarial.losses(made, true) for _ in range(30)]
    assert losses[-1]["d_loss"] < 0.8 * losses[0]["d_loss"]
    losses[-1]["g_loss"].backward()
    assert made.grad.sum() < 0, "to get brighter makes the loss less"


@pytest.mark.parametrize(
    ("step", "share"),
    [(0, 0.01), (49, 0.5), (99, 1), (100, 1), (749, 1), (750, 1), (875, 0.5), (950, 0.2), (990, 0.05), (999, 0.05)],
)
def test_the_schedule_rises_stays_and_falls(step, share):
    """Each group keeps its own peak, also when a run is resumed."""
    layer = torch.nn.Linear(1, 1)
    groups = [{"params": [layer.weight], "lr": 1e-3}, {"params": [layer.bias], "lr": 3e-3}]
    optimizer = torch.optim.AdamW(groups)
    schedule = trapezoid(optimizer, 1000)
    for _ in range(step):
        optimizer.step()
        schedule.step()
    again = torch.optim.AdamW([dict(group) for group in groups])
    again.load_state_dict(optimizer.state_dict())
    trapezoid(again, 1000, step=step)
    for rates in (optimizer.param_groups, again.param_groups):
        assert [group["lr"] for group in rates] == pytest.approx([1e-3 * share, 3e-3 * share])


def test_the_average_follows_fast_then_slowly():
    """The decay of update n is n / (n + 10), at most the given one."""
    layer = torch.nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(0.0)
    average, wanted = averaged_model(layer, 0.9), 0.0
    for n in range(1, 200):
        with torch.no_grad():
            layer.weight.fill_(math.sin(n))
        average.update_parameters(layer)
        decay = min(0.9, n / (n + 10))
        wanted = decay * wanted + (1 - decay) * math.sin(n)
        assert float(average.module.weight) == pytest.approx(wanted, abs=1e-6)


@dataclass
class Settings:
    steps: int = 7
    report_every: int = 3


class Counter(Trainer):
    """The smallest trainer: its loss is the number of its step."""

    def __init__(self, step=0):
        self.settings, self.step = Settings(), step
        self.random = np.random.default_rng(0)
        self.layer = torch.nn.Linear(1, 1)
        self.average = averaged_model(self.layer, 0.9)
        self.optimizer = torch.optim.SGD(self.layer.parameters(), lr=1.0)
        self.schedule = trapezoid(self.optimizer, self.settings.steps)

    def train_step(self):
        self.step += 1
        return {"loss": torch.tensor(float(self.step))}

    def parts(self):
        return {"layer": self.layer, "optimizer": self.optimizer}

    def averages(self):
        return {"updates": self.average}


def test_a_checkpoint_is_complete_or_the_one_before(tmp_path):
    path, trainer = tmp_path / "new" / "run.pt", Counter(step=1)
    trainer.save(path)
    trainer.step = 2
    trainer.averages = lambda: {"odd": SimpleNamespace(n_averaged=lambda: None)}  # cannot be pickled
    with pytest.raises(AttributeError):
        trainer.save(path)
    again = Counter()
    again.load(path)
    assert again.step == 1
    assert [p.name for p in path.parent.iterdir()] == ["run.pt"]


def test_the_loop_reports_means_and_keeps_what_is_saved(tmp_path):
    path, lines = tmp_path / "run.pt", []
    fit(Counter(), path, save_every=6, on_report=lines.append)
    assert lines == [{"step": 3, "loss": 2.0}, {"step": 6, "loss": 5.0}, {"step": 7, "loss": 7.0}]
    assert torch.load(path, weights_only=True)["step"] == 7
    assert [line["loss"] for line in read_log(tmp_path / "run")] == [2.0, 5.0, 7.0]
    fit(Counter(step=3), path, save_every=6)
    assert [line["step"] for line in read_log(tmp_path / "run")] == [3, 6, 7], "lines are not doubled"
