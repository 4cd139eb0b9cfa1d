"""Whisper encoders from OpenAI's, Hugging Face's and CTranslate2's files."""

import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..errors import UserError
from ..models.whisper import State, WhisperEncoder, _count

_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", "model.bin")
_SUFFIXES = (".safetensors", ".bin", ".pt")
_HF_PREFIXES = ("model.encoder.", "encoder.", "")
# Names inside a block: (ours and Hugging Face's, OpenAI's, CTranslate2's).
_BLOCK_NAMES = (
    ("self_attn_layer_norm", "attn_ln", "self_attention/layer_norm"),
    ("self_attn.out_proj", "attn.out", "self_attention/linear_1"),
    ("final_layer_norm", "mlp_ln", "ffn/layer_norm"),
    ("fc1", "mlp.0", "ffn/linear_0"),
    ("fc2", "mlp.2", "ffn/linear_1"),
)
_QKV = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
_CT2_DTYPES = {0: torch.float32, 4: torch.float16, 5: torch.bfloat16}
_CT2_VERSIONS = range(4, 7)


def load_whisper(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> WhisperEncoder:
    """Encoder from a known name ("tiny", "tiny.en") or from a file or folder.

    Read are OpenAI's .pt, the Hugging Face layout (safetensors or .bin, or their folder), CTranslate2's model.bin and
    our own converted safetensors. Raises UserError when the file is anything else.
    """
    path = _resolve(name_or_path)
    state = {key: tensor.to(dtype, copy=True) for key, tensor in read_encoder(path).items()}
    try:
        encoder = WhisperEncoder(state)
    except UserError as error:
        raise UserError(f"{path} is not a usable Whisper encoder: {error}") from error
    return encoder.to(device).eval().requires_grad_(False)


def read_encoder(path: str | os.PathLike[str]) -> State:
    """The encoder's tensors of any readable file, in the Hugging Face layout without prefix, in the stored dtype."""
    path = _file_in(Path(path))
    kind = _kind_of(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind == "ctranslate2":
        return convert_ctranslate2(path)
    return _read_pickle(path, zipped=kind == "zip")


def convert_openai(state: Mapping[str, Tensor]) -> State:
    """Encoder tensors in OpenAI's names ("encoder.blocks.0.attn.query.weight") to the Hugging Face names."""
    names = {"encoder.ln_post": "layer_norm", "encoder.conv1": "conv1", "encoder.conv2": "conv2"}
    for i in range(_count(state, r"encoder\.blocks\.(\d+)\.")):
        names |= {f"encoder.blocks.{i}.{theirs}": f"layers.{i}.{ours}" for ours, theirs, _ in _BLOCK_NAMES}
        names |= {f"encoder.blocks.{i}.attn.{theirs}": f"layers.{i}.self_attn.{ours}" for ours, theirs in _QKV}
    out: State = {}
    for key, tensor in state.items():
        if key == "encoder.positional_embedding":
            out["embed_positions.weight"] = tensor
        elif key.startswith("encoder."):
            stem, _, leaf = key.rpartition(".")
            out[f"{names.get(stem, stem)}.{leaf}"] = tensor
    return out


def convert_ctranslate2(path: str | os.PathLike[str]) -> State:
    """The encoder of a CTranslate2 Whisper (model.bin, not quantised) in the Hugging Face names."""
    try:
        with Path(path).open("rb") as file:
            parts = dict(_ctranslate2_encoder(file))
    except UserError:
        raise
    except (struct.error, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is a damaged CTranslate2 file; download it again.") from error
    names = {"layer_norm": "layer_norm", "conv1": "conv1", "conv2": "conv2"}
    out: State = {}
    for i in range(_count(parts, r"layer_(\d+)/")):
        names |= {f"layer_{i}/{theirs}": f"layers.{i}.{ours}" for ours, _, theirs in _BLOCK_NAMES}
        out |= _split_qkv(parts, i)
    for key, tensor in parts.items():
        stem, _, leaf = key.rpartition("/")
        if stem in names:
            out[f"{names[stem]}.{ {'gamma': 'weight', 'beta': 'bias'}.get(leaf, leaf) }"] = tensor
    if "position_encodings/encodings" in parts:
        out["embed_positions.weight"] = parts["position_encodings/encodings"]
    return out


def _split_qkv(parts: Mapping[str, Tensor], block: int) -> State:
    out: State = {}
    for leaf in ("weight", "bias"):
        stacked = parts.get(f"layer_{block}/self_attention/linear_0/{leaf}")
        if stacked is None or stacked.shape[0] % 3:
            continue
        for (ours, _), piece in zip(_QKV, stacked.chunk(3), strict=True):
            # Whisper's keys have no bias; CTranslate2 fills the gap with zeros.
            if (ours, leaf) != ("k_proj", "bias"):
                out[f"layers.{block}.self_attn.{ours}.{leaf}"] = piece.contiguous()
    return out


def _ctranslate2_encoder(file: BinaryIO) -> Iterator[tuple[str, Tensor]]:
    """(name below "encoder/", tensor) of each floating-point tensor; the decoder is skipped unread."""
    version, name = _unpack(file, "I"), _ct2_string(file)
    if name != "WhisperSpec" or version not in _CT2_VERSIONS:
        raise UserError(f"this is a CTranslate2 file of kind {name}, version {version}; a Whisper model is needed.")
    _unpack(file, "I")
    for _ in range(_unpack(file, "I")):
        key = _ct2_string(file)
        shape = [_unpack(file, "I") for _ in range(_unpack(file, "B"))]
        dtype, size = _unpack(file, "B"), _unpack(file, "I")
        if not key.startswith("encoder/") or not shape:
            file.seek(size, os.SEEK_CUR)
        elif dtype in _CT2_DTYPES:
            yield key.removeprefix("encoder/"), _ct2_tensor(file, shape, _CT2_DTYPES[dtype], size)
        else:
            raise UserError("this CTranslate2 model is quantised to integers; a float16 or float32 one is needed.")


def _ct2_tensor(file: BinaryIO, shape: list[int], dtype: torch.dtype, size: int) -> Tensor:
    if math.prod(shape) * dtype.itemsize != size:
        raise ValueError("a tensor's size does not follow from its shape")
    return torch.frombuffer(bytearray(file.read(size)), dtype=dtype).view(shape)


def _ct2_string(file: BinaryIO) -> str:
    return file.read(_unpack(file, "H")).rstrip(b"\0").decode()


def _unpack(file: BinaryIO, kind: str) -> int:
    return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]


def _resolve(name_or_path: str | os.PathLike[str]) -> Path:
    path = Path(name_or_path)
    if path.exists():
        return path
    if path.name == str(name_or_path) and path.suffix not in _SUFFIXES:
        from .registry import find

        return find(path.name)
    raise UserError(f"There is no Whisper file at {path}; give a file, a folder, or a known name such as tiny.")


def _file_in(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in _FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    raise UserError(f"The folder {path} holds no Whisper weights; one of {', '.join(_FOLDER_FILES)} is needed.")


def _kind_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a readable Whisper file.") from error
    if head[:4] == b"PK\3\4":
        return "zip"
    if head[:1] == b"\x80":
        return "pickle"
    if head[8:9] == b"{":
        return "safetensors"
    if b"Spec\0" in head and head[1:4] == b"\0\0\0":
        return "ctranslate2"
    raise _not_whisper(path)


def _not_whisper(path: Path) -> UserError:
    return UserError(f"{path} is not a Whisper model; OpenAI's, Hugging Face's or CTranslate2's file is needed.")


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            keys = _encoder_keys(file.keys())
            state = {ours: file.get_tensor(theirs) for ours, theirs in keys.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is a damaged safetensors file ({error}); download it again.") from error
    if not state:
        raise _not_whisper(path)
    return state


def _read_pickle(path: Path, *, zipped: bool) -> State:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:
        # torch raises half a dozen types here: a truncated zip, a foreign pickle, an unsafe one.
        raise UserError(
            f"{path} cannot be read as weights; it is damaged, or holds more than tensors (unsafe to load)."
        ) from error
    if not isinstance(content, Mapping):
        raise _not_whisper(path)
    openai = content.get("model_state_dict")
    if isinstance(openai, Mapping):
        return convert_openai(_tensors(openai))
    tensors = _tensors(content)
    keys = _encoder_keys(tensors)
    if not keys:
        raise _not_whisper(path)
    return {ours: tensors[theirs] for ours, theirs in keys.items()}


def _tensors(content: Mapping[Any, Any]) -> State:
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}


def _encoder_keys(names: Iterable[str]) -> dict[str, str]:
    """{name inside the encoder: name in the file}, empty when this is no Hugging Face Whisper."""
    keys = set(names)
    for prefix in _HF_PREFIXES:
        if f"{prefix}conv1.weight" in keys and f"{prefix}embed_positions.weight" in keys:
            return {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}
    return {}
