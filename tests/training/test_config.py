"""Settings from files and --set: ours, on top of the preset's, and the public project's configurations as they are."""

import copy
import json
import math

import pytest
import yaml
from typer.testing import CliRunner

from latentsync.cli import main as cli
from latentsync.errors import UserError
from latentsync.models.syncnet import PUBLISHED
from latentsync.training.config import apply_overrides, fill_files, read_config
from latentsync.training.optim import learning_rates
from latentsync.training.recipes import Files, RunSettings, SyncNetRecipe, UNetRecipe, build, count_steps, unet_recipe
from latentsync.training.syncnet.architecture import NETWORKS, syncnet_recipe

# ---- keys and values of the public project's configurations ----------------------------------------------------------

UNET = {
    "data": {
        "syncnet_config_path": "configs/syncnet/syncnet_16_pixel_attn.yaml", "train_output_dir": "debug/unet",
        "train_fileslist": "list.txt", "train_data_dir": "", "audio_embeds_cache_dir": "a", "audio_mel_cache_dir": "b",
        "val_video_path": "v.mp4", "val_audio_path": "a.wav", "batch_size": 1, "num_workers": 12, "num_frames": 16,
        "resolution": 256, "mask_image_path": "latentsync/utils/mask.png", "audio_sample_rate": 16000, "video_fps": 25,
        "audio_feat_length": [2, 2],
    },
    "ckpt": {"resume_ckpt_path": "checkpoints/latentsync_unet.pt", "save_ckpt_steps": 10000},
    "run": {
        "pixel_space_supervise": True, "use_syncnet": True, "sync_loss_weight": 0.05, "perceptual_loss_weight": 0.1,
        "recon_loss_weight": 1, "guidance_scale": 1.5, "trepa_loss_weight": 10, "inference_steps": 20,
        "trainable_modules": ["motion_modules.", "attentions."], "seed": 1247, "use_mixed_noise": True,
        "mixed_noise_alpha": 1, "mixed_precision_training": True, "enable_gradient_checkpointing": True,
        "max_train_steps": 10000000, "max_train_epochs": -1,
    },
    "optimizer": {
        "lr": "1e-5", "scale_lr": False, "max_grad_norm": 1.0, "lr_scheduler": "constant", "lr_warmup_steps": 0,
    },
    "model": {
        "act_fn": "silu", "add_audio_layer": True, "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 384,
        "down_block_types": ["CrossAttnDownBlock3D"] * 3 + ["DownBlock3D"],
        "mid_block_type": "UNetMidBlock3DCrossAttn",
        "up_block_types": ["UpBlock3D"] + ["CrossAttnUpBlock3D"] * 3, "downsample_padding": 1,
        "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 13, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": "1e-5", "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
        "resnet_time_scale_shift": "default", "use_motion_module": True, "motion_module_resolutions": [1, 2, 4, 8],
        "motion_module_mid_block": False, "motion_module_decoder_only": False, "motion_module_type": "Vanilla",
        "motion_module_kwargs": {
            "num_attention_heads": 8, "num_transformer_block": 1,
            "attention_block_types": ["Temporal_Self", "Temporal_Self"], "temporal_position_encoding": True,
            "temporal_position_encoding_max_len": 24, "temporal_attention_dim_div": 1, "zero_initialize": True,
        },
    },
}  # fmt: skip
STAGE1 = [
    "run.trainable_modules=[]",
    "run.pixel_space_supervise=false",
    "run.use_syncnet=false",
    "model.use_motion_module=false",
]
UNETS = {
    # configs/unet/…: changes against stage2, our stage, resolution
    "stage1": (STAGE1, "1", 256),
    "stage1_512": ([*STAGE1, "data.resolution=512"], "1", 512),
    "stage2": ([], "2", 256),
    "stage2_512": (["data.resolution=512"], "2", 512),
    "stage2_efficient": (
        ["run.trepa_loss_weight=0", "run.trainable_modules=[motion_modules., attn2.]",
         "model.motion_module_decoder_only=true"], "2-efficient", 256,
    ),
}  # fmt: skip
SYNCNET = {
    "ckpt": {"resume_ckpt_path": "", "inference_ckpt_path": "", "save_ckpt_steps": 2500},
    "data": {
        "train_output_dir": "debug/syncnet", "num_val_samples": 2048, "batch_size": 256,
        "gradient_accumulation_steps": 1, "num_workers": 12, "latent_space": False, "num_frames": 16,
        "resolution": 256, "train_fileslist": "list.txt", "train_data_dir": "", "val_fileslist": "",
        "val_data_dir": "val", "audio_mel_cache_dir": "mel", "lower_half": True, "audio_sample_rate": 16000,
        "video_fps": 25,
    },
    "optimizer": {"lr": "1e-5", "max_grad_norm": 1.0},
    "run": {"max_train_steps": 10000000, "validation_steps": 2500, "mixed_precision_training": True, "seed": 42},
}  # fmt: skip
_AUDIO = ([32, 64, 128, 256, 512, 1024, 2048], [[2, 1], 2, 2, 1, 2, 2, [2, 3]])
_VISUAL = ([64, 128, 256, 256, 512, 1024, 2048, 2048], [[1, 2], 2, 2, 2, 2, 2, 2, 2])
SYNCNETS = {
    # configs/syncnet/syncnet_…: encoders (widths, factors, attention), visual channels, data, windows scored
    "16_latent": (
        ([32, 64, 128, 256, 512, 1024], [[2, 1], 2, 2, 2, 2, [2, 3]], [0] * 6),
        ([64, 128, 256, 256, 512, 1024], [2, 2, 2, 1, 2, 2], [0] * 6), 64,
        {"latent_space": True, "lower_half": False, "batch_size": 120, "num_val_samples": 1200},
    ),
    "16_pixel": ((*_AUDIO, [0] * 7), (*_VISUAL, [0] * 8), 48, {}),
    "16_pixel_attn": ((*_AUDIO, [0, 0, 0, 1, 1, 0, 0]), (*_VISUAL, [0, 0, 0, 0, 1, 1, 0, 0]), 48, {}),
    "25_pixel": (
        ([64, 128, 256, 256, 512, 1024], [2] * 6, None),
        ([128, 128, 256, 256, 512, 512, 1024, 1024], [[1, 2], 2, 2, 2, 2, 2, 2, 2], None), 75,
        {"batch_size": 64, "num_frames": 25},
    ),
}  # fmt: skip


