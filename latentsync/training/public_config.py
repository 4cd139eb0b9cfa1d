"""Configurations of the public project (configs/unet/*.yaml, configs/syncnet/*.yaml), read as they are.

Every key is used, or must have the one value that this code has too, or does not matter here and says why.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .yaml_files import read_yaml

SECTIONS = "data", "ckpt", "run", "optimizer", "model"
ENCODERS = {"audio_encoder": "audio", "visual_encoder": "visual"}
ALL_FRAMES_EQUAL = 1e6
"""alpha of the mixed noise when only the shared part is left."""
IN_NETWORK = "a part of network, below"
VAE_FACTOR = 8
LATENT_CHANNELS, RGB = 4, 3

Keys = Mapping[str, Any]
"""A file's values by dotted name, the sections' names included."""
Rule = Callable[[Any, Keys], dict[str, Any]]
PathRule = Callable[[str, Keys, Path | None], tuple[dict[str, Any], str]]


@dataclass(frozen=True)
class Line:
    """A key of the file. settings: what becomes of it, by names of the recipe or of Files; why: a remark."""

    key: str
    value: Any
    settings: Mapping[str, Any]
    why: str = ""


@dataclass(frozen=True)
class PublicConfig:
    """network: "U-Net" or "SyncNet". settings: of the recipe. files: inputs of the run. lines: the file's, in order."""

    network: str
    settings: Mapping[str, Any]
    files: Mapping[str, str]
    lines: tuple[Line, ...]

    @property
    def command(self) -> str:
        return {"U-Net": "unet", "SyncNet": "syncnet"}[self.network]


def is_public(content: Keys) -> bool:
    """Whether a file has the public project's sections. Ours has no sections but `network`."""
    return any(isinstance(content.get(name), Mapping) for name in (*SECTIONS, *ENCODERS))


def read_public(content: Keys, path: Path | None = None) -> PublicConfig:
    """Translate a configuration. Settings of ours beside the sections (by --set) are kept. path: relative files of the
    configuration are looked for here and in the folders above it."""
    if any(name in content for name in ENCODERS):  # the architecture alone
        content = {"model": content}
    model = content.get("model") or {}
    own = {name: value for name, value in content.items() if name not in SECTIONS}
    keys = _flat({name: content[name] for name in content if name in SECTIONS})
    if any(name in model for name in ENCODERS):
        network = {"network": _syncnet_network(model, keys)}
        rules, fixed, unused, name = _SYNCNET_RULES, _SYNCNET_FIXED, _SYNCNET_UNUSED, "SyncNet"
    else:
        network, rules, fixed, unused, name = {}, _UNET_RULES, _UNET_FIXED, _UNET_UNUSED, "U-Net"
    lines, settings, files = [], {}, {}
    for key, value in keys.items():
        line = _line(key, value, keys, rules, fixed, unused, path)
        lines.append(line)
        settings |= {k: v for k, v in line.settings.items() if not k.startswith("--")}
        files |= {_FILES[k]: str(v) for k, v in line.settings.items() if k in _FILES}
    return PublicConfig(name, {**settings, **network, **own}, files, tuple(lines))


def _line(
    key: str, value: Any, keys: Keys, rules: Mapping[str, tuple[Rule, str]], fixed: Keys, unused: Mapping[str, str],
    path: Path | None,
) -> Line:  # fmt: skip
    if key.startswith(tuple(f"model.{encoder}." for encoder in ENCODERS)):
        return Line(key, value, {}, IN_NETWORK)
    if key in rules:
        rule, why = rules[key]
        try:
            return Line(key, value, rule(value, keys), why)
        except (TypeError, ValueError) as error:
            raise UserError(f"{path or '--set'} sets {key} to {value!r}, which cannot be read.") from error
    if key in fixed:
        if not _same(value, fixed[key]):
            raise UserError(f"{path or '--set'} sets {key} to {value!r}; only {fixed[key]!r} is supported.")
        return Line(key, value, {}, "the same here")
    if key in _PATHS:
        return Line(key, value, *_PATHS[key](str(value or ""), keys, path))
    if key in unused:
        return Line(key, value, {}, unused[key])
    raise UserError(f"{path or '--set'} sets {key}, which is not a key of the public project that is known here.")


