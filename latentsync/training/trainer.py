"""The training loop, the same for every network: what is special to one is its Task."""

import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import UserError
from .checkpoints import SHARDS, Checkpoints, Guard, Patience, load_state, save_state
from .dataset import ClipDataset, Feed, Numbers, Sample, collate, to_device
from .distributed import any_rank, from_main, is_sharded, mean_over_ranks, prepare
from .ema import MovingAverage, set_rate
from .logging import Journal, draw_charts
from .recipes import RunSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

Say = Callable[[str], None]
RECIPE = "recipe.yaml"
PUBLIC_FORM = ".pt"
"""Ending of the weight file that the public code reads, which a task may write beside its own."""


class Task(Protocol):
    """What a Trainer trains. All parameters of network with requires_grad are given to the optimiser.

    result: name of the weight file that save() writes among others. data: the samples; held: those for validation,
    None for no validation.
    """

    result: str

    @property
    def network(self) -> nn.Module: ...

    @property
    def data(self) -> ClipDataset: ...

    @property
    def held(self) -> ClipDataset | None: ...

    def to(self, device: torch.device) -> None:
        """Everything but the network, to where it is trained."""
        ...

    def losses(self, network: nn.Module, batch: Sample, *, validating: bool = False) -> dict[str, Tensor]:
        """Numbers to log by name; "total" is what the gradients are of. A function of the batch alone."""
        ...

    def show(self, folder: Path, step: int) -> dict[str, float]:
        """After a validation, in the main process: pictures into folder, and more numbers by name."""
        ...

    def save(self, folder: Path, state: dict[str, Tensor], step: int) -> None:
        """Write the weight file, of the network's state."""
        ...

    def load(self, folder: Path) -> None:
        """Read into the network what save() wrote."""
        ...