def encoder(channels, widths, factors, attention):
    facts = {"in_channels": channels, "block_out_channels": widths, "downsample_factors": factors, "dropout": 0.0}
    return facts if attention is None else facts | {"attn_blocks": attention}


def public_syncnet(name):
    audio, visual, channels, data = SYNCNETS[name]
    model = {"audio_encoder": encoder(1, *audio), "visual_encoder": encoder(channels, *visual)}
    return {"model": model, **SYNCNET, "data": SYNCNET["data"] | data}


def write(path, content):
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("name", UNETS)
def test_public_unet_configurations_are_the_stages(tmp_path, name):
    changes, stage, resolution = UNETS[name]
    config = read_config(UNetRecipe, write(tmp_path / "c.yaml", UNET), changes)
    recipe, wanted = unet_recipe("1", config), unet_recipe(stage)
    assert recipe.trainable == tuple("attn2." if name == "attn2" else name for name in wanted.trainable)
    for field in ("motion", "noise_weight", "sync_weight", "lpips_weight", "trepa_weight", "learning_rate",
                  "max_grad_norm", "seed", "alpha", "frames", "batch_size", "gradient_checkpointing", "precision",
                  "optimizer", "weight_decay", "lr_scheduler", "warmup_steps", "scale_lr"):  # fmt: skip
        assert getattr(recipe, field) == getattr(wanted, field), field
    assert (recipe.resolution, recipe.steps, recipe.save_every, recipe.validate_every) == (
        resolution, 10_000_000, 10_000, 10_000
    )  # fmt: skip
    assert (recipe.workers, recipe.sample_steps, recipe.sample_guidance, recipe.epochs) == (12, 20, 1.5, 0)
    assert config.public.files == {"init": "checkpoints/latentsync_unet.pt"}
    assert len(config.public.lines) == sum(len(part) for part in UNET.values()) - 1 + 7