def _flat(content: Keys, before: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in content.items():
        out |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value}
    return out


def _same(value: Any, wanted: Any) -> bool:
    """YAML 1.1 reads 1e-5 as a text."""
    with suppress(TypeError, ValueError):
        if isinstance(wanted, float):
            return float(value) == wanted
    return value == wanted


def find_beside(name: str, config: Path | None) -> Path:
    """A file that a configuration names: relative to the working folder, or to a folder above the configuration."""
    folders = [Path(), *(config.absolute().parents if config else ())]
    return next((folder / name for folder in folders if (folder / name).is_file()), Path(name))


def _initial(name: str, _: Keys, config: Path | None) -> tuple[dict[str, Any], str]:
    if not name:
        return {}, "random weights, unless --init is given"
    return {"--init": str(find_beside(name, config))}, "unless --init is given"


def _sync_net(name: str, keys: Keys, config: Path | None) -> tuple[dict[str, Any], str]:
    """The weights that the SyncNet's own configuration names, where both are here."""
    if not keys.get("run.use_syncnet"):
        return {}, "not needed without use_syncnet"
    path = find_beside(name, config)
    weights = (read_yaml(path).get("ckpt") or {}).get("inference_ckpt_path") if path.is_file() else None
    found = find_beside(str(weights), path) if weights else Path()
    if not found.is_file():
        return {}, "it or its weights are not here; give --sync-net"
    return {"--sync-net": str(found)}, "unless --sync-net is given"


def _sample(option: str) -> PathRule:
    """A file for validations, if it is there."""

    def rule(name: str, _: Keys, config: Path | None) -> tuple[dict[str, Any], str]:
        path = find_beside(name, config)
        return ({option: str(path)}, f"unless {option} is given") if path.is_file() else ({}, f"not here; see {option}")

    return rule


_FILES = {
    "--init": "init", "--sync-net": "sync_net", "--whisper": "whisper",
    "--validate-video": "validate_video", "--validate-audio": "validate_audio",
}  # fmt: skip
_PATHS: dict[str, PathRule] = {
    "ckpt.resume_ckpt_path": _initial,
    "data.syncnet_config_path": _sync_net,
    "data.val_video_path": _sample("--validate-video"),
    "data.val_audio_path": _sample("--validate-audio"),
}


def _as(name: str, kind: Callable[[Any], Any] = lambda value: value, why: str = "") -> tuple[Rule, str]:
    return lambda value, _: {name: kind(value)}, why


def _steps(value: Any, keys: Keys) -> dict[str, Any]:
    if value == -1 and keys.get("run.max_train_epochs", -1) == -1:
        raise UserError("max_train_steps and max_train_epochs are both -1; set one of them.")
    return {} if value == -1 else {"steps": value}


def _epochs(value: Any, keys: Keys) -> dict[str, Any]:
    return {"epochs": value} if keys.get("run.max_train_steps") == -1 else {}


def _switched(name: str, switch: str) -> Rule:
    """A weight that is 0 where the switch is off."""
    return lambda value, keys: {name: float(value) if keys.get(switch, True) else 0.0}


def _motion(value: Any, keys: Keys) -> dict[str, Any]:
    if not value:
        return {"motion": "none", "trainable": [""]}
    return {"motion": "decoder" if keys.get("model.motion_module_decoder_only") else "all"}


def _trainable(value: Any, keys: Keys) -> dict[str, Any]:
    return {"trainable": value} if keys.get("model.use_motion_module", True) else {}


def _alpha(value: Any, keys: Keys) -> dict[str, Any]:
    return {"alpha": float(value)} if keys.get("run.use_mixed_noise", True) else {}


def _whisper(value: Any, _: Keys) -> dict[str, Any]:
    if value not in (384, 768):
        raise ValueError(value)
    return {"--whisper": "small"} if value == 768 else {}


