"""The lines that `warmlane up` offers for pasting into a shell. Pure, except that it looks up where the program is."""

import os
import shlex
from collections.abc import Iterator
from typing import Final

import msgspec

from contracts.settings import ModelEntry
from ops.commands.addresses import DEFAULT_URL
from ops.commands.up.setup import SystemSetup
from ops.machine.processes import warmlane_command

# The line with `curl` waits a minute, once: a usual run is far shorter than the longest. For a model whose tasks may
# take longer than this, `warmlane up` offers `warmlane submit` instead.
CURL_WAITS_FOR_S: Final = 600.0
PICTURE: Final = "PICTURE.png"
PROMPTS: Final = ("a red fox in fresh snow", "a paper boat on a quiet lake", "a lantern in the rain")


def lines_for_each_model(setup: SystemSetup, *, needs_key: bool) -> Iterator[str]:
    """Lines that make a video and save it, for each model that has a lane, or for every model if none has one."""
    models = [model for model, count in setup.lanes.items() if count] or list(setup.catalog.models)
    for model, prompt in zip(models, PROMPTS * len(models), strict=False):
        entry = setup.catalog.models[model]
        if entry.constraints.image.presence == "required" or entry.timeouts.total_s > CURL_WAITS_FOR_S:
            yield submit_line(setup.url, entry, prompt)
        else:
            yield curl_lines(setup.url, model, prompt, needs_key=needs_key)


def submit_line(url: str, entry: ModelEntry, prompt: str) -> str:
    """One line that waits for as long as the task takes, with a placeholder for the picture if the model needs one."""
    picture = ["--image", PICTURE] if entry.constraints.image.presence == "required" else []
    return f"  {warmlane_line(url, 'submit', entry.name, prompt, *picture, '--out', f'{entry.name}.mp4')}"


def warmlane_line(url: str, *words: str) -> str:
    """`warmlane` *words* for the gateway at *url*, as a shell in the current folder can run it."""
    program, *rest = warmlane_command(*words, *([] if url == DEFAULT_URL else ["--url", url]))
    return shlex.join([os.path.relpath(program), *rest])


def curl_lines(url: str, model: str, prompt: str, *, needs_key: bool = False) -> str:
    """Two lines for a shell: submit, then wait and download; with *needs_key* they send what is in WARMLANE_API_KEY."""
    key = ' -H "Authorization: Bearer $WARMLANE_API_KEY"' if needs_key else ""
    body = msgspec.json.encode({"model": model, "prompt": prompt}).decode()
    return (
        f"""  id=$(curl -s{key} {url}/generate -H 'Content-Type: application/json' -d '{body}' | cut -d'"' -f4)\n"""
        f"""  curl -s{key} "{url}/tasks/$id?wait=60"; echo; curl{key} -so {model}.mp4 "{url}/tasks/$id/video" """
    ).rstrip()