@pytest.mark.parametrize("name", SYNCNETS)
def test_public_syncnet_configurations_are_the_presets(tmp_path, name):
    network, recipe = syncnet_recipe("16_pixel_attn", write(tmp_path / "c.yaml", public_syncnet(name)))
    data = public_syncnet(name)["data"]
    if name in PUBLISHED:
        assert network == PUBLISHED[name]
    assert (network.frames, network.mels) == (data["num_frames"], (80, {16: 52, 25: 80}[data["num_frames"]]))
    assert network.size == ((32, 32) if data["latent_space"] else (128, 256))
    assert recipe.batch_size == data["batch_size"]
    assert recipe.score_windows == data["num_val_samples"]
    assert (recipe.learning_rate, recipe.max_grad_norm, recipe.seed, recipe.workers) == (1e-5, 1.0, 42, 12)
    assert (recipe.steps, recipe.save_every, recipe.validate_every, recipe.windows) == (10_000_000, 2500, 2500, 1)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        (["run.use_mixed_noise=false"], {"alpha": 1e6}),
        (["run.mixed_noise_alpha=2"], {"alpha": 2.0}),
        (["run.mixed_precision_training=false"], {"precision": "fp32"}),
        (["run.max_train_steps=-1", "run.max_train_epochs=3"], {"epochs": 3}),
        (["run.max_train_epochs=3"], {"epochs": 0, "steps": 10_000_000}),
        (["run.pixel_space_supervise=false"], {"lpips_weight": 0.0, "trepa_weight": 0.0, "sync_weight": 0.05}),
        (["optimizer.lr_scheduler=constant_with_warmup", "optimizer.lr_warmup_steps=5"], {"lr_scheduler": "constant"}),
        (["optimizer.lr_scheduler=cosine", "optimizer.scale_lr=true"], {"lr_scheduler": "cosine", "scale_lr": True}),
        (["learning_rate=3e-4", "batch_size=2"], {"learning_rate": 3e-4, "batch_size": 2}),
    ],
)
def test_other_values_of_public_keys(changes, wanted):
    content = apply_overrides(copy.deepcopy(UNET), changes)
    recipe = unet_recipe("1", read_config(UNetRecipe, overrides=[f"{k}={json.dumps(v)}" for k, v in content.items()]))
    assert {name: getattr(recipe, name) for name in wanted} == wanted


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.act_fn=gelu", "sets model.act_fn to 'gelu'; only 'silu' is supported"),
        ("model.norm_eps=1e-6", "model.norm_eps"),
        ("model.motion_module_kwargs.zero_initialize=false", "zero_initialize to False; only True"),
        ("data.video_fps=30", "only 25"),
        ("run.magic=1", "sets run.magic, which is not a key of the public project"),
        ("optimizer.lr=fast", "sets optimizer.lr to 'fast', which cannot be read"),
        ("optimizer.lr_scheduler=piecewise_constant", "must be one of constant, linear, cosine"),
        ("model.cross_attention_dim=512", "cross_attention_dim to 512"),
        ("run.max_train_steps=-1", "both -1"),
        ("magic=1", "magic, which is not a setting"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        unet_recipe("2", read_config(UNetRecipe, write(tmp_path / "c.yaml", UNET), [change]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.lower_half=false", "lower_half must be true"),
        ("data.num_frames=20", "48 channels, which 20 frames do not have"),
        ("model.visual_encoder.dropout=0.1", "only 0 is supported"),
        ("model.visual_encoder.extra=0.1", "unknown extra"),
        ("ckpt.resume_ckpt_path=x.pt", "only '' is supported"),
    ],
)
def test_syncnets_that_cannot_be_followed_are_refused(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        read_config(SyncNetRecipe, write(tmp_path / "c.yaml", public_syncnet("16_pixel")), [change])


def test_each_command_takes_its_own_network(tmp_path):
    with pytest.raises(UserError, match="configures a U-Net; give it to `latentsync train unet`"):
        syncnet_recipe("16_pixel", write(tmp_path / "u.yaml", UNET))
    with pytest.raises(UserError, match="configures a SyncNet; give it to `latentsync train syncnet`"):
        unet_recipe("1", write(tmp_path / "s.yaml", public_syncnet("16_pixel")))


def test_files_that_a_configuration_names(tmp_path):
    """As in a clone of the public project: below the folder that has configs/ and checkpoints/."""
    for folder in ("configs/unet", "configs/syncnet", "checkpoints"):
        (tmp_path / folder).mkdir(parents=True)
    path = write(tmp_path / "configs/unet/stage2.yaml", UNET)
    with pytest.raises(UserError, match=r"starts from checkpoints/latentsync_unet.pt, which is not here; give --init"):
        fill_files(Files(), read_config(UNetRecipe, path))
    assert fill_files(Files(init="1.5"), read_config(UNetRecipe, path)).init == "1.5"
    assert fill_files(Files(), read_config(UNetRecipe, path, ["ckpt.resume_ckpt_path="])).init == "none"
    judge = public_syncnet("16_pixel_attn")
    judge["ckpt"] = judge["ckpt"] | {"inference_ckpt_path": "checkpoints/stable_syncnet.pt"}
    write(tmp_path / "configs/syncnet/syncnet_16_pixel_attn.yaml", judge)
    for name in ("latentsync_unet.pt", "stable_syncnet.pt"):
        (tmp_path / "checkpoints" / name).touch()
    files = fill_files(Files(), read_config(UNetRecipe, path))
    assert (files.init, str(files.sync_net)) == tuple(
        str(tmp_path / "checkpoints" / name) for name in ("latentsync_unet.pt", "stable_syncnet.pt")
    )
    assert fill_files(Files(), read_config(UNetRecipe, path, STAGE1)).sync_net is None


# ---- --set, and what is under what -----------------------------------------------------------------------------------


def test_set_wins_over_the_file_and_options_win_over_set(tmp_path):
    path = write(tmp_path / "mine.yaml", {"learning_rate": 2e-5, "steps": 7})
    config = read_config(UNetRecipe, path, ["learning_rate=3e-5", "trainable=[attn2]", "batch_size=2"])
    recipe = unet_recipe("2", config, batch_size=4)
    assert (recipe.learning_rate, recipe.steps, recipe.trainable, recipe.batch_size) == (3e-5, 7, ("attn2",), 4)
    assert unet_recipe("2", read_config(UNetRecipe, None, ["steps=3"])).steps == 3


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps", "--set steps is not NAME=VALUE"),
        ("=3", "not NAME=VALUE"),
        ("a..b=3", "not NAME=VALUE"),
        ("steps.more=3", "steps is 7, which has no parts"),
        ("step=3", "--set sets step, which is not a setting; did you mean steps"),
        ("steps=[", "cannot be read as YAML"),
        ("steps=many", "a whole number is needed"),
    ],
)
def test_wrong_overrides_are_named(override, words):
    with pytest.raises(UserError, match=words):
        read_config(UNetRecipe, None, ["steps=7", override])


