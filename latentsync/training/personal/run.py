"""A model of one person from recordings of them: from clips to a LoRA file and a page."""

import datetime
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...errors import FootageError, UnfinishedError, UserError
from ...files import atomic_path
from ...media.audio_track import AudioTrack
from ...media.journal import Journal, fingerprint, open_journal
from ...media.probe import probe
from ...models.device import pick_device
from ...models.vae import VAE
from ...settings import Settings
from ...weights.bundle import Models, companions, load_models
from ...weights.files import write_safetensors
from ...weights.identify import FileInfo, identify
from ...weights.load import inherited, load_unet, locate
from ...weights.lora import DIFFERENCE, VAE_PREFIX
from ...weights.vae_files import load_vae
from ..dataset import to_signed
from ..progress import Pace, duration
from ..task import Report
from ..unet.codec import Codec
from ..unet.lora import lora_state
from .examples import Examples, make_examples
from .footage import MOST, Clip, check, read_clip
from .judge import Figures, Judge
from .page import Story, write_page
from .plan import Plan, make_plan
from .settings import PersonalSettings
from .trainer import PersonalTrainer

CONSENT = "Make a model only of yourself, or of someone who has agreed to it."
TIMED = 6
"""Steps by which it is known how long one takes; the first is slower and does not count."""
SPENT = 0.85
"""Share of the time asked for that is spent on steps; the rest reads the clips and looks at the results."""
FACTS = "examples.json"
CHECKPOINT, PROGRESS, BEST = "trainer.pt", "progress.json", "best.safetensors"
EXAMPLES, CROPS = "examples.safetensors", "crops.npy"
Stop = Callable[[], bool]


@dataclass(frozen=True)
class Request:
    """What a model is made of. person: a label for the file. minutes and steps: of training at
    most, 0: what suits the checkpoint. anyway: train
    although the clips have faults. vae, whisper, settings: None: those of the checkpoint."""

    clips: Sequence[Path]
    out: Path
    checkpoint: str = "nano"
    person: str = ""
    face: str = Settings.face
    minutes: float = 0.0
    steps: int = 0
    anyway: bool = False
    preview: bool = False
    device: str = "auto"
    vae: str | Path | None = None
    whisper: str | Path | None = None
    settings: PersonalSettings | None = None
    seed: int = 1247

    def check(self) -> None:
        """UserError for what is wrong at first sight."""
        if self.out.suffix != ".safetensors":
            raise UserError(f"The model's name must end in .safetensors, and it is {self.out}.")
        if self.out.exists():
            raise UserError(f"{self.out} exists already; remove it or choose another name.")
        if not self.out.absolute().parent.is_dir():
            raise UserError(f"There is no folder {self.out.parent} to write {self.out.name} to; create it first.")
        if not self.clips:
            raise UserError("Give at least one video in which the person speaks.")
        for clip in self.clips:
            if not clip.is_file():
                raise UserError(f"There is no video {clip}; give the path of one.")
        if self.minutes < 0:
            raise UserError(f"minutes is {self.minutes:g}; give 0 for all steps, or more.")

    @property
    def label(self) -> str:
        return self.person or self.out.stem

    @property
    def page(self) -> Path:
        return self.out.with_suffix(".html")


@dataclass(frozen=True)
class PersonalModel:
    """What came of it. lora: None after a preview."""

    lora: Path | None
    page: Path
    before: Figures
    after: Figures | None
    steps: int
    seconds: float
    plan: Plan


def personalize(
    request: Request, report: Report = lambda line: None, should_stop: Stop = lambda: False
) -> PersonalModel:
    """Train, or go on where a killed run of the same request was. UserError where something is wrong with the clips,
    UnfinishedError after a stop: the same request goes on."""
    request.check()
    begun = time.monotonic()
    device = torch.device(pick_device(request.device))
    info = identify(locate(request.checkpoint))
    with load_models(request.checkpoint, vae=request.vae, whisper=request.whisper, device=device) as models:
        settings = request.settings or PersonalSettings.for_network(models.unet, seed=request.seed)
        settings = replace(settings, steps=request.steps or settings.steps)
        key = fingerprint(_facts(request, settings, models), *request.clips)
        with open_journal(request.out, key) as journal:
            if journal is None:
                raise UserError(f"Another process is making {request.out}; wait for it, or choose another name.")
            run = _Run(request, settings, info, models, device, journal, report, should_stop)
            return run.go(begun)


