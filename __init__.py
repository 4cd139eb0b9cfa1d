"""ComfyUI-LatentSync: ComfyUI asks this module for its nodes; nothing else happens here."""

from typing import Any

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint() -> Any:
    from .nodes import LatentSyncExtension

    return LatentSyncExtension()
