"""Every command of README and docs can be typed as it stands: programs, options, values, modules, extras, targets."""

import argparse
import ast
import importlib
import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from itertools import pairwise, takewhile

import pytest
import typer

import latentsync
from latentsync.cli import main as cli
from latentsync.errors import REQUIREMENTS
from latentsync.settings import Settings
from latentsync.weights.registry import is_registered

from .pages import OTHERS, OURS, ROOT, all_code, commands, extras, is_shell, pages

APP = typer.main.get_command(cli.app)
COMMANDS = commands()
PACKAGES = {"torch", "opencv-contrib-python", "scenedetect", "lpips"}
"""What pip is asked for by name, besides this package."""
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
FOREIGN = {"--max-upload-size", "--lowvram", "--novram", "--cpu", "--no-deps", "--extra-index-url", "--index-url"}
"""Options of ComfyUI and pip that the pages speak of; accelerate's have an underline, ours have none, and its commands
are given to its own parser below."""


def told(words):
    """The words that `latentsync` gets, where it is what a command runs; else None."""
    if words[0] == "latentsync":
        return words[1:]
    for i, pair in enumerate(pairwise(words)):
        if pair == ("-m", "latentsync"):
            return words[i + 2 :]
    return None


OWN = [command for command in COMMANDS if told(command.words) is not None]


def parse(words, command=APP):
    """The innermost command's context, as `latentsync` itself would see these words; SystemExit-like Exits pass."""
    context, name, rest = None, "latentsync", list(words)
    while True:
        context = command.make_context(name, rest, parent=context)
        if not hasattr(command, "commands"):
            return context
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)


def named(words):
    """The command that these words name, and those that are left."""
    command, rest = APP, list(words)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]
    return command, rest


def options(command):
    names = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
    return {name for name in names if name.startswith("-")} | {"--help", "-h"}


def test_there_are_commands():
    assert len(OWN) > 80
    assert {told(c.words)[0] for c in OWN if told(c.words)} >= set(APP.commands), "commands that no page shows"


@pytest.mark.parametrize("command", [c for c in OWN if c.whole], ids=str)
def test_latentsync_takes_these_words(command):
    try:
        context = parse(told(command.words))
    except Exception as error:
        if type(error).__name__ in ("Exit", "NoArgsIsHelpError"):  # --version, --help
            return
        pytest.fail(getattr(error, "format_message", error.__str__)())
    if context.command.name == "run":
        given = {field.name: context.params[field.name] for field in fields(Settings)}
        Settings(**{name: value for name, value in given.items() if value is not None})


@pytest.mark.parametrize("command", [c for c in OWN if not c.whole], ids=str)
def test_mentioned_commands_and_options_exist(command):
    found, rest = named(told(command.words))
    if hasattr(found, "commands"):
        assert not [word for word in rest if not word.startswith("-")], f"no such command: {rest}"
    unknown = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)} - options(found)
    assert not unknown


@pytest.mark.parametrize("command", [c for c in OWN if told(c.words)[:1] == ("download",)], ids=str)
def test_downloads_are_known(command):
    names = takewhile(lambda word: not word.startswith("-"), told(command.words)[1:])
    assert not [name for name in names if not is_registered(name)]


@pytest.mark.parametrize("command", [c for c in OWN if c.whole and told(c.words)[:1] == ("queue",)], ids=str)
def test_workflows_have_the_nodes_that_are_named(command):
    context = parse(told(command.words))
    prompt = json.loads((ROOT / context.params["workflow"]).read_text(encoding="utf-8"))
    titles = {node["_meta"]["title"]: node["inputs"] for node in prompt.values()}
    for place in [*(context.params["inputs"] or ()), *(context.params["values"] or ())]:
        node, _, name = place.split("=")[0].rpartition(".")
        assert name in titles[node], place


def test_options_that_are_spoken_of_exist():
    """Inline code that begins with -- is an option of one of our commands, benchmarks or tools."""
    known = set(FOREIGN)
    queue = [APP]
    for command in queue:
        known |= options(command)
        queue += getattr(command, "commands", {}).values()
    for path in [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "latentsync" / "training").glob("*.py")]:
        known |= set(re.findall(r"\"(--[a-z][a-z-]*)\"", path.read_text(encoding="utf-8")))
    for code in all_code():
        option = re.match(r"--[a-z][\w-]*", code.text) if code.language == "inline" else None
        assert option is None or "_" in option[0] or option[0] in known, (
            f"{code.page}:{code.line}: there is no {code.text}"
        )


class ParsedError(Exception):
    """The module's parser has taken the words."""


