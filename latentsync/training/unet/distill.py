"""Few-step distillation: a student learns to make in one or a few steps what a teacher makes in many.

Consistency distillation (Song et al. 2023): from a noisy window the teacher takes some solver steps, with guidance. The
student's answer at their end, without gradients, is its target at their start (no moving average: Song and Dhariwal
2024). If the teacher takes all its steps, the target is its finished window. A critic of decoded mouths (distribution
matching) keeps them as sharp as those of the clips.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import UserError
from ...models.unet import UNet
from ...sampling import cfg_denoise, ddim, timesteps
from ...weights.load import load_unet
from ..dataset import Sample, to_signed
from ..dry_run import DryRun
from ..recipes import DistillRecipe, Files
from ..task import Report
from .codec import spread_evenly
from .critic import AdversarialLoss, adversarial_weight
from .init import locate
from .losses import add_noise, lower_half, mixed_noise, predict_clean
from .run import run_unet, try_unet
from .task import UNetTask

CRITIC = "critic.pt"
HUBER = 1e-3
"""Width of the pseudo-Huber loss (Luo et al. 2023, LCM): nearly the absolute difference."""
KEPT = 0.05
"""Weight of latent cells outside the mask, which are replaced by the clip's own in use."""


def unet_kind(unet: UNet) -> str:
    config = unet.config
    return f"{config.latent_channels} latent channels, {config.prediction_type}, speech of {config.audio_dim}"


@dataclass
class DistillTask(UNetTask):
    """teacher: a U-Net of the student's kind, which is frozen; recipe.teacher_guidance: its guidance."""

    teacher: Any = None

    def __post_init__(self, vae: Any, dtype: torch.dtype) -> None:
        super().__post_init__(vae, dtype)
        recipe = self.distill
        few = {"default_steps": recipe.student_steps, "default_guidance": 1.0, "timestep_spacing": "trailing"}
        self.network.config = dataclasses.replace(self.network.config, **few)
        self.stated |= few
        mine, its = unet_kind(self.network), unet_kind(self.teacher)
        if mine != its:
            raise UserError(f"The student ({mine}) and its teacher ({its}) are of two kinds; start from the teacher.")
        self.teacher.to(dtype).eval().requires_grad_(False)
        self.critic = AdversarialLoss(recipe.seed) if recipe.critic_weight else None
        self.solver = list(ddim(recipe.teacher_steps, self.stated["prediction_type"], "trailing"))
        self.plan = [t for t, _ in self.solver]
        own = timesteps(recipe.student_steps, "trailing")
        self.own = [self.plan.index(t) for t in own]

    @property
    def distill(self) -> DistillRecipe:
        assert isinstance(self.recipe, DistillRecipe)
        return self.recipe

    @property
    def frozen(self) -> list[nn.Module]:
        critic = [] if self.critic is None else [self.critic.critic]  # small enough to count as one of these
        return [*super().frozen, self.teacher, *critic]

    def to(self, device: torch.device) -> None:
        super().to(device)
        self.teacher.to(device)
        if self.critic is not None:
            self.critic.to(device)

    def losses(self, network: nn.Module, batch: Sample, *, validating: bool = False) -> dict[str, Tensor]:
        recipe = self.distill
        clean, masked, reference = self.latents(batch)
        start, noise = self.draw_start(batch["number"], clean.shape, validating=validating)
        # sampling begins with noise alone
        noisy = noise if start == 0 else add_noise(clean, noise, self.alphas_cumprod[self.plan[start]])
        conditions = torch.cat((self.codec.mask.expand(len(clean), 1, clean.shape[2], -1, -1), masked, reference), 1)
        target = self.target(network, noisy, conditions, batch["audio"], start)
        made = self.answer(network, noisy, conditions, batch["audio"], start)
        weight = torch.where(self.codec.mask > 0.5, KEPT, 1.0)
        distance = ((made - target).square() + HUBER**2).sqrt() - HUBER
        out = {"distill": (weight / weight.mean() * distance).mean()}
        total = out["distill"]
        for name, loss in (self.pixel_losses(made, batch) if recipe.has_pixel_losses else {}).items():
            total, out[name] = total + getattr(recipe, f"{name}_weight") * loss, loss
        if self.critic is not None and not validating:
            judged = self.judge(made, batch, self.critic)
            share = adversarial_weight(out["distill"], judged, made)
            total = total + recipe.critic_weight * (share * judged["g_loss"] + judged["features"])
            out |= judged
        return {"total": total, **out}

    def draw_start(self, numbers: Tensor, shape: torch.Size, *, validating: bool) -> tuple[int, Tensor]:
        """Where on the teacher's plan the batch begins, and noise (B, C, F, h, w) that all frames share, from the
        samples' indices. Half of the batches begin where the student does in use, or all if the teacher finishes."""
        recipe, own = self.distill, self.own
        seed = recipe.validate_seed if validating else recipe.seed
        places = numbers.tolist()
        randoms = [np.random.default_rng([seed, place, 2]) for place in places]
        start = own[places[0] % len(own)]
        if not validating and recipe.solve < len(self.plan) and randoms[0].random() < 0.5:
            start = int(randoms[0].integers(len(self.plan)))
        generators = [torch.Generator().manual_seed(int(random.integers(2**63))) for random in randoms]
        one = (shape[1], 1, *shape[3:])
        noise = torch.stack([mixed_noise(one, generator, 0.0).expand(shape[1:]) for generator in generators])
        return start, noise.to(self.codec.device)

    def answer(self, network: nn.Module, noisy: Tensor, conditions: Tensor, audio: Tensor, position: int) -> Tensor:
        """The student's clean latents (B, C, F, h, w) at a position of the plan."""
        inputs = torch.cat((noisy, conditions), 1)
        if inputs.device.type == "cpu" and torch.is_grad_enabled():
            inputs.requires_grad_()  # see UNetTask.losses
        t = torch.full((len(inputs),), self.plan[position], device=inputs.device)
        bar = self.alphas_cumprod[t]
        return predict_clean(network(inputs, t, audio), noisy, bar, self.stated["prediction_type"])

    @torch.no_grad()
    def target(self, network: nn.Module, noisy: Tensor, conditions: Tensor, audio: Tensor, start: int) -> Tensor:
        """Clean latents (B, C, F, h, w): the teacher's solver steps from there, then the student's answer."""
        stop = min(start + self.distill.solve, len(self.plan))
        dtype = next(self.teacher.parameters()).dtype
        for t, update in self.solver[start:stop]:
            inputs = torch.cat((noisy, conditions), 1).to(dtype)
            output = cfg_denoise(self.teacher, inputs, t, audio.to(dtype), self.distill.teacher_guidance)
            noisy, _ = update(output.float(), noisy)
        return noisy if stop == len(self.plan) else self.answer(network, noisy, conditions, audio, stop)

    def judge(self, made: Tensor, batch: Sample, critic: AdversarialLoss) -> dict[str, Tensor]:
        """The critic's losses of the lower halves of some frames; outside the mask they are the clip's own."""
        frames = spread_evenly(self.recipe.frames, self.recipe.decoded_frames)
        true = to_signed(batch["pixels"][:, frames])
        mouths = torch.where(self.codec.keep > 0.5, true, self.codec.decode(made.transpose(1, 2)[:, frames]))
        return critic.losses(*(lower_half(images).flatten(0, 1) for images in (mouths, true)))

    def save(self, folder: Path, state: dict[str, Tensor], step: int) -> None:
        super().save(folder, state, step)
        if self.critic is not None:
            torch.save(self.critic.state_dict(), folder / CRITIC)

    def load(self, folder: Path) -> None:
        super().load(folder)
        if self.critic is None:
            return
        if not (folder / CRITIC).is_file():
            raise UserError(f"{folder} was made without a critic; set --critic-weight 0 as then, or give a new --out.")
        self.critic.load_state_dict(torch.load(folder / CRITIC, map_location="cpu", weights_only=True))


