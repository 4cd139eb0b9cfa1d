"""A LoRA beside its checkpoint gives what the file merged of both gives; another checkpoint's is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from latentsync.batch.worker import ModelSpec
from latentsync.errors import UserError
from latentsync.training.unet.lora import merge_files
from latentsync.weights.bundle import load_models
from latentsync.weights.files import read_tensors
from latentsync.weights.lora import merge_lora, open_lora, split_strength

from ..tiny import tiny_checkpoint

LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
CONVOLUTION = "mid_block.resnets.0.conv1"
BIAS = "decoder.conv_out.bias"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("lora") / "tiny.safetensors")


def write_lora(path, checkpoint, **metadata):
    """Of a linear layer, a convolution and a parameter of the VAE."""
    state, tensors = read_tensors(checkpoint), {}
    generator = torch.Generator().manual_seed(3)
    for layer in (LINEAR, CONVOLUTION):
        weight = state[f"unet.{layer}.weight"]
        out, *rest = weight.shape
        tensors[f"diffusion_model.{layer}.lora_A.weight"] = torch.randn(2, *rest, generator=generator)
        tensors[f"diffusion_model.{layer}.lora_B.weight"] = torch.randn(
            out, 2, *(1 for _ in rest[1:]), generator=generator
        )
        tensors[f"diffusion_model.{layer}.alpha"] = torch.tensor(1.0)
    tensors[f"vae.{BIAS}.diff"] = torch.tensor([0.1, -0.2, 0.3])
    save_file(tensors, path, {"format": "latentsync", "kind": "lora"} | metadata)
    return path


@pytest.fixture
def lora(base, tmp_path):
    return write_lora(tmp_path / "me.safetensors", base, base="nano", resolution="64")


def states(models):
    return models.unet.state_dict(), models.vae.model.state_dict()


def test_weights_are_those_of_the_formula(base, lora):
    plain, half = (load_models(base, lora=given) for given in ((), (f"{lora}:0.5",)))
    added = read_tensors(lora)
    for layer in (LINEAR, CONVOLUTION):
        key = f"diffusion_model.{layer}"
        up, down = added[f"{key}.lora_B.weight"], added[f"{key}.lora_A.weight"]
        product = (up.flatten(1) @ down.flatten(1)).reshape(plain.unet.state_dict()[f"{layer}.weight"].shape)
        wanted = plain.unet.state_dict()[f"{layer}.weight"] + 0.5 * 0.5 * product  # strength · alpha / rank
        assert torch.allclose(half.unet.state_dict()[f"{layer}.weight"], wanted, atol=1e-5)
    moved = half.vae.model.state_dict()[BIAS] - plain.vae.model.state_dict()[BIAS]
    assert torch.allclose(moved, torch.tensor([0.05, -0.1, 0.15]), atol=1e-6)
    assert half.name == "nano + me:0.5"
    assert half.fingerprint() != plain.fingerprint()


def test_beside_and_merged_are_the_same(base, lora, tmp_path):
    beside = load_models(base, lora=[lora])
    merged = load_models(merge_files(str(base), lora, tmp_path / "both.safetensors"))
    for one, other in zip(states(beside), states(merged), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_two_of_them_add_up(base, lora):
    twice = load_models(base, lora=[lora, f"{lora}:-1"])
    for one, other in zip(states(twice), states(load_models(base)), strict=True):
        assert all(torch.allclose(tensor, other[key], atol=1e-5) for key, tensor in one.items())


@pytest.mark.parametrize(
    ("metadata", "words"), [({"base": "1.5"}, "trained on 1.5"), ({"resolution": "512"}, "512 px")]
)
def test_of_another_checkpoint(base, tmp_path, metadata, words):
    other = write_lora(tmp_path / "other.safetensors", base, **metadata)
    with pytest.raises(UserError, match=words):
        load_models(base, lora=[other])


def test_what_is_no_lora_for_it(base, lora, tmp_path):
    with pytest.raises(UserError, match=r"no LoRA .*gone"):
        open_lora(tmp_path / "gone.safetensors:0.5")
    with pytest.raises(UserError, match="not a LoRA"):
        open_lora(base)
    with pytest.raises(UserError, match="strength is 9"):
        open_lora(f"{lora}:9")
    tensors = read_tensors(lora)
    with pytest.raises(UserError, match="does not fit"):
        merge_lora({"x.weight": torch.zeros(2, 2)}, tensors)
    odd = {"vae.decoder.none.diff": torch.zeros(3)} | {k: t for k, t in tensors.items() if "vae." not in k}
    save_file(odd, tmp_path / "odd.safetensors", {"format": "latentsync", "kind": "lora"})
    with pytest.raises(UserError, match="VAE"):
        load_models(base, lora=[tmp_path / "odd.safetensors"])


def test_file_and_strength(tmp_path):
    assert split_strength("a/me.safetensors:0.8") == (tmp_path.__class__("a/me.safetensors"), 0.8)
    assert split_strength("C:\\me.safetensors")[1] == 1.0
    assert split_strength("me.safetensors")[1] == 1.0
    (tmp_path / "x:2").write_text("")
    assert split_strength(tmp_path / "x:2") == (tmp_path / "x:2", 1.0)


def test_a_batch_notices_another_lora(base, lora):
    stamps = [
        json.dumps(ModelSpec(str(base), lora=given).fingerprint()) for given in ((), (f"{lora}:1",), (f"{lora}:2",))
    ]
    assert len(set(stamps)) == 3
    assert "lora" not in json.loads(stamps[0])  # results of before are still known
