"""Low-rank additions: where they go, what they change, what the file looks like to others."""

import pytest
import torch

from latentsync.cli.app import _checkpoint
from latentsync.errors import UserError
from latentsync.models.unet import UNet
from latentsync.training.unet.init import initial_unet
from latentsync.training.unet.lora import (
    LORA_KEY,
    add_lora,
    load_lora_state,
    lora_state,
    merge_files,
    save_lora,
)
from latentsync.training.unet.task import prepare_unet
from latentsync.weights.bundle import load_models
from latentsync.weights.convert import save_model
from latentsync.weights.identify import identify
from latentsync.weights.load import load_unet
from latentsync.weights.lora import merge_lora

from ..tiny import lively, tiny_checkpoint, tiny_config
from .parts import recipe


def base_state(unet):
    return {key: tensor for key, tensor in unet.state_dict().items() if LORA_KEY not in key}


def network(seed=1):
    return lively(UNet(tiny_config()), seed)


def stir(unet, seed=2):
    """Additions as training leaves them: not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return unet


def answer(unet):
    generator = torch.Generator().manual_seed(3)
    sample = torch.randn(1, 13, 4, 8, 8, generator=generator)
    with torch.no_grad():
        return unet(sample, 100, torch.randn(1, 4, 50, 384, generator=generator))


def test_additions_go_to_hearing_and_motion():
    unet = network()
    names = add_lora(unet, 4)
    heard = [name for name in names if ".attn2." in name]
    moved = [name for name in names if ".motion_modules." in name]
    # 7 transformers (2 down, 1 middle, 4 up) and 6 motion modules of two attentions, four layers each
    assert (len(heard), len(moved)) == (7 * 4, 6 * 2 * 4)
    assert sorted(heard + moved) == sorted(names)


def test_at_first_nothing_changes():
    plain = answer(network())
    unet = network()
    add_lora(unet, 4)
    assert torch.equal(answer(unet), plain)
    assert not torch.equal(answer(stir(unet)), plain)


def test_exactly_the_additions_are_trained():
    unet = network()
    names = prepare_unet(unet, recipe("2", lora=4))
    trained = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert trained == set(names) == {name for name, _ in unet.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_merging_gives_the_same_network(alpha):
    unet = network()
    add_lora(unet, 4, alpha)
    stir(unet)
    merged = network()
    merged.load_state_dict(merge_lora(base_state(unet), lora_state(unet)))
    assert torch.allclose(answer(merged), answer(unet), atol=1e-5)
    halved = merge_lora(base_state(unet), lora_state(unet), strength=0.5)
    key = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    full = merge_lora(base_state(unet), lora_state(unet))[key]
    assert torch.allclose(halved[key], (full + base_state(unet)[key]) / 2, atol=1e-6)


def test_the_file_is_one_that_comfyui_reads(tmp_path):
    """Its generic form: the model's own key without .weight, then .lora_A.weight, .lora_B.weight and .alpha."""
    unet = network()
    add_lora(unet, 4)
    path = save_lora(tmp_path / "lora.safetensors", unet, {"rank": "4"})
    keys = set(lora_state(unet))
    layer = "diffusion_model.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
    assert {f"{layer}.lora_A.weight", f"{layer}.lora_B.weight", f"{layer}.alpha"} <= keys
    weights = {f"diffusion_model.{key}" for key in base_state(unet)}
    assert {key.removesuffix(".alpha") + ".weight" for key in keys if key.endswith(".alpha")} <= weights
    assert identify(path).kind == "lora"


def test_additions_come_back(tmp_path):
    from latentsync.weights.files import read_tensors

    unet, other = network(), network()
    add_lora(unet, 4)
    add_lora(other, 4)
    load_lora_state(other, read_tensors(save_lora(tmp_path / "l.safetensors", stir(unet), {})))
    assert torch.equal(answer(other), answer(unet))
    wrong = network()
    add_lora(wrong, 8)
    with pytest.raises(UserError, match="another network or rank"):
        load_lora_state(wrong, lora_state(unet))


def test_what_does_not_fit_is_refused():
    unet = network()
    add_lora(unet, 4)
    state = lora_state(unet)
    with pytest.raises(UserError, match="no LoRA in this file"):
        merge_lora(base_state(unet), {})
    smaller = {key: t for key, t in base_state(unet).items() if "motion_modules" not in key}
    with pytest.raises(UserError, match="does not fit this U-Net"):
        merge_lora(smaller, state)
    with pytest.raises(UserError, match="rank is 0"):
        add_lora(network(), 0)


DOORS = {"run": load_models, "train --init": lambda path: initial_unet(path, recipe("2")), "app": _checkpoint}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_a_lora_is_no_checkpoint_and_says_how_to_make_one(tmp_path, door):
    unet = network()
    add_lora(unet, 2)
    lora = save_lora(tmp_path / "mine.safetensors", unet, {})
    with pytest.raises(UserError, match=r"is a LoRA.*train merge-lora 1\.5 mine\.safetensors merged\.safetensors`"):
        door(str(lora))


@pytest.mark.parametrize("bundled", [False, True])
def test_two_files_become_one(tmp_path, bundled):
    base = tiny_checkpoint(tmp_path / "base.safetensors", seed=1)
    if not bundled:
        base = save_model(base, network().state_dict(), metadata={"resolution": 64, "prediction_type": "sample"})
    unet = network()
    add_lora(unet, 4)
    lora = save_lora(tmp_path / "lora.safetensors", stir(unet), {})
    out = merge_files(str(base), lora, tmp_path / "merged.safetensors")
    assert torch.allclose(answer(load_unet(out)), answer(unet), atol=1e-5)
    info = identify(out)
    assert (info.kind, info.resolution, info.prediction_type) == ("nano" if bundled else "unet", 64, "sample")
    with pytest.raises(UserError, match="not a LoRA"):
        merge_files(str(base), base, tmp_path / "x.safetensors")
