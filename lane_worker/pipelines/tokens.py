"""The tokenizer of a prepared folder: as it was published, bytes included, and checked by how it encodes some texts.

UMT5 knows every byte, so no text is unknown to it. The tokenizer that transformers 5 rebuilds from a published folder
(class `T5Tokenizer`) has lost that: an emoji is one unknown token, and so is a word with one letter it never saw. A
prepared folder names the class that loads `tokenizer.json` as it is, and that file sets `byte_fallback` (ADR 0028).
"""

import json
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import transformers
from msgspec import Struct

from contracts.nesting import loads

TOKENIZER_JSON: Final = "tokenizer.json"
CONFIG: Final = "tokenizer_config.json"
FILES: Final = (TOKENIZER_JSON, CONFIG, "special_tokens_map.json", "spiece.model", "added_tokens.json")
# The class of transformers that takes a tokenizer.json as it is.
AS_IT_IS: Final = "TokenizersBackend"
BYTES: Final = frozenset(f"<0x{number:02X}>" for number in range(256))
# What is encoded when a folder is prepared, and again by `verify`.
TEXTS: Final = (
    "",
    "a red fox in fresh snow",
    "A RED Fox",
    "un café crème, naïve",
    "雨の中の灯籠",
    "色调艳丽 过曝",
    "  two  spaces ",
    "tab\tand\x07bell",
    "🦊",
    "👩‍🚀 on 🌙",
)


class PreparedTokenizer(Struct, frozen=True):
    """The files of a tokenizer, the class that loads them, its number of tokens, how it encodes `TEXTS`, its faults."""

    files: dict[str, bytes]
    kind: str
    size: int
    tokens: dict[str, tuple[int, ...]]
    faults: tuple[str, ...]


def prepared_tokenizer(folder: Path) -> PreparedTokenizer:
    """The tokenizer in *folder* as a prepared folder holds it. Raises whatever transformers raises for its files."""
    published = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    with tempfile.TemporaryDirectory() as made:
        files = with_bytes(published, _load(folder))
        for name, content in files.items():
            Path(made, name).write_bytes(content)
        loaded = _load(Path(made))
    return PreparedTokenizer(files, type(loaded).__name__, len(loaded), tokens_of(loaded), tuple(faults_of(loaded)))


def with_bytes(published: dict[str, bytes], rebuilt: Any) -> dict[str, bytes]:
    """The *published* files with byte fallback; unchanged unless they are a Unigram tokenizer that knows every byte.

    A folder that has a SentencePiece model alone gets the tokenizer.json that transformers has *rebuilt* from it.
    """
    state = loads(published.get(TOKENIZER_JSON) or rebuilt.backend_tokenizer.to_str().encode())
    model, config = state["model"], loads(published[CONFIG])
    if model.get("type") != "Unigram" or not {piece for piece, _ in model["vocab"]} >= BYTES:
        return published
    model["byte_fallback"] = True
    decoders = [{"type": "ByteFallback"}, *filter(None, [state["decoder"]])]
    state["decoder"] = {"type": "Sequence", "decoders": decoders}
    config["tokenizer_class"] = AS_IT_IS
    changed = {TOKENIZER_JSON: json.dumps(state, ensure_ascii=False), CONFIG: json.dumps(config, indent=2)}
    return {**published, **{name: text.encode() for name, text in changed.items()}}


def load_faults(folder: Path, tokens: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """What is wrong with the tokenizer of a prepared folder, which encoded texts as *tokens* when it was prepared."""
    try:
        loaded = _load(folder)
    except Exception as error:  # of many kinds, by what is wrong with the files
        yield f"it does not load ({(str(error).splitlines() or [type(error).__name__])[0]})"
        return
    yield from faults_of(loaded)
    for text, before in tokens.items():
        now = tuple(loaded(text).input_ids)
        if now != before:
            yield f"it encodes {text!r} as {list(now)}, and as {list(before)} when it was prepared"


def tokens_of(loaded: Any) -> dict[str, tuple[int, ...]]:
    """How a tokenizer encodes each of `TEXTS`."""
    return {text: tuple(loaded(text).input_ids) for text in TEXTS}


def faults_of(loaded: Any) -> Iterator[str]:
    """How a tokenizer differs from what a text encoder of Wan was trained with.

    1. Nothing is unknown.
    2. A text ends with one end token; an empty text is that alone.
    3. The tokens decode to the text again, but for spaces, control characters and compatible forms.
    """
    for text, tokens in tokens_of(loaded).items():
        if loaded.unk_token_id in tokens:  # 1
            yield f"it has no token for a part of {text!r}"
        elif tokens.count(loaded.eos_token_id) != 1 or tokens[-1] != loaded.eos_token_id:  # 2
            yield f"it does not end {text!r} with {loaded.eos_token}"
        elif _plain(loaded.decode(tokens, skip_special_tokens=True)) != _plain(text):  # 3
            yield f"it decodes the tokens of {text!r} to {loaded.decode(tokens)!r}"


def _plain(text: str) -> str:
    kept = (sign for sign in unicodedata.normalize("NFKC", text) if unicodedata.category(sign)[0] not in "CZ")
    return "".join(kept)


def _load(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
