"""Architectures, recipes and training runs of SyncNets."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ...dataset import ClipFile, find_clips
from ...errors import UserError
from ...models.device import pick_device
from ...models.syncnet import SyncNetConfig
from ..dataset import ClipDataset, default_cache, split_clips
from ..distributed import make_accelerator, prepare_folder
from ..dry_run import DryRun, dry_run
from ..progress import Pace
from ..recipes import SyncNetRecipe
from ..task import Report
from ..trainer import Trainer
from .data import CropStore, SyncNetWindows, VaeEncoder, repeat_long_clips
from .task import SyncNetTask, SyncNetTrainingModule

TRIED_CLIPS = 8
"""Clips of a dry run."""
MIN_WIDTH = 256
"""With a smaller last width the last normalization has less than eight numbers per group, and learning fails."""


def run_syncnet(
    data: Path,
    out: Path,
    config: SyncNetConfig,
    recipe: SyncNetRecipe,
    *,
    cache: Path | None = None,
    encode: VaeEncoder | None = None,
    cpu: bool = False,
    report: Report = lambda line: None,
) -> str:
    """Train, or resume; returns the reason for the end. The result is out/syncnet.safetensors."""
    accelerator = make_accelerator(recipe.precision, recipe.gradient_accumulation_steps, cpu=cpu)
    main_report: Report = report if accelerator.is_main_process else lambda line: None
    with accelerator.main_process_first():  # it fills the cache
        store = CropStore(cache or default_cache(data, out), config, encode, upsample=recipe.upsample)
        task = syncnet_task(data, store, recipe, main_report)
    network = json.loads(json.dumps(dataclasses.asdict(config)))  # tuples to lists, for YAML
    trainer = Trainer(task, task.recipe, out, accelerator, report)
    prepare_folder(accelerator, out, dataclasses.replace(task.recipe, network=network))
    return trainer.fit()


def train_syncnet(
    data: Path, out: Path, config: SyncNetConfig, recipe: SyncNetRecipe, *, vae: str | None = None, **options: Any
) -> str:
    """run_syncnet with the VAE's name, for processes elsewhere."""
    device = "cpu" if options.get("cpu") else pick_device("auto")
    return run_syncnet(data, out, config, recipe, encode=VaeEncoder(vae, device) if vae else None, **options)


def try_syncnet(
    data: Path, out: Path, config: SyncNetConfig, recipe: SyncNetRecipe,
    *, encode: VaeEncoder | None = None, cpu: bool = False, report: Report = lambda line: None,
) -> DryRun:  # fmt: skip
    """What run_syncnet would take. Its cache is temporary, so only a few clips are cropped."""
    accelerator = make_accelerator(recipe.precision, recipe.gradient_accumulation_steps, cpu=cpu)
    with TemporaryDirectory(prefix="latentsync-") as folder:
        task = syncnet_task(data, CropStore(Path(folder), config, encode), recipe, report, limit=TRIED_CLIPS)
        return dry_run(task, task.recipe, accelerator, out)


def syncnet_task(
    data: Path, store: CropStore, recipe: SyncNetRecipe, report: Report = lambda _: None, limit: int | None = None
) -> SyncNetTask:
    """A new network, and the clips to train and score it on; fills the store's cache. limit: of clips of each kind."""
    config, split = store.config, split_clips(find_clips(data), recipe, recipe.holdout_at)
    train, time, people = (
        _usable(store, clips[:limit], report) for clips in (split.train, split.time, split.recordings)
    )
    if recipe.opening and not (train and all(store.opening(clip) is not None for clip in train)):
        report("The clips have no mouth openings (.npz files beside them); opening is set to 0.")
        recipe = dataclasses.replace(recipe, opening=0.0)
    windows = SyncNetWindows(store, recipe.windows, recipe.min_shift, opening=bool(recipe.opening))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = SyncNetTrainingModule(config, opening=bool(recipe.opening), contrast=bool(recipe.contrast))
    if (width := config.visual.widths[-1]) < MIN_WIDTH:
        report(f"The encoders end in {width} channels, which hardly learn; use {MIN_WIDTH} or more.")
    validation = time or people
    report(
        f"{sum(p.numel() for p in network.syncnet.parameters()) / 1e6:.1f} million parameters; parts of clips:"
        f" {len(train)} to train on, {len(time)} of held-out time, {len(people)} of held-out people"
    )
    augmented = dataclasses.replace(windows, augment=recipe.augment, flip=recipe.flip)
    data_train = ClipDataset(repeat_long_clips(train, store), augmented, recipe.seed)
    checks = ClipDataset(validation, windows, recipe.validate_seed) if validation else None
    metadata = {"seed": recipe.seed, "holdout_people": " ".join(recipe.holdout_people)}
    recipe = dataclasses.replace(recipe, validate_windows=min(recipe.validate_windows, recipe.batch_size))
    return SyncNetTask(network, recipe, store, data_train, checks, time, people, metadata)


def _usable(store: CropStore, clips: Sequence[ClipFile], report: Report) -> list[ClipFile]:
    """Clips that can be read and are long enough."""
    kept, pace = [], Pace("pictures of clip", len(clips), report)
    for done, clip in enumerate(clips, 1):
        try:
            store.starts(clip)
            store.crops(clip)
            kept.append(clip)
        except UserError as error:
            report(f"skipped: {error}")
        pace.update(done)
    return kept