@pytest.mark.parametrize("command", [c for c in COMMANDS if "-m" in c.words and told(c.words) is None], ids=str)
def test_modules_exist_and_take_these_words(command, monkeypatch):
    words = command.words[command.words.index("-m") + 1 :]
    name = words[0]
    if name == "pip":
        return check_pip(words[1:])
    if name in ("pytest", "ruff", "venv"):
        missing = [word for word in words[1:] if "/" in word and not (ROOT / word.split("::")[0]).exists()]
        assert not missing
        return None
    monkeypatch.chdir(ROOT)
    if importlib.util.find_spec(name) is not None and importlib.util.find_spec(name).submodule_search_locations:
        name += ".__main__"
    assert importlib.util.find_spec(name), f"there is no module {name}"
    real = argparse.ArgumentParser.parse_args

    def only_parse(self, *_):
        real(self, list(words[1:]))
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    monkeypatch.setattr(sys, "argv", [name, *words[1:]])
    module = importlib.import_module(name)
    if not command.whole:
        return None
    if isinstance(getattr(module, "app", None), typer.Typer):
        parse(words[1:], typer.main.get_command(module.app))
    elif "argparse" in vars(module):
        with pytest.raises(ParsedError):
            module.main()
    return None


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] in ("accelerate", "torchrun")], ids=str)
def test_launchers_take_their_own_words(command):
    """Theirs stand before `-m latentsync`; what stands behind is parsed above."""
    if not command.whole and "-m" not in command.words:  # a mere mention
        return
    if command.words == ("accelerate", "config"):
        pytest.importorskip("accelerate.commands.config")
        return
    words = list(command.words[1 : command.words.index("-m") + 2])
    if command.words[0] == "torchrun":
        assert importlib.import_module("torch.distributed.run").get_args_parser().parse_args(words).training_script
        return
    launch = pytest.importorskip("accelerate.commands.launch")
    assert words.pop(0) == "launch"
    assert launch.launch_command_parser().parse_args(words).training_script == "latentsync"


def check_pip(words):
    """Requirement files that exist, extras of a clone that exist, packages that we mean. The package is in no index."""
    rest = list(words)
    assert rest.pop(0) in ("install", "uninstall", "download")
    while rest:
        word = rest.pop(0)
        if word in ("-r", "-c"):
            assert (ROOT / rest.pop(0)).is_file()
        elif word == "--index-url":
            assert rest.pop(0) == "https://download.pytorch.org/whl/cpu"
        elif match := re.fullmatch(r"\.(?:\[([\w,]+)\])?", word):
            asked = set((match[1] or "").split(",")) - {""}
            assert asked <= extras(), f"no such extra in {word}"
        elif not word.startswith("-"):
            assert word in PACKAGES | {*REQUIREMENTS.values(), "…"} or word.endswith(".whl"), word


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] == "pip"], ids=str)
def test_pip_is_asked_for_what_there_is(command):
    if command.whole or len(command.words) > 2:
        check_pip(command.words[1:])


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.words[0] == "make"], ids=str)
def test_make_has_these_targets_and_variables(command):
    for word in command.words[1:]:
        variable, is_one, _ = word.partition("=")
        wanted = rf"^{variable} [?:]= ?|\$[({{]{variable}[)}}]" if is_one else rf"^{word}:"
        assert re.search(wanted, MAKEFILE, re.MULTILINE), f"the Makefile has no {word}"


def test_no_program_is_unknown():
    for command in COMMANDS:
        program = command.words[0]
        if program in ("python", "python3") and command.words[1:2] != ("-m",):
            assert (ROOT / command.words[1]).is_file(), str(command)
        assert program in OURS | OTHERS, f"{command}: who is {program}?"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_shell_blocks_are_grammatical():
    for code in all_code():
        if is_shell(code):
            done = subprocess.run(["bash", "-n"], input=code.text, text=True, capture_output=True)
            assert not done.returncode, f"{code.page}:{code.line}: {done.stderr}"


def test_python_blocks_import_what_there_is():
    for code in (code for code in all_code() if code.language == "python"):
        signature = re.sub(r"^(\w+\(.*\) -> .+)$", r"def \1: ...", code.text, flags=re.MULTILINE)
        for node in ast.walk(ast.parse(signature, f"{code.page}:{code.line}")):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("latentsync"):
                module = importlib.import_module(str(node.module))
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{code.page}:{code.line}: {node.module} has no {missing}"


def test_signatures_are_the_real_ones():
    """Of docs/python.md: the whole clips' functions and all settings with their defaults."""
    page = "docs/python.md"
    texts = [code.text for code in all_code() if code.page == page and " -> " in code.text.split("\n")[0]]
    told_of = [ast.parse(f"def {text}: ...").body[0] for text in texts]
    assert {node.name for node in told_of} == {"load_models", "lipsync", "lipsync_file"}
    for node in told_of:
        real = inspect.signature(getattr(latentsync, node.name)).parameters
        assert [one.arg for one in (*node.args.args, *node.args.kwonlyargs)] == list(real), node.name
    (call,) = (ast.parse(said).body[0].value for said in re.findall(r"`(Settings\([^`]+\))`", pages()[page]))
    given = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
    assert given == {field.name: field.default for field in fields(Settings)}


def test_environment_variables_are_ours():
    """Every LATENTSYNC_… that a page names is read by some file."""
    files = [path for top in ("latentsync", "nodes", "tests", "benchmarks") for path in (ROOT / top).rglob("*.py")]
    source = "\n".join(path.read_text(encoding="utf-8") for path in files)
    for page, text in pages().items():
        for name in set(re.findall(r"\bLATENTSYNC_[A-Z_]+\b", text)):
            assert f'"{name}"' in source, f"{page}: nothing reads {name}"