def _facts(request: Request, settings: PersonalSettings, models: Models) -> dict[str, Any]:
    """What makes it another run."""
    asked = {"face": request.face, "minutes": request.minutes, "settings": asdict(settings)}
    return asked | {"models": models.fingerprint(), "kind": "personalize", "preview": request.preview}


@dataclass
class _Run:
    request: Request
    settings: PersonalSettings
    info: FileInfo
    models: Models
    device: torch.device
    journal: Journal
    report: Report
    should_stop: Stop

    @property
    def vae(self) -> str | Path:
        return self.request.vae or companions(self.info)[0]

    def go(self, begun: float) -> PersonalModel:
        vae = load_vae(self.vae, device=self.device)  # as it is trained, not as it is quickest
        unet = load_unet(self.request.checkpoint, device=self.device)
        side = self.models.resolution
        codec = Codec(vae, side, training_dtype(self.device), gradient_checkpointing=self.settings.checkpointing)
        codec.to(self.device)
        examples, facts = self.examples(codec)
        judge = Judge(examples, codec, self.models.finder, self.settings.seed)
        trainer = PersonalTrainer(unet, vae, examples, self.settings, codec)
        plan = make_plan(trainer)
        for line in plan.lines(self.request.checkpoint):
            self.report(line)
        before_frames = judge.make(unet)
        before = judge.figures(before_frames)
        story = self.story(examples, judge, facts, before_frames, before)
        if self.request.preview:
            page = write_page(self.request.page, replace(story, notes=plan.lines(self.request.checkpoint)))
            return PersonalModel(None, page, before, None, 0, time.monotonic() - begun, plan)
        plan.check()
        history = self.train(trainer, judge, before)
        if max(history, key=lambda one: one[1].score)[0] == 0:
            raise UnfinishedError(
                f"No step was better than {self.request.checkpoint} alone on the held-out seconds, so no model was"
                " written; give more footage, sharp and from the front."
            )
        _set(trainer, load_file(self.journal.path(BEST)))
        after_frames = judge.make(trainer.unet)
        after = judge.figures(after_frames)
        lora = self.write(trainer, vae, facts, before, after)
        story = replace(story, after=after_frames, better=after, history=history, use=self.use())
        page = write_page(self.request.page, story)
        return PersonalModel(lora, page, before, after, trainer.step, time.monotonic() - begun, plan)

    def examples(self, codec: Codec) -> tuple[Examples, dict[str, Any]]:
        """From the clips, or as a killed run found them."""
        saved = self.journal.path(FACTS)
        if saved.is_file():  # the last of its files
            facts = json.loads(saved.read_text())
            tensors = load_file(self.journal.path(EXAMPLES))
            crops = np.load(self.journal.path(CROPS), mmap_mode="r")
            landmarks, references = (tensors.pop(name).numpy() for name in ("landmarks", "references"))
            runs, held_out = (tuple(tuple(run) for run in facts[name]) for name in ("runs", "held_out"))
            return Examples(crops, landmarks, runs=runs, held_out=held_out, references=references, **tensors), facts
        clips = self.footage()

        def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
            clean, masked = codec.encode_pair(to_signed(pixels.to(self.device)))
            return clean.cpu(), masked.cpu()

        frames = sum(len(clip.numbers) for clip in clips)
        pace = Pace("encoding: frame", frames, self.report)
        examples = make_examples(clips, encode, pace.update)
        facts = {
            "runs": examples.runs, "held_out": examples.held_out, "speech": sum(clip.speech for clip in clips),
            "clips": [str(clip.path) for clip in clips], "late": [clip.late for clip in clips],
            "held": self._held(clips, examples),
        }  # fmt: skip
        tensors = {name: getattr(examples, name) for name in ("clean", "masked", "audio")}
        tensors |= {name: torch.from_numpy(getattr(examples, name)) for name in ("landmarks", "references")}
        np.save(self.journal.path(CROPS), examples.crops)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, self.journal.path(EXAMPLES))
        with atomic_path(saved) as part:
            part.write_text(json.dumps(facts))
        return examples, facts

    def footage(self) -> list[Clip]:
        clips: list[Clip] = []
        room = MOST
        for path in self.request.clips:
            if room <= 0:
                self.report(f"{path} is left out: {MOST:.0f} s of speech are enough")
                continue
            most = self.settings.most_frames // len(self.request.clips)
            clip = read_clip(path, self.request.face, self.models, self.report, room, most)
            room -= clip.speech
            clips.append(clip)
            late = f"; audio {clip.late:+d} frames late, corrected" if clip.late else ""
            self.report(f"{path}: {len(clip.numbers)} frames to learn from, {clip.speech:.0f} s of speech{late}")
        problems = check(clips)
        for problem in problems:
            self.report(f"note: {problem}")
        if problems and not self.request.anyway:
            raise FootageError(f"These clips will not make a good model: {'; '.join(problems)}")
        return clips

    @staticmethod
    def _held(clips: Sequence[Clip], examples: Examples) -> tuple[str, int]:
        """The clip and the frame in it where the held-out moments begin."""
        first, moment = 0, examples.held_out[0][0]
        for clip in clips:
            if moment < first + len(clip.numbers):
                return str(clip.path), int(clip.numbers[moment - first]) + clip.late
            first += len(clip.numbers)
        raise AssertionError(moment)

    def train(self, trainer: PersonalTrainer, judge: Judge, before: Figures) -> list[tuple[int, Figures]]:
        """To the end, or until nothing gets better. What is best is kept in the journal."""
        history = self.resume(trainer, before)
        pace = Pace("step", trainer.settings.steps, self.report, done=trainer.step)
        times: list[float] = []
        while trainer.step < trainer.settings.steps and not _exhausted(history, self.settings.patience):
            if self.should_stop():
                self.save(trainer, history)
                raise UnfinishedError(f"stopped at step {trainer.step}; run it again to continue from there.")
            start = time.monotonic()
            trainer.train_step()
            times.append(time.monotonic() - start)
            if trainer.step == TIMED and self.request.minutes:
                self.fit_time(trainer, float(np.median(times[1:])))
                self.save(trainer, history)
                pace.total = trainer.settings.steps
            pace.update(trainer.step)
            if trainer.step % self.settings.judge_every == 0 or trainer.step == trainer.settings.steps:
                self.look(trainer, judge, history)
                self.save(trainer, history)
        return history

    def resume(self, trainer: PersonalTrainer, before: Figures) -> list[tuple[int, Figures]]:
        """Where a killed run was; what was found until then."""
        checkpoint, progress = self.journal.path(CHECKPOINT), self.journal.path(PROGRESS)
        if not checkpoint.is_file():
            save_file(_state(trainer), self.journal.path(BEST))
            return [(0, before)]
        state = json.loads(progress.read_text())
        trainer.settings = replace(trainer.settings, steps=state["steps"])
        trainer.load(checkpoint)
        self.report(f"continues at step {trainer.step} of {trainer.settings.steps}")
        return [(step, Figures(**values)) for step, values in state["history"] if step <= trainer.step]

    def fit_time(self, trainer: PersonalTrainer, seconds: float) -> None:
        """As many steps as fit into the time asked for."""
        fit = int(self.request.minutes * 60 * SPENT / seconds)
        steps = min(self.settings.steps, max(self.settings.judge_every, fit))
        trainer.plan_steps(steps)
        self.report(f"{seconds:.2g} s a step: {steps} steps, about {duration(steps * seconds)}")

    def look(self, trainer: PersonalTrainer, judge: Judge, history: list[tuple[int, Figures]]) -> None:
        """At the held-out end with averaged weights, which are kept if they are the best yet."""
        current = _state(trainer)
        _set(trainer, current | _averaged(trainer))
        if trainer.told is not None:
            trainer.told.fit(trainer.examples.audio, trainer.examples.trained)
        figures = judge.figures(judge.make(trainer.unet))
        best = max(history, key=lambda one: one[1].score)[1]
        if figures.score > best.score:
            with atomic_path(self.journal.path(BEST)) as part:
                save_file(_state(trainer), part)
        history.append((trainer.step, figures))
        _set(trainer, current)
        self.report(
            f"step {trainer.step}: opening {figures.opening:.2f}, likeness {figures.similarity:.3f}, sharpness"
            f" {figures.sharpness:.2f}{' (best yet)' if figures.score > best.score else ''}"
        )

    def save(self, trainer: PersonalTrainer, history: Sequence[tuple[int, Figures]]) -> None:
        state = {"steps": trainer.settings.steps, "history": [(step, asdict(one)) for step, one in history]}
        with atomic_path(self.journal.path(PROGRESS)) as part:
            part.write_text(json.dumps(state))
        trainer.save(self.journal.path(CHECKPOINT))

    def write(
        self, trainer: PersonalTrainer, vae: VAE, facts: Mapping[str, Any], before: Figures, after: Figures
    ) -> Path:
        tensors = lora_state(trainer.unet) | ({} if trainer.told is None else trainer.told.lora())
        if self.settings.decoder:
            original = load_vae(self.vae).model.decoder.state_dict()
            for name, value in vae.model.decoder.state_dict().items():
                tensors[f"{VAE_PREFIX}decoder.{name}{DIFFERENCE}"] = value.cpu() - original[name]
        metadata = inherited(self.info) | {
            "format": "latentsync", "kind": "lora", "base": self.info.version or "",
            "resolution": str(self.models.resolution), "person": self.request.label, "consent": CONSENT,
            "date": datetime.date.today().isoformat(), "speech_seconds": f"{facts['speech']:.0f}",
            "steps": str(trainer.step), "before": json.dumps(asdict(before)), "after": json.dumps(asdict(after)),
        }  # fmt: skip
        half = {name: tensor.detach().cpu().half() for name, tensor in tensors.items()}
        return write_safetensors(self.request.out, half, {k: str(v) for k, v in metadata.items() if v})

    def story(
        self, examples: Examples, judge: Judge, facts: Mapping[str, Any], frames: np.ndarray, figures: Figures
    ) -> Story:
        moments = judge.moments
        together = 1 + int(np.argmax([*(np.diff(moments) != 1), True]))
        clip, first = facts["held"]
        info = probe(clip)
        sound = AudioTrack(Path(clip), info.start + max(0, first) / info.fps, duration=Fraction(together) / info.fps)
        shown = {
            "Clips": ", ".join(Path(one).name for one in facts["clips"]),
            "Speech": f"{facts['speech']:.0f} s",
            "Checkpoint": self.info.version or self.request.checkpoint,
            "Date": datetime.date.today().isoformat(),
            "Consent": CONSENT,
        }
        true = np.ascontiguousarray(examples.crops[moments])
        return Story(self.request.label, shown, true, frames, figures, fps=info.fps, sound=sound, together=together)

    def use(self) -> str:
        checkpoint = "" if self.request.checkpoint == "nano" else f" -c {self.request.checkpoint}"
        return f"latentsync run -v clip.mp4 -a speech.wav -o out.mp4{checkpoint} --lora {self.request.out.name}"


