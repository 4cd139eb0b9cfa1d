"""From what the command line was told to a finished run of the U-Net's training."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...errors import UserError
from ...models.perceptual import load_lpips, load_videomae
from ...models.syncnet import StableSyncNet
from ...models.vae import VAE
from ...models.whisper import WhisperEncoder
from ...weights.identify import identify
from ...weights.syncnet_files import load_syncnet
from ...weights.vae_files import load_vae
from ...weights.whisper_files import load_whisper
from ..dataset import ClipDataset, ClipFile, ClipStore, UNetWindows, draw_windows, find_clips, fingerprint, split
from ..distributed import make_accelerator
from ..recipes import UNetRecipe, write_recipe
from ..trainer import RECIPE, Say, Trainer
from .init import Start, locate, start_from
from .task import Judges, UNetTask

if TYPE_CHECKING:
    from accelerate import Accelerator

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FEW_RECORDINGS = 20
STANDARD_VAE = "vae"


@dataclass(frozen=True)
class Files:
    """What a run of the U-Net reads beside its clips. init: see start_from. None: what goes with init, or not used."""

    init: str = "none"
    size: str = "full"
    vae: str | None = None
    whisper: str | None = None
    sync_net: Path | None = None
    videomae: Path | None = None
    cache: Path | None = None


def run_unet(
    data: Path,
    out: Path,
    recipe: UNetRecipe,
    files: Files,
    *,
    own_resolution: bool = True,
    cpu: bool = False,
    say: Say = lambda line: None,
) -> str:
    """Train, or go on where out stopped; gives the reason for its end. out/unet.safetensors (with lora:
    out/lora.safetensors) is the result. own_resolution False: the resolution of the file that it starts from."""
    accelerator = make_accelerator(recipe.precision, recipe.accumulate, cpu=cpu)
    tell = say if accelerator.is_main_process else _silent
    if recipe.lora and files.init == "none":
        raise UserError("A LoRA adds to a trained network; give one by --init.")
    whisper = load_whisper(files.whisper or ("tiny.en" if _bundle(files.init) else "tiny"))
    vae = load_vae(files.vae or _bundle(files.init) or STANDARD_VAE)
    start = start_from(files.init, recipe, size=files.size, audio_dim=whisper.dim, channels=vae.channels)
    if recipe.lora and start.new:
        raise UserError(
            f"A LoRA adds to a finished network, but {files.init} lacks {start.new[0]} and more that this stage adds;"
            " take --stage 1 for a network without motion modules."
        )
    recipe = _settled(recipe, start, own_resolution)
    _check_hearing(start, whisper)
    train, held = split(find_clips(data), recipe.held_share, recipe.hold_out, recipe.seed)
    store = ClipStore(files.cache or default_cache(data, out), recipe.resolution, whisper)
    held = long_enough(store, held, recipe.frames)
    tell(_summary(train, held))
    judges = load_judges(recipe, files, accelerator.device, DTYPES[str(accelerator.mixed_precision)])
    kind = f"latents-{fingerprint(vae.state_dict())}-{recipe.resolution}" if recipe.cache_latents else None
    make = UNetWindows(
        store, bool(recipe.sync_weight), recipe.supervises_pixels, kind, recipe.frames, recipe.first_frame_reference
    )
    task = UNetTask(
        start.unet,
        vae,
        recipe,
        ClipDataset(train, make, recipe.seed),
        ClipDataset(held, make, recipe.validate_seed) if held else None,
        judges,
        facts=_facts(start, vae, out, recipe),
        vae_state=vae.model.state_dict() if files.vae or start.bundle else None,
        dtype=DTYPES[str(accelerator.mixed_precision)],
    )
    tell(f"{len(task.trained)} tensors are trained, {_millions(start.unet)}; the result will be {out / task.result}")
    _prepare_folder(accelerator, out, recipe, files)
    if kind:
        fill_cache(task, store, kind, {c.path: c for c in [*train, *held]}, accelerator, tell)
    return Trainer(task, recipe, out, accelerator, say).fit()


def _silent(line: str) -> None:
    pass


def _bundle(init: str) -> Path | None:
    """A file with U-Net and VAE in one."""
    if init in ("none", "sd15"):
        return None
    path = locate(init)
    return path if identify(path).kind == "nano" else None


def _settled(recipe: UNetRecipe, start: Start, own_resolution: bool) -> UNetRecipe:
    """A network goes on predicting what it was trained to predict, at its own resolution unless told otherwise."""
    resolution = recipe.resolution if own_resolution else start.resolution or recipe.resolution
    still = recipe.first_frame_reference or start.still
    return dataclasses.replace(
        recipe, prediction_type=start.prediction_type, resolution=resolution, first_frame_reference=still
    )


def _check_hearing(start: Start, whisper: WhisperEncoder) -> None:
    wanted = start.unet.config.audio_dim
    if whisper.dim != wanted:
        raise UserError(
            f"The Whisper gives {whisper.dim} numbers per token and the U-Net takes {wanted}; give the one that it was"
            " trained with."
        )


def _summary(train: Sequence[ClipFile], held: Sequence[ClipFile]) -> str:
    recordings = len({clip.source for clip in [*train, *held]})
    how = "of other recordings" if not {c.path for c in train} & {c.path for c in held} else "each one's end"
    text = f"{len(train)} clips to train on, {len(held)} held out ({how if held else 'no validation'})"
    few = "; few: expect it to know these people only" if recordings < FEW_RECORDINGS else ""
    return f"{text}, from {recordings} recordings{few}"


def long_enough(store: ClipStore, held: Sequence[ClipFile], frames: int) -> list[ClipFile]:
    """Without the ends of clips that hold no window. Whole clips stay: what is wrong with them is told later."""
    kept = [clip for clip in held if clip.part == (0.0, 1.0) or _has_window(store, clip, frames)]
    if held and not kept:
        raise UserError(
            f"What is held out of each clip is shorter than a window of {frames} frames; set held_share higher, 0 for"
            " no validation, or --hold-out source."
        )
    return kept


def _has_window(store: ClipStore, clip: ClipFile, frames: int) -> bool:
    try:
        draw_windows(np.random.default_rng(0), *clip.span(store.info(clip).frames), frames)
    except (UserError, OSError):
        return False
    return True


def default_cache(data: Path, out: Path) -> Path:
    """Beside the clips, so that the next run finds it; with a list of files, in the run's folder."""
    return data / "cache" if data.is_dir() else out / "cache"


