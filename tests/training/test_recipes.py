"""The recipes are the spec's, and settings from outside are checked."""

import dataclasses
import json

import pytest
import torch

from latentsync.errors import UserError
from latentsync.models.unet import UNet
from latentsync.training.recipes import STAGES, RunSettings, UNetRecipe, build, unet_recipe, write_recipe
from latentsync.training.unet.init import unet_config

SPEC = {
    # stage: motion, what it trains, weights of noise, SyncNet, LPIPS, TREPA
    "1": ("none", ("",), 1.0, 0.0, 0.0, 0.0),
    "2": ("all", ("motion_modules.", "attentions."), 1.0, 0.05, 0.1, 10.0),
    "2-efficient": ("decoder", ("motion_modules.", "attn2"), 1.0, 0.05, 0.1, 0.0),
}


@pytest.mark.parametrize("stage", SPEC)
def test_the_stages_are_the_public_ones(stage):
    recipe = unet_recipe(stage)
    weights = recipe.noise_weight, recipe.sync_weight, recipe.lpips_weight, recipe.trepa_weight
    assert (recipe.motion, recipe.trainable, *weights) == SPEC[stage]
    assert (recipe.learning_rate, recipe.max_grad_norm, recipe.seed, recipe.optimizer) == (1e-5, 1.0, 1247, "adamw")
    assert (recipe.frames, recipe.alpha, recipe.prediction_type, recipe.resolution) == (16, 1.0, "epsilon", 256)
    assert recipe.has_pixel_losses == (stage != "1")


def test_presets_state_only_differences():
    defaults = dataclasses.asdict(UNetRecipe())
    for preset in STAGES.values():
        assert all(defaults[name] != value for name, value in preset.items())


@pytest.mark.parametrize(("stage", "millions"), [("stage1", 850.0), ("stage2", 1267.9), ("stage2_efficient", 1100.8)])
def test_full_size_is_the_published_size(spec, stage, millions):
    name = {"stage1": "1", "stage2": "2", "stage2_efficient": "2-efficient"}[stage]
    with torch.device("meta"):
        state = UNet(unet_config("full", unet_recipe(name).motion)).state_dict()
    manifest = json.loads((spec / "manifests" / f"unet_{stage}.json").read_text())
    assert set(manifest) == set(state)
    assert round(sum(t.numel() for t in state.values()) / 1e6, 1) == millions


def test_a_file_states_differences(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "learning_rate: 2e-5\nsteps: 7\ntrainable: [attn2]\ngradient_checkpointing: false\nlpips_weight: 1\n"
    )
    recipe = unet_recipe("2", path, steps=9, batch=None)
    assert (recipe.learning_rate, recipe.steps, recipe.trainable, recipe.gradient_checkpointing) == (
        2e-5,
        9,
        ("attn2",),
        False,
    )
    assert (recipe.lpips_weight, recipe.motion) == (1.0, "all")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("momentum: 1", "sets momentum, which is not a setting"),
        ("step: 3", "did you mean steps"),
        ("steps: many", "a whole number is needed"),
        ("steps: 1.5", "a whole number is needed"),
        ("learning_rate: fast", "a number is needed"),
        ("gradient_checkpointing: 3", "true or false is needed"),
        ("trainable: attn2", "a text or a list"),
        ("[1, 2]", "not a mapping of settings"),
        ("a: [", "cannot be read as YAML"),
        ("steps: 0", "steps is 0"),
        ("optimizer: sgd", "optimizer is 'sgd'"),
        ("precision: int8", "precision is 'int8'"),
        ("decoded_frames: 4", "SyncNet and TREPA need all"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, text, words):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        unet_recipe("2", path)


def test_unknown_names():
    with pytest.raises(UserError, match="stage is '3'"):
        unet_recipe("3")
    with pytest.raises(UserError, match="size is 'huge'"):
        unet_config("huge", "none")


def test_lpips_off_needs_no_weight():
    recipe = unet_recipe("2-efficient", lpips="off", sync_weight=0.0)
    assert not recipe.has_pixel_losses


def test_what_a_run_saves_gives_the_same_recipe(tmp_path):
    recipe = unet_recipe("2", steps=50, learning_rate=3e-5, decoded_frames=16, cache_latents=True)
    write_recipe(tmp_path / "recipe.yaml", recipe, init="sd15")
    text = (tmp_path / "recipe.yaml").read_text()
    assert build(UNetRecipe, {}, tmp_path / "recipe.yaml", {}) == recipe
    assert "# init: sd15" in text
    assert "# seed: 1247" in text
    assert "\nseed" not in text
    write_recipe(tmp_path / "plain.yaml", RunSettings())
    assert build(RunSettings, {}, tmp_path / "plain.yaml", {}) == RunSettings()
