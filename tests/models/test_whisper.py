"""Every layout of Whisper's weights gives the same encoder; anything else gives one sentence."""

import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import WhisperConfig, WhisperForConditionalGeneration, WhisperModel

from latentsync.errors import UserError
from latentsync.weights.whisper_files import load_whisper, read_encoder

DIM, LAYERS = 64, 2
CT2_TYPES = {torch.float32: 0, torch.float16: 4, torch.bfloat16: 5, torch.int8: 1}
OPENAI = {
    "layers": "blocks",
    "self_attn_layer_norm": "attn_ln",
    "self_attn.q_proj": "attn.query",
    "self_attn.k_proj": "attn.key",
    "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out",
    "final_layer_norm": "mlp_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
}


def small_config(**changes) -> WhisperConfig:
    sizes = {"d_model": DIM, "encoder_layers": LAYERS, "encoder_attention_heads": 1, "encoder_ffn_dim": 96}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 1, "decoder_ffn_dim": 64, "vocab_size": 32}
    tokens = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
    return WhisperConfig(**(sizes | decoder | tokens | changes))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = WhisperModel(small_config(suppress_tokens=None, begin_suppress_tokens=None)).eval()
    for parameter in model.parameters():
        # Norms and biases start as ones and zeros: a mix-up of theirs would not show.
        parameter.data = torch.randn_like(parameter) * 0.2
    return model


@pytest.fixture(scope="module")
def mel():
    return torch.randn(2, 80, 3000, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def expected(model, mel):
    """Each state, taken by hand from the parts of transformers' encoder."""
    encoder = model.encoder
    with torch.no_grad():
        x = torch.nn.functional.gelu(encoder.conv1(mel))
        x = torch.nn.functional.gelu(encoder.conv2(x)).mT + encoder.embed_positions.weight
        states = [x]
        for layer in encoder.layers:
            y = layer.self_attn_layer_norm(x)
            q, k, v = (f(y)[:, None] for f in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj))
            x = x + layer.self_attn.out_proj(torch.nn.functional.scaled_dot_product_attention(q, k, v)[:, 0])
            x = x + layer.fc2(torch.nn.functional.gelu(layer.fc1(layer.final_layer_norm(x))))
            states.append(x)
    return torch.stack(states, dim=2)


def openai_names(state: dict) -> dict:
    out = {}
    for key, tensor in state.items():
        key = key.replace("encoder.embed_positions.weight", "encoder.positional_embedding")
        key = key.replace("encoder.layer_norm.", "encoder.ln_post.")
        for ours, theirs in OPENAI.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
        out[key] = tensor
    return out


def ctranslate2_parts(model: WhisperModel) -> dict:
    state = model.encoder.state_dict()
    parts = {"decoder/embeddings/weight": model.decoder.embed_tokens.weight, "encoder/num_heads": torch.tensor(1)}
    for name in ("conv1", "conv2"):
        parts |= {f"encoder/{name}/{leaf}": state[f"{name}.{leaf}"] for leaf in ("weight", "bias")}
    parts["encoder/position_encodings/encodings"] = state["embed_positions.weight"]
    norms = {"encoder/layer_norm": "layer_norm"}
    linears = {}
    for i in range(LAYERS):
        here, there = f"encoder/layer_{i}", f"layers.{i}"
        norms |= {f"{here}/self_attention/layer_norm": f"{there}.self_attn_layer_norm"}
        norms |= {f"{here}/ffn/layer_norm": f"{there}.final_layer_norm"}
        linears |= {f"{here}/self_attention/linear_1": f"{there}.self_attn.out_proj"}
        linears |= {f"{here}/ffn/linear_{j}": f"{there}.fc{j + 1}" for j in (0, 1)}
        q, k, v = (f"{there}.self_attn.{x}_proj" for x in "qkv")
        stacked = f"{here}/self_attention/linear_0"
        parts[f"{stacked}/weight"] = torch.cat([state[f"{x}.weight"] for x in (q, k, v)])
        parts[f"{stacked}/bias"] = torch.cat([state[f"{q}.bias"], torch.zeros(DIM), state[f"{v}.bias"]])
    for theirs, ours in norms.items():
        parts |= {f"{theirs}/gamma": state[f"{ours}.weight"], f"{theirs}/beta": state[f"{ours}.bias"]}
    for theirs, ours in linears.items():
        parts |= {f"{theirs}/{leaf}": state[f"{ours}.{leaf}"] for leaf in ("weight", "bias")}
    return parts


def ctranslate2_bytes(parts: dict, dtype: torch.dtype, *, spec: str = "WhisperSpec", version: int = 6) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    out = struct.pack("<I", version) + text(spec) + struct.pack("<II", 3, len(parts))
    for key, tensor in sorted(parts.items()):
        tensor = tensor.detach().to(dtype).contiguous()
        out += text(key) + struct.pack(f"<B{tensor.ndim}I", tensor.ndim, *tensor.shape)
        content = tensor.flatten().view(torch.uint8).numpy().tobytes()
        out += struct.pack("<BI", CT2_TYPES[dtype], len(content)) + content
    return out + struct.pack("<I", 0)