_COMMON_RULES: dict[str, tuple[Rule, str]] = {
    "data.batch_size": _as("batch_size"),
    "data.gradient_accumulation_steps": _as("gradient_accumulation_steps"),
    "data.num_workers": _as("workers"),
    "ckpt.save_ckpt_steps": _as("save_every"),
    "run.max_train_steps": (_steps, "-1 leaves it to max_train_epochs"),
    "run.max_train_epochs": (_epochs, "counts if max_train_steps is -1"),
    "run.seed": _as("seed"),
    "run.mixed_precision_training": _as(
        "precision", lambda on: "auto" if on else "fp32", "auto is bf16 or fp16 on a GPU; public code: fp16"
    ),
    "optimizer.lr": _as("learning_rate", float),
    "optimizer.scale_lr": _as("scale_lr"),
    "optimizer.max_grad_norm": _as("max_grad_norm", float),
    "optimizer.lr_scheduler": _as("lr_scheduler", lambda name: "constant" if name == "constant_with_warmup" else name),
    "optimizer.lr_warmup_steps": _as("warmup_steps"),
}
_UNET_RULES: dict[str, tuple[Rule, str]] = _COMMON_RULES | {
    "data.num_frames": _as("frames"),
    "data.resolution": _as("resolution"),
    "ckpt.save_ckpt_steps": (lambda value, _: {"save_every": value, "validate_every": value}, ""),
    "run.pixel_space_supervise": (
        lambda on, _: {} if on else {"lpips_weight": 0.0, "trepa_weight": 0.0}, "switches LPIPS and TREPA on"
    ),
    "run.use_syncnet": (lambda on, _: {} if on else {"sync_weight": 0.0}, "switches the SyncNet loss on"),
    "run.sync_loss_weight": (_switched("sync_weight", "run.use_syncnet"), ""),
    "run.perceptual_loss_weight": (_switched("lpips_weight", "run.pixel_space_supervise"), ""),
    "run.trepa_loss_weight": (_switched("trepa_weight", "run.pixel_space_supervise"), ""),
    "run.recon_loss_weight": _as("noise_weight", float),
    "run.inference_steps": _as("sample_steps"),
    "run.guidance_scale": _as("sample_guidance", float),
    "run.use_mixed_noise": (
        lambda on, _: {} if on else {"alpha": ALL_FRAMES_EQUAL}, "false: all frames have the same noise"
    ),
    "run.mixed_noise_alpha": (_alpha, ""),
    "run.enable_gradient_checkpointing": _as("gradient_checkpointing"),
    "run.trainable_modules": (_trainable, "counts if there are motion modules"),
    "model.use_motion_module": (_motion, "without them everything is trained"),
    "model.motion_module_decoder_only": (lambda _, __: {}, "see use_motion_module"),
    "model.cross_attention_dim": (_whisper, "384: Whisper tiny, 768: small"),
}  # fmt: skip
_UNET_FIXED: dict[str, Any] = {
    "data.mask_image_path": "latentsync/utils/mask.png", "data.audio_sample_rate": 16000, "data.video_fps": 25,
    "data.audio_feat_length": [2, 2],
    "model.act_fn": "silu", "model.add_audio_layer": True, "model.attention_head_dim": 8,
    "model.block_out_channels": [320, 640, 1280, 1280], "model.center_input_sample": False,
    "model.down_block_types": ["CrossAttnDownBlock3D"] * 3 + ["DownBlock3D"],
    "model.mid_block_type": "UNetMidBlock3DCrossAttn",
    "model.up_block_types": ["UpBlock3D"] + ["CrossAttnUpBlock3D"] * 3,
    "model.downsample_padding": 1, "model.flip_sin_to_cos": True, "model.freq_shift": 0, "model.in_channels": 13,
    "model.layers_per_block": 2, "model.mid_block_scale_factor": 1, "model.norm_num_groups": 32, "model.norm_eps": 1e-5,
    "model.out_channels": 4, "model.resnet_time_scale_shift": "default",
    "model.motion_module_resolutions": [1, 2, 4, 8], "model.motion_module_mid_block": False,
    "model.motion_module_type": "Vanilla", "model.motion_module_kwargs.num_attention_heads": 8,
    "model.motion_module_kwargs.num_transformer_block": 1,
    "model.motion_module_kwargs.attention_block_types": ["Temporal_Self"] * 2,
    "model.motion_module_kwargs.temporal_position_encoding": True,
    "model.motion_module_kwargs.temporal_position_encoding_max_len": 24,
    "model.motion_module_kwargs.temporal_attention_dim_div": 1,
    "model.motion_module_kwargs.zero_initialize": True,
}  # fmt: skip
_COMMON_UNUSED = {
    "data.train_output_dir": "give the run's folder with --out",
    "data.train_fileslist": "give the clips as DATA",
    "data.train_data_dir": "give the clips as DATA",
    "data.audio_mel_cache_dir": "give the cache with --cache",
}
_UNET_UNUSED = _COMMON_UNUSED | {
    "data.audio_embeds_cache_dir": "give the cache with --cache",
    "model.sample_size": "the network takes any size",
}
_SYNCNET_RULES: dict[str, tuple[Rule, str]] = _COMMON_RULES | {
    "data.num_val_samples": _as("score_windows"),
    "run.validation_steps": _as("validate_every"),
    **{f"data.{name}": (lambda _, __: {}, IN_NETWORK) for name in
       ("num_frames", "latent_space", "resolution", "lower_half")},
}  # fmt: skip
_SYNCNET_FIXED = {"data.audio_sample_rate": 16000, "data.video_fps": 25, "ckpt.resume_ckpt_path": ""}
_SYNCNET_UNUSED = _COMMON_UNUSED | {
    "ckpt.inference_ckpt_path": "is not used in training; give the result to `train unet` with --sync-net",
    "data.val_fileslist": "set what is held out with --holdout-time, --holdout-people, …",
    "data.val_data_dir": "set what is held out with --holdout-time, --holdout-people, …",
}