def run_distill(
    data: Path, out: Path, teacher: str, recipe: DistillRecipe, files: Files,
    *, cpu: bool = False, report: Report = lambda line: None,
) -> str:  # fmt: skip
    """Distill, or resume; returns the reason for the end. teacher: a name or a file. The student starts as files.init,
    else as the teacher; it must be of the same kind."""
    recipe, files, make_task = _with_teacher(teacher, recipe, files, report)
    return run_unet(data, out, recipe, files, keep_resolution=True, cpu=cpu, report=report, make_task=make_task)


def try_distill(
    data: Path, out: Path, teacher: str, recipe: DistillRecipe, files: Files,
    *, cpu: bool = False, report: Report = lambda line: None,
) -> DryRun:  # fmt: skip
    """What run_distill would take."""
    recipe, files, make_task = _with_teacher(teacher, recipe, files, report)
    return try_unet(data, out, recipe, files, keep_resolution=True, cpu=cpu, report=report, make_task=make_task)


def _with_teacher(
    teacher: str, recipe: DistillRecipe, files: Files, report: Report
) -> tuple[DistillRecipe, Files, Callable[..., DistillTask]]:
    """Recipe and files with what follows from the teacher, and what makes the task."""
    unet = load_unet(teacher)
    guidance = recipe.teacher_guidance or unet.config.default_guidance
    recipe = dataclasses.replace(recipe, motion=unet.config.motion, teacher_guidance=guidance)
    files = dataclasses.replace(files, init=teacher if files.init == "none" else files.init)
    report(f"teacher: {locate(teacher).name}, {recipe.teacher_steps} steps, guidance {guidance:g}")
    return recipe, files, partial(DistillTask, teacher=unet)
