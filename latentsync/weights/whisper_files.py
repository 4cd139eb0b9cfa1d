"""Whisper encoders from OpenAI's, Hugging Face's and CTranslate2's files."""

import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import UserError
from ..models.whisper import State, WhisperEncoder, _count
from .files import file_in, read_head, read_tensors
from .registry import find

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
    name_or_path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> WhisperEncoder:
    """Encoder from a known name ("tiny", "tiny.en") or from a file or folder.

    Read are OpenAI's .pt, the Hugging Face layout (safetensors or .bin, or their folder), CTranslate2's model.bin and
    our own converted safetensors. Raises UserError when the file is anything else.
    """
    path = Path(name_or_path)
    if not path.exists():
        if path.name != str(name_or_path) or path.suffix in _SUFFIXES:
            raise UserError(f"There is no Whisper file at {path}; give a file, a folder, or a known name such as tiny.")
        path = find(path.name)
    state = {key: tensor.to(dtype, copy=True) for key, tensor in read_encoder(path).items()}
    try:
        encoder = WhisperEncoder(state)
    except UserError as error:
        raise UserError(f"{path} is not a usable Whisper encoder: {error}") from error
    return encoder.to(device).eval().requires_grad_(False)


def read_encoder(path: str | os.PathLike[str]) -> State:
    """The encoder's tensors of any readable file, in the Hugging Face layout without prefix, in the stored dtype."""
    path = Path(path)
    if path.is_dir() and file_in(path, _FOLDER_FILES) == path:
        raise UserError(f"The folder {path} holds no Whisper weights; one of {', '.join(_FOLDER_FILES)} is needed.")
    path = file_in(path, _FOLDER_FILES)
    head = read_head(path)
    if b"Spec\0" in head[:64] and head[1:4] == b"\0\0\0":
        return convert_ctranslate2(path)
    tensors = read_tensors(path)
    if "encoder.positional_embedding" in tensors:
        return convert_openai(tensors)
    for prefix in _HF_PREFIXES:
        if f"{prefix}conv1.weight" in tensors and f"{prefix}embed_positions.weight" in tensors:
            return {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}
    raise UserError(f"{path} is not a Whisper model; OpenAI's, Hugging Face's or CTranslate2's file is needed.")


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
            data = torch.frombuffer(bytearray(file.read(size)), dtype=_CT2_DTYPES[dtype])
            yield key.removeprefix("encoder/"), data.view(shape)  # ValueError, RuntimeError: it is cut off
        else:
            raise UserError("this CTranslate2 model is quantized to integers; a float16 or float32 one is needed.")


def _ct2_string(file: BinaryIO) -> str:
    return file.read(_unpack(file, "H")).rstrip(b"\0").decode()


def _unpack(file: BinaryIO, kind: str) -> int:
    return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]
