"""The pack's nodes for ComfyUI. Imported when ComfyUI asks for them, never before."""

from comfy_api.latest import ComfyExtension, io

from . import host
from .audio import LatentSyncEncodeAudio
from .faces import LatentSyncComposite, LatentSyncFaceRegions, LatentSyncFindFaces
from .fit import LatentSyncFitLength
from .lipsync import LatentSyncLipSync, LatentSyncVideo
from .loaders import LatentSyncDownload, LatentSyncLoader
from .personalize import LatentSyncPersonalize
from .routes import add_routes
from .sampling import LatentSyncCondition, LatentSyncNoise, LatentSyncSampler
from .score import LatentSyncScore
from .speakers import LatentSyncSpeakers


class LatentSyncExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        # schemas are built after this call and ask for the folder's files
        host.register_folders()
        host.bring_samples()
        add_routes(host.routes())
        nodes = [
            LatentSyncLoader,
            LatentSyncDownload,
            LatentSyncEncodeAudio,
            LatentSyncFindFaces,
            LatentSyncFitLength,
            LatentSyncCondition,
            LatentSyncNoise,
            LatentSyncSampler,
            LatentSyncComposite,
            LatentSyncFaceRegions,
            LatentSyncLipSync,
            LatentSyncVideo,
            LatentSyncSpeakers,
            LatentSyncScore,
            LatentSyncPersonalize,
        ]
        return [host.with_short_paths(node) for node in nodes]