def write(kind: str, model: WhisperModel, folder: Path) -> Path:
    state = model.state_dict()
    path = folder / "weights"
    if kind == "folder":
        model.save_pretrained(folder)
        return folder
    if kind == "folder with bin":
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    if kind == "with a language head":
        whole = WhisperForConditionalGeneration(small_config(suppress_tokens=None, begin_suppress_tokens=None))
        whole.model.load_state_dict(state)
        torch.save(whole.state_dict(), path)
    elif kind == "old pickle":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind == "openai":
        torch.save({"dims": {"n_audio_state": DIM}, "model_state_dict": openai_names(state)}, path)
    elif kind == "ctranslate2":
        path.write_bytes(ctranslate2_bytes(ctranslate2_parts(model), torch.float32))
    elif kind == "ours":
        save_file({k: v.contiguous() for k, v in model.encoder.state_dict().items()}, path, metadata={"format": "pt"})
    return path


LAYOUTS = ("folder", "folder with bin", "with a language head", "old pickle", "openai", "ctranslate2", "ours")


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_gives_the_same_encoder(kind, model, mel, expected, tmp_path):
    encoder = load_whisper(write(kind, model, tmp_path))
    got = encoder(mel)
    assert (encoder.dim, encoder.layers) == (DIM, LAYERS)
    assert got.shape == (2, 1500, LAYERS + 1, DIM)
    assert torch.allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_conversion_is_lossless_and_drops_the_decoder(kind, model, tmp_path):
    state = read_encoder(write(kind, model, tmp_path))
    wanted = model.encoder.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_ctranslate2(dtype, model, tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(ctranslate2_bytes(ctranslate2_parts(model), dtype))
    state, wanted = read_encoder(path), model.encoder.state_dict()
    assert all(torch.equal(state[key], wanted[key].to(dtype)) for key in wanted)


def test_loading_is_quiet(model, tmp_path):
    """No gradients, no dropout, no touch of the global random generator, the dtype that was asked for."""
    path = write("ours", model, tmp_path)
    before = torch.get_rng_state()
    encoder = load_whisper(str(path), dtype=torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before)
    assert encoder.dtype == torch.bfloat16
    assert encoder.device == torch.device("cpu")
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    path.unlink()  # Nothing is still read from the file.
    assert encoder(torch.zeros(1, 80, 3000, dtype=torch.bfloat16)).isfinite().all()


def renamed(state: dict) -> None:
    state["layers.1.fc1.wait"] = state.pop("layers.1.fc1.weight")


BROKEN = {
    "missing": (lambda s: s.pop("layers.1.fc2.bias"), r"missing: layers\.1\.fc2\.bias"),
    "renamed": (renamed, r"missing: layers\.1\.fc1\.weight"),
    "extra": (lambda s: s.update({"layers.1.fc3.bias": torch.zeros(1)}), r"not known: layers\.1\.fc3\.bias"),
    "shape": (lambda s: s.update({"layer_norm.bias": torch.zeros(63)}), r"of another shape: layer_norm\.bias"),
    "gap": (lambda s: s.update({"layers.3.fc1.bias": torch.zeros(96)}), r"missing: layers\.2.* and 24 more"),
    "bands": (lambda s: s.update({"conv1.weight": torch.zeros(DIM, 128, 3)}), r"128 mel bands"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_strict_keys(case, model, tmp_path):
    damage, sentence = BROKEN[case]
    state = {key: tensor.clone() for key, tensor in model.encoder.state_dict().items()}
    damage(state)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=sentence):
        load_whisper(tmp_path / "x.safetensors")


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


def other_file(kind: str, model: WhisperModel, path: Path) -> None:
    parts = ctranslate2_parts(model)
    makers = {
        "empty": lambda: b"",
        "text": lambda: b"tiny.en, please\n" * 9,
        "html": lambda: b"<!doctype html><title>404</title>",
        "zip": lambda: b"PK\3\4" + bytes(200),
        "pickle": lambda: pickle.dumps(Evil()),
        "number": lambda: pickle.dumps(3),
        "cut ctranslate2": lambda: ctranslate2_bytes(parts, torch.float32)[:200_000],
        "quantised": lambda: ctranslate2_bytes(parts, torch.int8),
        "translator": lambda: ctranslate2_bytes(parts, torch.float32, spec="TransformerSpec"),
        "from the future": lambda: ctranslate2_bytes(parts, torch.float32, version=9),
    }
    if kind in makers:
        path.write_bytes(makers[kind]())
    elif kind == "lora":
        save_file({"lora_unet.down.weight": torch.zeros(4, 4)}, path)
    elif kind == "a list":
        torch.save([torch.zeros(3)], path)
    elif kind == "another network":
        torch.save({"state_dict": {"conv1.weight": torch.zeros(3)}}, path)
    elif kind == "cut safetensors":
        save_file({k: v.contiguous() for k, v in model.encoder.state_dict().items()}, path)
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "cut pt":
        torch.save(model.state_dict(), path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "empty folder":
        path.mkdir()


OTHERS = {
    "empty": "an empty file",
    "text": "a text file",
    "html": "a web page",
    "zip": "is cut off",
    "pickle": "can run code",
    "number": "a Python pickle",
    "cut ctranslate2": "damaged CTranslate2",
    "quantised": "quantized",
    "translator": "kind TransformerSpec",
    "from the future": "version 9",
    "lora": "not a Whisper model",
    "a list": "no named tensors",
    "another network": "not a Whisper model",
    "cut safetensors": "cut off or damaged",
    "cut pt": "is cut off",
    "empty folder": "holds no Whisper weights",
    "absent": "no Whisper file",
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_get_one_sentence(kind, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.bin"
    other_file(kind, model, path)
    with pytest.raises(UserError, match=OTHERS[kind]) as caught:
        load_whisper(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "evil").exists()


def test_an_unknown_name_is_the_registrys_business():
    with pytest.raises(UserError, match="enormous"):
        load_whisper("enormous")