@pytest.mark.parametrize("preset", NETWORKS)
def test_a_network_states_what_differs_from_the_preset(preset):
    """Other frames: input channels and mel columns follow, everything else stays."""
    base = NETWORKS[preset]
    if base.frames == 16:  # one mel column fewer does not change the sizes of the layers
        network = {"frames": 16, "visual": {"attention": [True] * len(base.visual.widths)}}
        changed, _ = syncnet_recipe(preset, read_config(SyncNetRecipe, None, [f"network={json.dumps(network)}"]))
        assert changed.visual.attention == (True,) * len(base.visual.widths)
    else:
        changed, _ = syncnet_recipe(preset, read_config(SyncNetRecipe, None, ["network.frames=11"]))
        assert (changed.visual.in_channels, changed.mels) == (33, (80, 36))
        assert changed.visual.attention == base.visual.attention
    assert (changed.audio, changed.size, changed.space) == (base.audio, base.size, base.space)
    assert (changed.visual.widths, changed.visual.factors) == (base.visual.widths, base.visual.factors)


def test_another_number_of_blocks_has_attention_of_its_own():
    part = {"widths": [64, 128, 256, 512, 1024, 2048], "factors": [[2, 4], 2, 2, 2, 4, [2, 4]]}
    config = read_config(SyncNetRecipe, None, [f"network.visual={json.dumps(part)}"])
    assert syncnet_recipe("16_pixel_attn", config)[0].visual.attention == (False,) * 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("network.visual.in_channels=3", "takes 3 channels, but 10 frames of pixels give 30"),
        ("network.space=sound", "space is 'sound'; it must be pixel or latent"),
        ("network.audio.widths=[32, 64]", "widths, factors and attentions"),
        ("network.visual.factors=[2]", "widths, factors and attentions"),
        ("network=3", "a mapping is needed"),
    ],
)
def test_wrong_parts_of_a_network_are_named(change, words):
    with pytest.raises(UserError, match=words):
        syncnet_recipe("small", read_config(SyncNetRecipe, None, [change]))