def training_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the device has it: unlike fp16 it needs no loss scaling."""
    from ...models.device import pick_dtype

    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return pick_dtype("auto", "cpu") if device.type == "cpu" else torch.float32


def _exhausted(history: Sequence[tuple[int, Figures]], patience: int) -> bool:
    scores = [figures.score for _, figures in history]
    return len(scores) - 1 - int(np.argmax(scores)) >= patience


def _trained(trainer: PersonalTrainer) -> list[Tensor]:
    return [*trainer.lora, *trainer.picture]


def _state(trainer: PersonalTrainer) -> dict[str, Tensor]:
    """What is in the file in the end."""
    held = [*_trained(trainer), *([] if trainer.told is None else [trainer.told.correction])]
    return {str(i): p.detach().clone(memory_format=torch.contiguous_format) for i, p in enumerate(held)}


def _averaged(trainer: PersonalTrainer) -> dict[str, Tensor]:
    return {str(i): p.detach() for i, p in enumerate(trainer.average.module.parameters())}


@torch.no_grad()
def _set(trainer: PersonalTrainer, state: Mapping[str, Tensor]) -> None:
    held = [*_trained(trainer), *([] if trainer.told is None else [trainer.told.correction])]
    for i, tensor in enumerate(held):
        tensor.copy_(state[str(i)])
