"""Write subgraphs/ anew, the blueprints of ComfyUI's node library: python -m tests.workflows.blueprints

Each is a workflow of flows.py's making in which all but the files to load and save becomes one subgraph.
"""

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentsync.settings import Settings

from ..nodes.graphs import Node
from ..nodes.server import ROOT
from .browser import arrange, load_api
from .build import front_end_of_a_new_server, measured, save
from .flows import PORTRAIT, Flow, by_parts, filled, sampler, speakers
from .layout import Group, Part, Row, lay_out

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOLDER = ROOT / "subgraphs"
CATEGORY = "LatentSync"
ALIASES = ["lip sync", "lipsync", "dub", "talking head", "talking portrait", "speech", "mouth", "latentsync"]
SPACE = uuid.UUID("6ff1f2a5-6c0b-4a5e-9c55-0b9f3c2b2a11")
"""Ids are made of titles and names in it, so that a new build differs only where something changed."""


@dataclass(frozen=True)
class Blueprint:
    """outer: nodes that stay outside, with the name of the subgraph's socket that each is wired to.

    asked: widgets that the subgraph shows: its name for one, and the nodes whose widget of that name it sets.
    """

    title: str
    description: str
    flow: Flow
    outer: list[tuple[Node, str]]
    asked: list[tuple[str, str, list[Node]]]
    layout: Part


def lip_sync_a_video() -> Blueprint:
    g = Flow()
    speech, video = g.speech(), g.video()
    loader, clip = g.loader(), g.parts(video)
    done, sound, nodes = by_parts(g, loader, speech, clip, clip[2], sampler)
    joined = g.join(done, sound, clip[2])
    outer = [(video, "video"), (speech, "speech"), (g.save(joined), "video")]
    about = "Makes the face in a video say a speech. Open it to change its parts."
    return Blueprint("Lip sync a video", about, g, outer, _asked(loader, nodes), _single([loader, clip], nodes, joined))


def talking_portrait() -> Blueprint:
    g = Flow()
    speech, picture = g.speech(), g.add("LoadImage", "Picture", image=PORTRAIT)
    loader, fps = g.loader(), g.add("PrimitiveFloat", "Frames per second", value=float(Settings.still_fps))
    done, sound, nodes = by_parts(g, loader, speech, picture, fps, sampler)
    joined = g.join(done, sound, fps)
    outer = [(picture, "image"), (speech, "speech"), (g.save(joined), "video")]
    about = "Makes the face in a picture say a speech; the video is as long as the speech. Open it to change its parts."
    asked = [(name, *rest) for name, *rest in _asked(loader, nodes) if name != "fit"]
    asked.append(("fps", "value", [fps]))
    return Blueprint("Talking portrait", about, g, outer, asked, _single([loader, fps], nodes, joined))


def two_people() -> Blueprint:
    g = Flow()
    files, made = speakers(g)
    outer = [*zip(files, ("voice_left", "voice_right", "video"), strict=True), (g.save(made), "video")]
    about = "Two faces in one video, each with a voice of its own: the left one speaks first, then the right one."
    asked = [(name, name, [made]) for name in ("checkpoint", "seed", "fit")]
    return Blueprint("Two people", about, g, outer, asked, Row([Group("Who speaks when", [[made]])]))


def _asked(loader: Node, nodes: Any) -> list[tuple[str, str, list[Node]]]:
    return [
        ("checkpoint", "checkpoint", [loader]),
        ("face", "face", [nodes.faces]),
        ("fit", "fit", [nodes.fitted]),
        ("seed", "seed", [nodes.latent]),
    ]


def _single(first: list[Node], nodes: Any, joined: Node) -> Part:
    return Row(
        [
            Group("Model and face", [[*first, nodes.faces]]),
            Group("Listen", [[nodes.fitted, nodes.heard, nodes.asked]]),
            Group("Repaint the mouth", [[nodes.crops, nodes.latent]]),
            Group("Result", [[nodes.pasted, joined]]),
        ]
    )


BLUEPRINTS: list[Callable[[], Blueprint]] = [lip_sync_a_video, talking_portrait, two_people]


def drawn(page: "Page", one: Blueprint, known: dict[str, Any]) -> dict[str, Any]:
    prompt = filled(one.flow.prompt, known)
    sizes = measured(page, prompt)
    load_api(page, prompt, one.title)
    placed = lay_out(one.layout, sizes)
    drawing = {
        "title": one.title,
        "outer": [[node.id, name] for node, name in one.outer],
        "asked": [[name, widget, [node.id for node in nodes]] for name, widget, nodes in one.asked],
        "nodes": placed.nodes,
        "groups": placed.groups,
    }
    instance, inside = json.loads(arrange(page, "subgraph", drawing))
    _name_anew(one.title, instance, inside)
    inside |= {"category": CATEGORY, "description": one.description}
    return {
        "revision": 0,
        "last_node_id": instance["id"],
        "last_link_id": 0,
        "nodes": [instance],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [inside]},
        "extra": {"BlueprintDescription": one.description, "BlueprintSearchAliases": ALIASES},
    }


def _name_anew(title: str, instance: dict[str, Any], inside: dict[str, Any]) -> None:
    """Ids that do not change from build to build."""
    instance["id"], instance["order"] = 1, 0
    inside["id"] = instance["type"] = str(uuid.uuid5(SPACE, title))
    for kind in ("inputs", "outputs"):
        for slot in (*inside[kind], *instance[kind]):
            slot["type"] = slot["type"].replace("IMAGE,VIDEO", "IMAGE")  # of what follows, only one node takes a VIDEO
        for slot in inside[kind]:
            slot["id"] = str(uuid.uuid5(SPACE, f"{title} {kind} {slot['name']}"))
        for slot in instance[kind]:
            slot |= {"links": []} if kind == "outputs" else {"link": None}


if __name__ == "__main__":
    with front_end_of_a_new_server() as (page, known):
        FOLDER.mkdir(exist_ok=True)
        for make in BLUEPRINTS:
            one = make()
            save(FOLDER / f"{one.title}.json", drawn(page, one, known))