# ---- epochs and the learning rate ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "clips", "samples", "steps"), [(0, 3, 1, 100_000), (2, 3, 1, 6), (1, 10, 4, 3), (3, 10, 4, 8)]
)
def test_steps_of_epochs(epochs, clips, samples, steps):
    assert count_steps(RunSettings(epochs=epochs), clips, samples).steps == steps


def test_steps_or_epochs_the_last_that_is_said():
    assert build(RunSettings, {"steps": 5}, None, {"epochs": 2}).epochs == 2
    assert build(RunSettings, {"epochs": 2}, None, {"steps": 5}) == RunSettings(steps=5)
    with pytest.raises(UserError, match=r"Both steps \(5\) and epochs \(2\)"):
        build(RunSettings, {}, None, {"steps": 5, "epochs": 2})


def cosine(share):
    return (1 + math.cos(math.pi * share)) / 2


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, {0: 1, 50: 1, 99: 1}),
        ({"warmup_steps": 10}, {0: 0, 1: 0.1, 9: 0.9, 10: 1, 99: 1}),
        ({"lr_scheduler": "cosine"}, {0: 1, 50: 0.5, 75: cosine(0.75), 100: 0}),
        ({"lr_scheduler": "cosine", "warmup_steps": 20}, {0: 0, 10: 0.5, 20: 1, 60: 0.5, 80: cosine(0.75), 100: 0}),
        ({"lr_scheduler": "linear", "warmup_steps": 20}, {10: 0.5, 20: 1, 60: 0.5, 100: 0}),
        ({"lr_scheduler": "linear", "scale_lr": True}, {0: 8, 50: 4}),
    ],
)
def test_the_learning_rate(settings, wanted):
    rate = learning_rates(RunSettings(steps=100, learning_rate=1e-3, **settings), processes=8)
    assert {step: rate(step) / 1e-3 for step in wanted} == pytest.approx(wanted, abs=1e-9)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_recipe_is_shown_beside_the_file(tmp_path):
    path = write(tmp_path / "stage2.yaml", UNET)
    done = CliRunner().invoke(cli.app, ["train", "recipe", str(path), "--set", "run.seed=7"])
    assert done.exit_code == 0, done.output
    rows = {line.split()[0]: line.split()[1:] for line in done.output.splitlines() if "." in line.split(" ")[0]}
    assert rows["run.trepa_loss_weight"] == ["10", "trepa_weight", "10.0"]
    assert rows["run.seed"] == ["7", "seed", "7"]
    assert rows["model.act_fn"] == ["silu", "–", "the", "same", "here"]
    text = done.output.partition("\n\n")[2]
    assert build(UNetRecipe, {}, write(tmp_path / "again.yaml", text), {}) == unet_recipe(
        "2", read_config(UNetRecipe, path, ["run.seed=7"])
    )


def test_the_recipe_of_a_syncnet_and_of_our_own_files(tmp_path):
    for content, words in ((public_syncnet("25_pixel"), "frames: 25"), ({"min_shift": 3}, "min_shift: 3")):
        done = CliRunner().invoke(cli.app, ["train", "recipe", str(write(tmp_path / "c.yaml", content))])
        assert words in done.output
    done = CliRunner().invoke(cli.app, ["train", "recipe", str(write(tmp_path / "c.yaml", UNET)), "--json"])
    facts = json.loads(done.output)
    assert (facts["recipe"]["motion"], facts["files"]["init"]) == ("all", "checkpoints/latentsync_unet.pt")
    bad = CliRunner().invoke(cli.app, ["train", "recipe", str(write(tmp_path / "c.yaml", "audio: {n_fft: 800}"))])
    assert bad.exit_code == 2
