"""The training loop, the same for every network: what is special to one is its Task."""

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from ..errors import UnfinishedError, UserError
from .checkpoints import SHARDS, Checkpoints, EarlyStopping, StepGuard, Verdict, load_state, save_state
from .dataset import IndexSampler, Sample, load_batches, to_device
from .distributed import any_rank, from_main, is_sharded, mean_over_ranks, prepare
from .logging import EVENTS, RunLog, draw_charts
from .optim import all_finite, averaged_model, drop_gradients, learning_rates, make_optimizer
from .progress import Pace
from .recipes import RunSettings, count_steps
from .signals import stop_on_signals
from .task import Report, Task
from .trackers import NO_TRACKERS, choose, start_trackers

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Trainer:
    """Trains a task in a folder, or resumes what is there."""

    task: Task
    settings: RunSettings
    run: Path
    accelerator: "Accelerator"
    report: Report = lambda line: None
    step: int = 0
    rollbacks: int = 0
    stop_requested: bool = False
    seconds: float = 0.0
    waited: float = 0.0
    steps_since_log: int = 0
    reported_clips: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        accelerator = self.accelerator
        self.settings = settings = count_steps(self.settings, len(self.task.data), self.samples_per_step)
        self.learning_rate = learning_rates(settings, accelerator.num_processes)
        self.main: bool = accelerator.is_main_process
        self.sharded = is_sharded(accelerator)
        self.parameters = [p for p in self.task.network.parameters() if p.requires_grad]
        if not self.parameters:
            raise UserError("There is nothing to train: no parameter's name matches the recipe.")
        if self.sharded and settings.ema_decay:
            raise UserError("Sharded weights (FSDP, ZeRO) cannot be averaged; set ema_decay to 0.")
        choose(settings.trackers)  # says what is not installed, before anything is written
        self.task.to(accelerator.device)
        optimizer = make_optimizer(settings, self.parameters)
        self.model, self.optimizer = prepare(accelerator, self.task.network, optimizer, settings.batch_size)
        self.average = self._new_average() if settings.ema_decay else None
        self.checkpoints = Checkpoints(self.run, settings.keep)
        self.guard, self.early_stopping = StepGuard(settings.max_bad_steps), EarlyStopping(settings.patience)
        self.batches: Iterator[Sample] | None = None
        self.pace = self._pace()

    @cached_property
    def log(self) -> RunLog:
        """Its files are made when it is first used: a run that cannot begin leaves nothing."""
        trackers = start_trackers(self.settings, self.run) if self.main else NO_TRACKERS
        return RunLog(self.run, main=self.main, trackers=trackers)

    def fit(self) -> str:
        """Train until a stop rule applies; returns the reason."""
        with stop_on_signals(partial(setattr, self, "stop_requested", True)):
            self.resume()
            self.pace = self._pace()
            while (reason := self.reason_to_stop()) is None:
                start = time.perf_counter()
                losses, norm = self.compute_gradients()
                verdict = self.check(losses, norm)
                if verdict == "step":
                    self.update()
                elif not self.skip(verdict):
                    continue
                self.step, self.steps_since_log = self.step + 1, self.steps_since_log + 1
                self.seconds += time.perf_counter() - start
                self.pace.update(self.step)
                self.log_step(losses, norm, verdict)
                validation = self.validate()
                if not self.is_sound(validation):
                    self.skip(self.guard.reject(), "weights or validation are non-finite")
                    continue
                self.save(validation is not None and self.early_stopping.improved(validation))
        self.finish(reason)
        if not self.guard.stable:
            raise UnfinishedError(
                f"The losses of the last steps were non-finite and these were skipped; {self.advice()}"
            )
        return reason

    def compute_gradients(self) -> tuple[dict[str, float], float]:
        """Forward and backward over the batches of a step; mean losses of this process, norm of the gradient."""
        self.model.train()
        means: dict[str, float] = {}
        for _ in range(self.settings.gradient_accumulation_steps):
            batch = self.next_batch()
            with self.accelerator.accumulate(self.model):
                losses = self.task.losses(self.model, batch)
                self.accelerator.backward(losses["total"])
            for name, loss in losses.items():
                share = float(loss.detach()) / self.settings.gradient_accumulation_steps
                means[name] = means.get(name, 0.0) + share
        norm: Any = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        return means, 0.0 if norm is None else float(norm)

    def next_batch(self) -> Sample:
        start = time.perf_counter()
        if self.batches is None:  # not before: workers load ahead, from the step where the run is
            self.batches = self._batches()
        batch = next(self.batches)
        self.waited += time.perf_counter() - start
        for problem in "\n".join(batch["bad"]).splitlines():
            if problem and problem not in self.reported_clips:  # "" for good samples
                self.reported_clips.add(problem)
                self.report(self.log.event(self.step, "clip replaced", why=problem))
        return to_device(batch, self.accelerator.device)

    def check(self, losses: dict[str, float], norm: float) -> Verdict:
        """The same verdict in every process. A gradient scaler handles its own overflows while its scale allows."""
        scaler = self.accelerator.scaler
        overflow = scaler is not None and scaler.get_scale() >= 1
        finite = all(map(math.isfinite, losses.values())) and (math.isfinite(norm) or overflow)
        bad, self.stop_requested = any_rank(self.accelerator, not finite, self.stop_requested)
        return self.guard.check(not bad)

    def update(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None and not self.optimizer.step_was_skipped:
            self.average.update_parameters(nn.ParameterList(self.parameters))

    def skip(self, verdict: Verdict, why: str = "step skipped") -> bool:
        """Drop the gradients. Returns whether the run continues here, not at an earlier checkpoint."""
        drop_gradients(self.optimizer, self.accelerator.scaler)
        self._event(why, verdict=verdict)
        if verdict == "give up":
            self.finish("non-finite again and again")
            raise UnfinishedError(
                f"The losses are non-finite again and again after step {self.checkpoints.latest()}; {self.advice()}"
            )
        if verdict == "roll back":  # to the last checkpoint, and on with other samples
            rollbacks, guard = self.rollbacks + 1, self.guard
            self.load(from_main(self.accelerator, self.checkpoints.latest()))
            self.guard, self.rollbacks = guard, rollbacks
            self._event("rolled back", rollbacks=rollbacks)
        return verdict == "skip"

    def log_step(self, losses: dict[str, float], norm: float, verdict: Verdict) -> None:
        if verdict == "step" and math.isfinite(norm):
            self.log.add({f"loss/{name}": value for name, value in losses.items()} | {"gradient": norm})
        settings = self.settings
        if self.step % settings.log_every and self.step != settings.steps:
            return
        clips, seconds = self.steps_since_log * self.samples_per_step, max(self.seconds, 1e-9)
        speed = {"clips per second": clips / seconds, "waiting for data": self.waited / seconds}
        self.seconds, self.waited, self.steps_since_log = 0.0, 0.0, 0
        if settings.warmup_steps or settings.lr_scheduler != "constant":
            speed["learning rate"] = self.learning_rate(self.step - 1)
        values = mean_over_ranks(self.accelerator, self.log.means() | speed)
        scaler = self.accelerator.scaler
        self._write(values | ({"scale": scaler.get_scale()} if scaler is not None else {}), f"{self.pace}")

    @property
    def samples_per_step(self) -> int:
        """Of all processes together."""
        settings = self.settings
        return settings.batch_size * settings.gradient_accumulation_steps * self.accelerator.num_processes

    def validate(self) -> float | None:
        """The task's criterion if a validation is due. The windows and the noise are always the same."""
        due = self.step % self.settings.validate_every == 0 or self.step == self.settings.steps
        if self.task.validation is None or not due:
            return None
        values: dict[str, float] = {}
        with self.averaged(), torch.no_grad():
            if self.main or self.sharded:
                values = self.validation_losses()
            if self.main and not self.sharded and math.isfinite(values["validation/total"]):
                with self.log.new_media(self.run / "samples", self.step):
                    values |= self.task.evaluate(self.run / "samples", self.step, self._event)
        values = from_main(self.accelerator, values)
        self._write(values)
        if self.main and self.step < self.settings.steps:  # else finish() does
            draw_charts(self.run)
        return values.get(self.task.criterion, values["validation/total"])  # a sharded network is not evaluated

    def is_sound(self, validation: float | None) -> bool:
        """Whether the validation, if there was one, and the weights that would be saved are finite."""
        if validation is None and not self.save_is_due:
            return True
        finite = (validation is None or math.isfinite(validation)) and all_finite(self.parameters)
        return not any_rank(self.accelerator, not finite)[0]

    def validation_losses(self) -> dict[str, float]:
        """Means over the validation windows. A sharded network needs all processes, any other runs in the main one."""
        network, data = (self.model if self.sharded else self.task.network), self.task.validation
        assert data is not None
        network.eval()
        means: dict[str, float] = {}
        windows, batch_size = self.settings.validate_windows, self.settings.batch_size
        for first in range(0, windows, batch_size):
            numbers = range(first, min(first + batch_size, windows))
            batch = to_device(default_collate([data[n] for n in numbers]), self.accelerator.device)
            for name, loss in self.task.losses(network, batch, validating=True).items():
                means[name] = means.get(name, 0.0) + float(loss) * len(numbers) / windows
        return {f"validation/{name}": value for name, value in means.items()}

    @contextmanager
    def averaged(self) -> Iterator[list[Tensor] | None]:
        """The network has its averaged weights within it, if there are any; gives the current ones then."""
        if self.average is None:
            yield None
            return
        current = [p.detach().clone() for p in self.parameters]
        self._set_parameters(self.average.module.parameters())
        try:
            yield current
        finally:
            self._set_parameters(current)

    def save(self, improved: bool = False, *, now: bool = False) -> None:
        """A checkpoint if one is due, if the weights are the best yet, or if it must be now."""
        if not (now or self.save_is_due or improved) or not self.guard.stable:
            return
        self.guard.rollbacks = 0
        with self.averaged() as current:
            weights: Any = self.task.network.state_dict()
            if self.sharded:
                weights = self.accelerator.get_state_dict(self.model)
                self._save_shards()
            if self.main:
                self.checkpoints.save(self.step, lambda folder: self._write_checkpoint(folder, weights, current))
        if self.main and improved:
            self.checkpoints.set_best(self.step, self.early_stopping.best)
        if self.main:
            self.checkpoints.prune()
        self.accelerator.wait_for_everyone()

    @property
    def save_is_due(self) -> bool:
        return self.step % self.settings.save_every == 0 or self.step == self.settings.steps or self.stop_requested

    def _save_shards(self) -> None:
        """Every process its own, into a temporary folder that moves into the checkpoint."""
        if self.main:
            shutil.rmtree(self.checkpoints.shards, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(self.checkpoints.shards))
        self._clear_initial_state()
        self.accelerator.wait_for_everyone()

    def _clear_initial_state(self) -> None:
        """To save an optimizer's state, PyTorch first creates it by a step without gradients, which Adam counts."""
        if self.step == 0:
            self.optimizer.state.clear()

    def _write_checkpoint(self, folder: Path, weights: dict[str, Tensor], current: list[Tensor] | None) -> None:
        self.task.save(folder, weights, self.step)
        if self.sharded:
            self.checkpoints.shards.rename(folder / SHARDS)
        scaler, average = self.accelerator.scaler, self.average
        counts = {"step": self.step, "rollbacks": self.rollbacks, "samples_per_step": self.samples_per_step}
        rules = {"guard": asdict(self.guard), "early_stopping": asdict(self.early_stopping)}
        save_state(
            folder, **counts, **rules, current=current, log={"sums": self.log.sums, "counts": self.log.counts},
            optimizer=None if self.sharded else self.optimizer.state_dict(),
            scaler=None if scaler is None else scaler.state_dict(),
            average=None if average is None else average.state_dict(),
        )  # fmt: skip

    def resume(self) -> None:
        """From the newest checkpoint. A new run makes its first one, for rollbacks."""
        self.accelerator.wait_for_everyone()
        latest = from_main(self.accelerator, self.checkpoints.latest())
        if latest is None:
            self.save(now=True)
            return
        self.load(latest)
        self._event("resumed")

    def load(self, step: int) -> None:
        path = self.checkpoints.path(step)
        state = load_state(path)
        if self.sharded:
            self.accelerator.load_state(str(path / SHARDS))
        else:
            self.task.load(path)
            self.optimizer.load_state_dict(state["optimizer"])
        self._restore(state)
        self.batches = None
        if self.sharded:
            self._clear_initial_state()
        if self.main:
            self.checkpoints.drop_after(step)
        self.log.truncate(step)

    def _restore(self, state: dict[str, Any]) -> None:
        self.step, self.rollbacks = state["step"], state["rollbacks"]
        self.guard = StepGuard(**state["guard"] | {"max_bad_steps": self.settings.max_bad_steps})
        self.early_stopping = EarlyStopping(**state["early_stopping"] | {"patience": self.settings.patience})
        log = state["log"]
        self.log.sums = log["sums"]
        # older checkpoints have one count for all
        self.log.counts = log.get("counts") or {name: int(log.get("count", 1)) for name in log["sums"]}
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if state["current"] is not None:
            self._set_parameters(state["current"])
        if self.average is not None:
            self.average = self._new_average()
            if state["average"] is not None:  # else the run began without one
                self.average.load_state_dict(state["average"])
        if state["samples_per_step"] != self.samples_per_step:
            self._event("samples per step changed", before=state["samples_per_step"], now=self.samples_per_step)

    def reason_to_stop(self) -> str | None:
        if self.step >= self.settings.steps:
            return f"{self.settings.steps} steps are done"
        if self.early_stopping.exhausted:
            return f"no better validation in the last {self.early_stopping.patience} (patience)"
        return "stop requested" if self.stop_requested else None

    def finish(self, reason: str) -> None:
        """A last checkpoint, the curves, and the weights to use: the best by validation, else the last."""
        if self.checkpoints.latest() != self.step:
            self.save(now=True)
        self._event("stopped", reason=reason)
        if self.main:
            best = self.checkpoints.best()
            why = (
                "the last checkpoint"
                if best is None
                else f"the best {self.task.criterion}, {self.early_stopping.best:.4g}"
            )
            self.checkpoints.publish(self.task.result, self.run)
            self.report(f"{self.run / self.task.result} holds the weights of step {self.checkpoints.chosen()} ({why})")
            with suppress(UserError):  # a run without a step has no curves
                draw_charts(self.run)
        self.log.close()
        self.accelerator.wait_for_everyone()

    def advice(self) -> str:
        """Against non-finite numbers."""
        held = f"{self.task.result} holds step {self.checkpoints.chosen()}"
        return f"{held}. Look at {self.run / EVENTS}, lower the learning rate, or use --precision bf16 or fp32."

    def _pace(self) -> Pace:
        return Pace("step", self.settings.steps, self.report, done=self.step, lines=False)

    def _batches(self) -> Iterator[Sample]:
        settings, accelerator = self.settings, self.accelerator
        rank, world, batches = (
            accelerator.process_index,
            accelerator.num_processes,
            settings.gradient_accumulation_steps,
        )
        sampler = IndexSampler(self.step, settings.batch_size, batches, rank, world, self.rollbacks)
        return load_batches(self.task.data, sampler, settings.workers, accelerator.device.type == "cuda")

    def _new_average(self) -> Any:
        return averaged_model(nn.ParameterList(self.parameters), self.settings.ema_decay)

    @torch.no_grad()
    def _set_parameters(self, values: Any) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def _write(self, values: dict[str, float], place: str = "") -> None:
        self.log.write(self.step, values)
        if self.main:
            self.report(
                f"{place or f'step {self.step}'}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            )

    def _event(self, event: str, **details: Any) -> None:
        if self.main:
            self.report(self.log.event(self.step, event, **details))