@dataclass
class Trainer:
    """Trains a task in a folder, or goes on with what is there. fit() is the whole story."""

    task: Task
    settings: RunSettings
    run: Path
    accelerator: "Accelerator"
    say: Say = lambda line: None
    step: int = 0
    rolls: int = 0
    asked_to_stop: bool = False
    worked: float = 0.0
    counted: int = 0
    named: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        accelerator, settings = self.accelerator, self.settings
        self.main: bool = accelerator.is_main_process
        self.sharded = is_sharded(accelerator)
        self.parameters = [p for p in self.task.network.parameters() if p.requires_grad]
        if not self.parameters:
            raise UserError("Nothing is left to train: no parameter's name matches the recipe.")
        if self.sharded and settings.average:
            raise UserError("A moving average of sharded weights (FSDP, ZeRO) is not kept; set average to 0.")
        self.task.to(accelerator.device)
        optimizer = make_optimizer(settings, self.parameters)
        self.model, self.optimizer = prepare(accelerator, self.task.network, optimizer, settings.batch)
        self.average = self._new_average() if settings.average else None
        self.journal = Journal(self.run, main=self.main)
        self.checkpoints = Checkpoints(self.run, settings.keep)
        self.guard, self.patience = Guard(settings.bad_steps), Patience(settings.patience)
        self.feed = self._feed()

    def fit(self) -> str:
        """Train until a rule says stop; gives the reason."""
        with listening(self):
            self.resume()
            while (reason := self.reason_to_stop()) is None:
                start = time.perf_counter()
                losses, norm = self.gradients()
                verdict = self.judge(losses, norm)
                if verdict == "step":
                    self.update()
                elif not self.avoid(verdict):
                    continue
                self.step, self.counted = self.step + 1, self.counted + 1
                self.worked += time.perf_counter() - start
                self.log(losses, norm, verdict)
                improved = self.validate()
                self.save(improved)
        self.finish(reason)
        return reason

    # ---- one step ----

    def gradients(self) -> tuple[dict[str, float], float]:
        """Forward and backward over the parts of one step; mean losses of this process, norm of the gradient."""
        self.model.train()
        sums: dict[str, float] = {}
        for _ in range(self.settings.accumulate):
            batch = self.next_batch()
            with self.accelerator.accumulate(self.model):
                losses = self.task.losses(self.model, batch)
                self.accelerator.backward(losses["total"])
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + float(loss.detach()) / self.settings.accumulate
        norm: Any = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        return sums, 0.0 if norm is None else float(norm)

    def next_batch(self) -> Sample:
        batch = next(self.feed)
        for trouble in "\n".join(batch["bad"]).splitlines():
            if trouble and trouble not in self.named:  # good samples say ""
                self.named.add(trouble)
                self.say(self.journal.tell(self.step, "clip replaced", why=trouble))
        return to_device(batch, self.accelerator.device)

    def judge(self, losses: dict[str, float], norm: float) -> str:
        """The same verdict in every process. A gradient scaler's overflow is its own affair, while it has room left."""
        scaler = self.accelerator.scaler
        room = scaler is not None and scaler.get_scale() >= 1
        finite = all(map(math.isfinite, losses.values())) and (math.isfinite(norm) or room)
        bad, self.asked_to_stop = any_rank(self.accelerator, not finite, self.asked_to_stop)
        return self.guard.judge(not bad)

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None and not self.optimizer.step_was_skipped:
            self.average.update(nn.ParameterList(self.parameters))

    def avoid(self, verdict: str) -> bool:
        """Not a step to take. Whether the run goes on from here, rather than from an earlier checkpoint."""
        forget_gradients(self.optimizer, self.accelerator.scaler)
        self._tell("step skipped", verdict=verdict)
        if verdict == "give up":
            raise UserError(
                f"The losses are no numbers again and again after step {self.checkpoints.latest()}; look at"
                f" {self.run / 'events.jsonl'}, lower the rate, or take --precision bf16 or fp32."
            )
        if verdict == "roll back":
            self.roll_back()
        return verdict == "skip"

    def roll_back(self) -> None:
        """To the last checkpoint, and on with other samples than those that led here."""
        rolls, guard = self.rolls + 1, self.guard
        step = from_main(self.accelerator, self.checkpoints.latest())
        self.load(step)
        self.guard, self.rolls = guard, rolls
        self.feed = self._feed()
        self._tell("rolled back", rolls=rolls)

    # ---- now and then ----

    def log(self, losses: dict[str, float], norm: float, verdict: str) -> None:
        if verdict == "step" and math.isfinite(norm):
            self.journal.add({f"loss/{name}": value for name, value in losses.items()} | {"gradient": norm})
        if self.step % self.settings.log_every and self.step != self.settings.steps:
            return
        values = mean_over_ranks(self.accelerator, self.journal.means() | self._pace())
        scaler = self.accelerator.scaler
        values |= {"scale": scaler.get_scale()} if scaler is not None else {}
        self.journal.write(self.step, values)
        self._say(f"step {self.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def _pace(self) -> dict[str, float]:
        """Clips a second of all processes together, and the share of the time that went by waiting for data."""
        clips, worked = self.counted * self.samples_per_step, max(self.worked, 1e-9)
        pace = {"clips per second": clips / worked, "waiting for data": self.feed.waited / worked}
        self.worked, self.feed.waited, self.counted = 0.0, 0.0, 0
        return pace

    @property
    def samples_per_step(self) -> int:
        return self.settings.batch * self.settings.accumulate * self.accelerator.num_processes

    def validate(self) -> bool:
        """Whether this step's weights are the best so far. The same windows and noise every time."""
        due = self.step % self.settings.validate_every == 0 or self.step == self.settings.steps
        if self.task.held is None or not due:
            return False
        values: dict[str, float] = {}
        with self.averaged(), torch.no_grad():
            if self.main or self.sharded:
                values = self._held_losses()
            if self.main and not self.sharded:
                values |= self.task.show(self.run / "samples", self.step)
        values = from_main(self.accelerator, values)
        self.journal.write(self.step, values)
        self._say(f"step {self.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        if self.main and self.step < self.settings.steps:  # else finish() does
            draw_charts(self.run)
        return self.patience.better(values["validation/total"])

    def _held_losses(self) -> dict[str, float]:
        """Means over the held-out windows. A sharded network needs all processes, any other is asked directly."""
        network, held = (self.model if self.sharded else self.task.network), self.task.held
        assert held is not None
        network.eval()
        sums: dict[str, float] = {}
        windows, batch = self.settings.validate_windows, self.settings.batch
        for first in range(0, windows, batch):
            numbers = range(first, min(first + batch, windows))
            samples = to_device(collate([held[n] for n in numbers]), self.accelerator.device)
            for name, loss in self.task.losses(network, samples, validating=True).items():
                sums[name] = sums.get(name, 0.0) + float(loss) * len(numbers) / windows
        return {f"validation/{name}": value for name, value in sums.items()}

    @contextmanager
    def averaged(self) -> Iterator[list[Tensor] | None]:
        """Within it the network has its averaged weights, where an average is kept; gives its own ones then."""
        if self.average is None:
            yield None
            return
        own = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            for parameter, mean in zip(self.parameters, self.average.state.values(), strict=True):
                parameter.copy_(mean)
        try:
            yield own
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, own, strict=True):
                    parameter.copy_(value)

    # ---- checkpoints ----

    def save(self, improved: bool = False, *, now: bool = False) -> None:
        """A checkpoint, where one is due, the weights are the best yet, or it must be now."""
        due = self.step % self.settings.save_every == 0 or self.step == self.settings.steps or self.asked_to_stop
        if not (now or due or improved) or not self.guard.calm:
            return
        self.guard.saved()
        with self.averaged() as own:
            weights: Any = self.task.network.state_dict()
            if self.sharded:
                weights = self.accelerator.get_state_dict(self.model)
                self._save_shards()
            if self.main:
                self.checkpoints.save(self.step, lambda folder: self._write(folder, weights, own))
        if self.main and improved:
            self.checkpoints.set_best(self.step, self.patience.best)
        if self.main:
            self.checkpoints.prune()
        self.accelerator.wait_for_everyone()

    def _save_shards(self) -> None:
        """Every process its own, into a hidden folder that the checkpoint takes in: it is complete or not there."""
        if self.main:
            shutil.rmtree(self.checkpoints.shards, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(self.checkpoints.shards))
        self._forget_first_step()
        self.accelerator.wait_for_everyone()

    def _forget_first_step(self) -> None:
        """PyTorch makes an optimiser's state, to save it, by a step without gradients, which Adam would count."""
        if self.step == 0:
            self.optimizer.state.clear()

    def _write(self, folder: Path, weights: dict[str, Tensor], own: list[Tensor] | None) -> None:
        self.task.save(folder, weights, self.step)
        if self.sharded:
            self.checkpoints.shards.rename(folder / SHARDS)
        scaler, average = self.accelerator.scaler, self.average
        save_state(
            folder,
            step=self.step,
            rolls=self.rolls,
            samples_per_step=self.samples_per_step,
            guard=asdict(self.guard),
            patience=asdict(self.patience),
            journal={"sums": self.journal.sums, "count": self.journal.count},
            optimizer=None if self.sharded else self.optimizer.state_dict(),
            scaler=None if scaler is None else scaler.state_dict(),
            average=None if average is None else {"state": average.state, "count": average.count},
            own=own,
        )

    def resume(self) -> None:
        """Go on from the newest checkpoint; a new run makes its first one, so that there is one to go back to."""
        self.accelerator.wait_for_everyone()
        latest = from_main(self.accelerator, self.checkpoints.latest())
        if latest is None:
            self.save(now=True)
            return
        self.load(latest)
        self.feed = self._feed()
        self._tell("resumed")

    def load(self, step: int) -> None:
        place = self.checkpoints.place(step)
        state = load_state(place)
        if self.sharded:
            self.accelerator.load_state(str(place / SHARDS))
        else:
            self.task.load(place)
            self.optimizer.load_state_dict(state["optimizer"])
        self._restore(state)
        if self.sharded:
            self._forget_first_step()
        set_rate(self.optimizer, self.settings.rate)  # the recipe's, should it have been changed
        if self.main:
            self.checkpoints.drop_after(step)
        self.journal.cut(step)

    def _restore(self, state: dict[str, Any]) -> None:
        self.step, self.rolls = state["step"], state["rolls"]
        self.guard = Guard(**state["guard"] | {"patience": self.settings.bad_steps})
        self.patience = Patience(**state["patience"] | {"validations": self.settings.patience})
        self.journal.sums, self.journal.count = state["journal"]["sums"], state["journal"]["count"]
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self._restore_average(state)
        if state["samples_per_step"] != self.samples_per_step:
            self._tell("other samples a step", before=state["samples_per_step"], now=self.samples_per_step)

    def _restore_average(self, state: dict[str, Any]) -> None:
        if state["average"] is None:  # the run was begun without one
            self.average = self._new_average()
            return
        assert self.average is not None
        device = self.parameters[0].device
        self.average.state = {key: value.to(device) for key, value in state["average"]["state"].items()}
        self.average.count = state["average"]["count"]
        with torch.no_grad():
            for parameter, value in zip(self.parameters, state["own"], strict=True):
                parameter.copy_(value)

    # ---- beginning and end ----

    def reason_to_stop(self) -> str | None:
        if self.step >= self.settings.steps:
            return f"{self.settings.steps} steps are done"
        if self.patience.exhausted:
            return f"no better validation in the last {self.patience.validations} (patience)"
        return "asked to" if self.asked_to_stop else None

    def finish(self, reason: str) -> None:
        """A last checkpoint, the curves, and the weights to use: the best by validation, else the last."""
        if self.checkpoints.latest() != self.step:
            self.save(now=True)
        self._tell("stopped", reason=reason)
        if self.main:
            chosen = self.checkpoints.best()
            chosen = self.checkpoints.latest() if chosen is None else chosen
            assert chosen is not None
            place, result = self.checkpoints.place(chosen), Path(self.task.result)
            publish(place / result, self.run / result)
            if (place / (public := result.with_suffix(PUBLIC_FORM))).is_file():
                publish(place / public, self.run / public)
            with suppress(UserError):  # a run that had nothing to do has no curves
                draw_charts(self.run)
        self.journal.close()
        self.accelerator.wait_for_everyone()

    def _feed(self) -> Feed:
        settings, accelerator = self.settings, self.accelerator
        numbers = Numbers(
            self.step,
            settings.batch,
            accumulate=settings.accumulate,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            rolls=self.rolls,
        )
        return Feed(self.task.data, numbers, workers=settings.workers, pin=accelerator.device.type == "cuda")

    def _new_average(self) -> MovingAverage:
        return MovingAverage(nn.ParameterList(self.parameters), self.settings.average)

    def _say(self, line: str) -> None:
        if self.main:
            self.say(line)

    def _tell(self, event: str, **facts: Any) -> None:
        if self.main:
            self.say(self.journal.tell(self.step, event, **facts))


def make_optimizer(settings: RunSettings, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), or bitsandbytes' with moments of 8 bits (Dettmers et al. 2022)."""
    kind: Any = torch.optim.AdamW
    if settings.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError("The 8-bit optimiser needs bitsandbytes (pip install bitsandbytes); or adamw.") from error
        kind = AdamW8bit
    return kind(parameters, lr=settings.rate, weight_decay=settings.weight_decay)


def forget_gradients(optimizer: Any, scaler: Any) -> None:
    """Of a step that is not taken. A scaler that has looked at them must be told that the step is over."""
    if scaler is not None:
        scaler.update()
    optimizer.zero_grad()


@contextmanager
def listening(trainer: Trainer) -> Iterator[None]:
    """Ctrl-C and SIGTERM (a cluster that wants its machine back) let the step finish and a checkpoint be made."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(*_: object) -> None:
        trainer.asked_to_stop = True

    before = {kind: signal.signal(kind, ask) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def publish(source: Path, target: Path) -> None:
    """A copy under its own name, complete or not there."""
    part = target.with_name(f".{target.name}.part")
    shutil.copyfile(source, part)
    part.replace(target)