def load_judges(recipe: UNetRecipe, files: Files, device: torch.device, dtype: torch.dtype) -> Judges:
    """A SyncNet also judges where it has no weight: validation tells its confidence."""
    syncnet = None if files.sync_net is None else load_syncnet(locate(str(files.sync_net)))
    if syncnet is not None and not isinstance(syncnet, StableSyncNet):
        raise UserError(f"{files.sync_net} is the SyncNet of Chung & Zisserman; a StableSyncNet is needed here.")
    lpips = load_lpips(recipe.lpips, device) if recipe.lpips_weight else None
    videomae = None
    if recipe.trepa_weight and files.videomae is not None:
        videomae = load_videomae(files.videomae, device, recipe.frames, dtype)
    return Judges(syncnet, lpips, videomae)


def _facts(start: Start, vae: VAE, out: Path, recipe: UNetRecipe) -> dict[str, Any]:
    facts = {
        "version": out.absolute().name,
        "unet_groups": start.unet.config.groups,
        "unet_residual": "reference" if start.unet.config.residual else None,
        "vae_groups": vae.model.config.norm_num_groups,
        "reference": "still" if recipe.first_frame_reference else None,
        "latent_rgb": start.latent_rgb,
    }
    return {name: value for name, value in facts.items() if value is not None}


def _millions(unet: torch.nn.Module) -> str:
    trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    return f"{trained / 1e6:.1f} of {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M numbers"


def _prepare_folder(accelerator: "Accelerator", out: Path, recipe: UNetRecipe, files: Files) -> None:
    if accelerator.is_main_process:
        try:
            out.mkdir(parents=True, exist_ok=True)
            also = {name: str(value) for name, value in dataclasses.asdict(files).items() if value is not None}
            write_recipe(out / RECIPE, recipe, **also)
        except OSError as error:
            raise UserError(f"{out} cannot be written to ({error.strerror}); give another --out.") from error
    accelerator.wait_for_everyone()


def fill_cache(
    task: UNetTask,
    store: ClipStore,
    kind: str,
    clips: dict[Path, ClipFile],
    accelerator: "Accelerator",
    tell: Callable[[str], None],
) -> None:
    """Encode what is not in the cache yet, each process its share. A clip that cannot be read is left to the dataset,
    which replaces it."""
    task.to(accelerator.device)
    share = [clips[path] for path in sorted(clips)][accelerator.process_index :: accelerator.num_processes]
    for done, clip in enumerate(share, 1):
        try:
            store.fill_latents(clip, kind, task.encode_bytes)
        except Exception as error:  # whatever a broken file makes its reader raise
            tell(f"{clip.path}: no latents, {error}")
        if done % 100 == 0:
            tell(f"latents of {done} of {len(share)} clips are in the cache")
    accelerator.wait_for_everyone()
