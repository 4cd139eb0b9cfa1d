"""docs/nodes.md from the nodes' own schemas, as ComfyUI tells them: python -m tests.docs.nodes (needs ComfyUI)."""

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..nodes.server import ROOT, ComfyServer, find_comfyui
from ..nodes.table import NODES

PAGE = ROOT / "docs" / "nodes.md"
HEAD = """# The nodes

*Generated from the nodes' schemas with `python -m tests.docs.nodes`; a test checks it. Each node has a help page with pictures, linked below and shown in
ComfyUI with the ⓘ above a selected node. What the settings do, with pictures: [settings.md](settings.md).*

Sockets are in capitals. An input in *italics* is optional. *Show advanced inputs* on a node shows those marked (advanced). All sockets except FACE_TRACK are ComfyUI's own.
"""
TOGETHER = """## Compatible nodes

Tested on ComfyUI 0.33.0 and, if the node exists there, on 0.3.64, by `tests/workflows` and `tests/nodes`.

| with | how | what to know |
|---|---|---|
| KSampler, SamplerCustomAdvanced | instead of Sampler | `ddim` with scheduler `ddim_uniform`, or `simple` for nano's one step; cfg is the guidance, 1 for nano and 1.5 for LatentSync 1.5 and 1.6. For SamplerCustomAdvanced use our Noise |
| TorchCompileModel and other MODEL nodes | after Load Model | the MODEL is an ordinary one |
| LoraLoaderModelOnly | after Load Model | linear layers and convolutions of the U-Net, to the same latents as *lora* of Load Model. The decoder's part of a model of one person is not applied this way: choose that as *lora* |
| Load LoRA Model, Save LoRA Weights | after Personalize | the same; a saved file has the decoder's part but no metadata |
| VAE Encode, VAE Decode | crops to LATENT and back | with the VAE of Load Model |
| Load VAE (`taesd`) | *vae* of Condition, Video and Lip Sync, and VAE Decode | a tiny VAE for drafts with 1.5 and 1.6: softer but faster |
| Audio Encoder Encode | instead of Encode Audio | with the AUDIO_ENCODER of Load Model |
| upscalers, face restorers | between VAE Decode and Composite | crops of any size, square |
| Load Video, Create Video, Save Video | before and after | Video reads the file of Load Video's VIDEO and passes a file to Save Video, which copies the streams |
| VideoHelperSuite's Load Video and Load Audio | to *images* and *audio* | the audio is decoded only when needed. Take fps from its Video Info |
| VideoHelperSuite's Video Combine | after Lip Sync or Composite | connect images and audio, set the source's frame rate |
| Detect Face Landmarks (MediaPipe) | *landmarks* of Find Faces | our own search is skipped. ComfyUI 0.33 and newer; tested with landmarks from the mediapipe package, since the node's weights were not available |
| MASK, SEGS (Impact Pack), BBOX (KJNodes, mtb), BOUNDING_BOX | *region* of Find Faces | chooses or limits the face; tested with values of these types, not with those packs installed |
| MASK of a hand or a microphone | *keep_out* of Composite or Lip Sync | one for all frames, or one for each |
| Draw BBoxes, crop nodes, detailers | after Face Regions | boxes and masks in image pixels |
"""
ADVANCED = " (advanced)"
"""The mark of an input that is folded away; a ComfyUI that cannot do so does not tell."""
FILE = re.compile(r"\.(safetensors|pt|pth|ckpt|bin|task|model)$")


def reference(schemas: dict[str, Any]) -> str:
    """The page. schemas: our nodes of /object_info."""
    index = "\n".join(f"- [{NODES[name].title}](#{_anchor(name)})" for name in NODES)
    return "\n".join([HEAD, index, "", TOGETHER, *(_node(name, schemas[name]) for name in NODES)])


def _anchor(name: str) -> str:
    return NODES[name].title.lower().replace(" ", "-")


def _node(name: str, said: dict[str, Any]) -> str:
    outputs = zip(said["output_name"], said["output"], said["output_tooltips"], strict=True)
    return "\n".join(
        [
            f"## {NODES[name].title}",
            "",
            f"{said['description']} [Help page](../web/docs/{name}.md)",
            "",
            "| input | takes | default | |",
            "|---|---|---|---|",
            *(_input(key, spec, optional) for key, spec, optional in _inputs(said)),
            "",
            "| output | gives | |",
            "|---|---|---|",
            *(f"| {key} | {kind} | {_cell(tip)} |" for key, kind, tip in outputs),
            "",
        ]
    )


def _inputs(said: dict[str, Any]) -> Iterator[tuple[str, list[Any], bool]]:
    for part in ("required", "optional"):
        known = said["input"].get(part, {}).items()  # without those of a count, which older ComfyUI has beside it
        yield from ((key, spec, part == "optional") for key, spec in known if "." not in key)


def _input(key: str, spec: list[Any], optional: bool) -> str:
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    usual = options.get("default", "")
    shown = "" if usual == "" else f"`{usual}`"
    name = f"*{key}*" if optional else key
    mark = ADVANCED if options.get("advanced") else ""
    return f"| {name}{mark} | {_takes(kind, options)} | {shown} | {_cell(options['tooltip'])} |"


def _takes(kind: Any, options: dict[str, Any]) -> str:
    choices = kind if isinstance(kind, list) else None
    if kind in ("COMBO", "COMFY_DYNAMICCOMBO_V3"):
        choices = [one["key"] if isinstance(one, dict) else one for one in options.get("options", [])]
    if choices is not None:
        known = [f"`{choice}`" for choice in choices if not FILE.search(str(choice))]
        return ", ".join(known)
    if kind in ("INT", "FLOAT"):
        high = options["max"]
        return f"{options['min']:g} to {'2⁶³ − 1' if high == 2**63 - 1 else f'{high:g}'}"
    return "text" if kind == "STRING" else str(kind).replace(",", " or ")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main() -> None:
    found = find_comfyui()
    if found is None:
        sys.exit("No ComfyUI here: COMFYUI_PATH names its folder, COMFYUI_PYTHON the Python that has its packages.")
    with tempfile.TemporaryDirectory() as folder, ComfyServer(found, Path(folder)) as server:
        PAGE.write_text(reference(server.object_info()), encoding="utf-8")


if __name__ == "__main__":
    main()
