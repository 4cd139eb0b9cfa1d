"""A training run of the U-Net: loads its files, prepares the data and starts the trainer."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from ...dataset import ClipFile, find_clips
from ...errors import UserError
from ...models.perceptual import load_lpips, load_videomae
from ...models.syncnet import StableSyncNet
from ...models.vae import VAE
from ...weights.identify import identify
from ...weights.registry import find
from ...weights.syncnet_files import load_syncnet
from ...weights.vae_files import load_vae
from ...weights.whisper_files import load_whisper
from ..dataset import CLIP_ERRORS, ClipDataset, ClipStore, Split, default_cache, fingerprint, split_clips, to_signed
from ..distributed import make_accelerator, prepare_folder
from ..dry_run import DryRun, dry_run
from ..progress import Pace
from ..recipes import Files, UNetRecipe
from ..task import Report
from ..trainer import Trainer
from .checks import check_clips, check_initial
from .data import UNetWindows, target_starts
from .init import InitialUNet, initial_unet, locate
from .lip_sync import given_video
from .task import PerceptualNets, UNetTask

if TYPE_CHECKING:
    from accelerate import Accelerator

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FEW_RECORDINGS = 20
DEFAULT_VAE = "vae"


@dataclass(frozen=True)
class UNetRun:
    """A run with everything loaded. latents: their kind in the cache, if they are cached; clips: to encode then."""

    task: UNetTask
    recipe: UNetRecipe
    accelerator: "Accelerator"
    store: ClipStore
    latents: str | None
    clips: Sequence[ClipFile]


def run_unet(data: Path, out: Path, recipe: UNetRecipe, files: Files, **options: Any) -> str:
    """Train, or resume; returns the reason for the end. The result is out/unet.safetensors (or lora.safetensors).

    options: of prepare_run.
    """
    run = prepare_run(data, out, recipe, files, **options)
    report: Report = options.get("report", lambda line: None)
    trainer = Trainer(run.task, run.recipe, out, run.accelerator, report)
    also = {name: str(value) for name, value in dataclasses.asdict(files).items() if value is not None}
    prepare_folder(run.accelerator, out, run.recipe, **also)
    if run.latents:
        fill_cache(run, report if run.accelerator.is_main_process else lambda line: None)
    return trainer.fit()


def try_unet(data: Path, out: Path, recipe: UNetRecipe, files: Files, **options: Any) -> DryRun:
    """What run_unet would take. Its caches are temporary."""
    with TemporaryDirectory(prefix="latentsync-") as folder:
        run = prepare_run(data, out, recipe, dataclasses.replace(files, cache=Path(folder)), **options)
        if run.latents:
            fill_cache(dataclasses.replace(run, clips=[run.task.data.clip(0)]))
        return dry_run(run.task, run.recipe, run.accelerator, out)


def prepare_run(
    data: Path, out: Path, recipe: UNetRecipe, files: Files,
    *, keep_resolution: bool = False, cpu: bool = False, report: Report = lambda line: None,
    make_task: Callable[..., UNetTask] = UNetTask,
) -> UNetRun:  # fmt: skip
    """Load and check everything; writes nothing.

    keep_resolution: train at the resolution of the initial weights, not the recipe's. make_task: of UNetTask's fields.
    """
    accelerator = make_accelerator(recipe.precision, recipe.gradient_accumulation_steps, cpu=cpu)
    main_report: Report = report if accelerator.is_main_process else lambda line: None
    if recipe.lora and files.init == "none":
        raise UserError("A LoRA needs a trained network; give one with --init.")
    bundle = None if files.init in ("none", "sd15") else locate(files.init)
    if bundle and identify(bundle).kind != "nano":  # one file of U-Net and VAE
        bundle = None
    whisper = load_whisper(files.whisper or ("tiny.en" if bundle else "tiny"))
    vae = load_vae(files.vae or bundle or DEFAULT_VAE)
    initial = initial_unet(files.init, recipe, size=files.size, audio_dim=whisper.dim, channels=vae.channels)
    check_initial(recipe, files, initial, whisper.dim)
    recipe = _follow_weights(recipe, initial, keep_resolution)
    split = split_clips(find_clips(data), recipe)
    cache = files.cache or default_cache(data, out)
    store = ClipStore(cache, recipe.resolution, whisper, upsample=recipe.upsample)
    validation = long_enough(store, split.validation, recipe.frames)
    for line in filter(None, (_summary(split, validation), check_clips(store, split.train, recipe.frames))):
        main_report(line)
    dtype = DTYPES[str(accelerator.mixed_precision)]
    kind = f"latents-{fingerprint(vae.state_dict())}-{recipe.resolution}" if recipe.cache_latents else None
    first_frame = recipe.reference_mode == "first_frame"
    nets = load_perceptual_nets(recipe, files, accelerator.device, dtype)
    judged = nets.syncnet.config.frames if nets.syncnet and recipe.sync_weight else 0
    make = UNetWindows(store, judged, recipe.needs_pixels, kind, recipe.frames, first_frame)
    train = ClipDataset(split.train, make, recipe.seed)
    checks = ClipDataset(validation, make, recipe.validate_seed) if validation else None
    metadata = _metadata(initial, vae, out, own_vae=not files.vae)
    if recipe.lora:
        metadata["base"] = identify(locate(files.init)).version
    vae_state = vae.model.state_dict() if files.vae or bundle else None
    task = make_task(
        initial.unet, vae, recipe, train, checks, nets, metadata=metadata, vae_state=vae_state, dtype=dtype,
        landmarker=_landmarker(main_report), given=given_video(files, whisper),
    )  # fmt: skip
    sizes = [(p.numel() / 1e6, p.requires_grad) for p in task.network.parameters()]
    counts = f"{sum(n for n, trained in sizes if trained):.1f} of {sum(n for n, _ in sizes):.1f} million parameters"
    main_report(f"{len(task.trained)} tensors, {counts} are trained; the result will be {out / task.result}")
    clips = {clip.path: clip for clip in [*split.train, *validation]}
    return UNetRun(task, recipe, accelerator, store, kind, [clips[path] for path in sorted(clips)])


def _landmarker(report: Report) -> Path | None:
    try:
        return find("face_landmarker.task")
    except UserError as error:
        report(f"Validations will not measure lips: {error}")
        return None


def _follow_weights(recipe: UNetRecipe, initial: InitialUNet, keep_resolution: bool) -> UNetRecipe:
    config = initial.unet.config
    first_frame = "first_frame" in (recipe.reference_mode, config.reference_mode)
    return dataclasses.replace(
        recipe,
        prediction_type=config.prediction_type,
        resolution=config.resolution or recipe.resolution if keep_resolution else recipe.resolution,
        reference_mode="first_frame" if first_frame else "per_frame",
    )


def _summary(split: Split, validation: Sequence[ClipFile]) -> str:
    recordings = len({clip.source for clip in [*split.train, *validation]})
    held_out = "other recordings" if split.recordings else "time of each clip" if split.time else "no validation"
    few = "; that is few: the network will know these people only" if recordings < FEW_RECORDINGS else ""
    counts = f"{len(split.train)} clips to train on, {len(validation)} held out ({held_out})"
    return f"{counts}, from {recordings} recordings{few}"


def long_enough(store: ClipStore, clips: Sequence[ClipFile], frames: int) -> list[ClipFile]:
    """Without held-out parts that are too short. Clips that cannot be used stay: the dataset reports why."""

    def has_window(clip: ClipFile) -> bool:
        try:
            return bool(target_starts(*clip.span(store.info(clip).frames), frames))
        except CLIP_ERRORS:
            return True

    kept = [clip for clip in clips if clip.part == (0.0, 1.0) or has_window(clip)]
    if clips and not kept:
        raise UserError(
            f"The held-out part of each clip is shorter than a window of {frames} frames; raise --holdout-time, or set"
            " it to 0 to hold out recordings."
        )
    return kept


def load_perceptual_nets(recipe: UNetRecipe, files: Files, device: torch.device, dtype: torch.dtype) -> PerceptualNets:
    """A SyncNet also without a weight: validation reports its confidence."""
    syncnet = None if files.sync_net is None else load_syncnet(locate(str(files.sync_net)))
    if syncnet is not None and not isinstance(syncnet, StableSyncNet):
        raise UserError(f"{files.sync_net} is the SyncNet of Chung & Zisserman; a StableSyncNet is needed here.")
    lpips = load_lpips(recipe.lpips, device) if recipe.lpips_weight else None
    folder = files.videomae if recipe.trepa_weight else None
    videomae = load_videomae(folder, device, recipe.frames, dtype) if folder else None
    return PerceptualNets(syncnet, lpips, videomae)


def _metadata(initial: InitialUNet, vae: VAE, out: Path, *, own_vae: bool) -> dict[str, Any]:
    """own_vae: the VAE is the one that the initial weights were made with."""
    of_vae = () if own_vae else ("latent_rgb",)
    metadata = {name: value for name, value in initial.metadata.items() if name not in of_vae} | {
        "version": out.absolute().name,
        "unet_groups": initial.unet.config.groups,
        "unet_residual": residual if (residual := initial.unet.config.residual) != "none" else None,
        "vae_groups": getattr(vae.model.config, "norm_num_groups", None),  # a tiny VAE has no norms
    }
    return {name: value for name, value in metadata.items() if value is not None}


def fill_cache(run: UNetRun, report: Report = lambda line: None) -> None:
    """Encode what is not in the cache yet, each process its share. Broken clips are left to the dataset, which replaces
    them."""
    task, accelerator = run.task, run.accelerator
    task.to(accelerator.device)

    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return task.codec.encode_pair(to_signed(pixels.to(task.codec.device)))

    share = run.clips[accelerator.process_index :: accelerator.num_processes]
    pace = Pace("latents of clip", len(share), report)
    for done, clip in enumerate(share, 1):
        try:
            run.store.fill_latents(clip, str(run.latents), encode)
        except CLIP_ERRORS as error:
            report(f"{clip.path}: no latents, {error}")
        pace.update(done)
    accelerator.wait_for_everyone()