def _syncnet_network(model: Keys, keys: Keys) -> dict[str, Any]:
    """The architecture in our form. What the file does not say follows from the number of its input channels."""
    parts = {name: _encoder(model.get(public) or {}, public) for public, name in ENCODERS.items()}
    channels = parts["visual"].pop("in_channels")
    parts["audio"].pop("in_channels")
    latent = bool(keys.get("data.latent_space", channels != RGB * 16))
    frames = int(keys.get("data.num_frames", channels // (LATENT_CHANNELS if latent else RGB)))
    if channels != frames * (LATENT_CHANNELS if latent else RGB):
        raise UserError(f"visual_encoder takes {channels} channels, which {frames} frames do not have.")
    if bool(keys.get("data.lower_half", not latent)) == latent:
        raise UserError("lower_half must be true for a SyncNet on pixels, and false for one on latents.")
    side = int(keys.get("data.resolution", 256))
    size = [side // VAE_FACTOR] * 2 if latent else [side // 2, side]
    return {**parts, "frames": frames, "space": "latent" if latent else "pixel", "size": size}


def _encoder(facts: Keys, name: str) -> dict[str, Any]:
    known = {"in_channels", "block_out_channels", "downsample_factors", "attn_blocks", "dropout"}
    missing = {"in_channels", "block_out_channels", "downsample_factors"} - set(facts)
    if wrong := sorted(missing or set(facts) - known):
        raise UserError(f"model.{name} {'lacks' if missing else 'has an unknown'} {wrong[0]}.")
    if facts.get("dropout"):
        raise UserError(f"model.{name}.dropout is {facts['dropout']!r}; only 0 is supported.")
    widths = facts["block_out_channels"]
    return {
        "in_channels": facts["in_channels"],
        "widths": widths,
        "factors": facts["downsample_factors"],
        "attention": list(map(bool, facts.get("attn_blocks") or [0] * len(widths))),
    }
