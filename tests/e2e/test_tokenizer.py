"""The tokenizer of a prepared folder agrees with the small SentencePiece model of UMT5's kind that it is made from."""

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sentencepiece
import transformers

from lane_worker.checkpoints.found import CheckpointRefused
from lane_worker.pipelines.preparing.planning import plan
from lane_worker.pipelines.tokens import AS_IT_IS, CONFIG, TEXTS, TOKENIZER_JSON, load_faults, prepared_tokenizer
from tests.kit.small_checkpoints import layout, original, published, tokenizer, write_all_in_one

SEEN = ("a red fox in fresh snow", "un café crème", "雨の中の灯籠", "two spaces", "The quick brown fox and a lazy dog")
# what UMT5's authors set in its tokenizer_config.json, except for the 300 tokens of its pre-training
PUBLISHED = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
END = 1


@pytest.fixture(scope="module")
def model() -> bytes:
    """A SentencePiece model like UMT5's: a unigram model with T5's special tokens, its normalisation, and all bytes."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SEEN * 20),
        model_writer=made,
        vocab_size=400,
        byte_fallback=True,
        pad_id=0,
        eos_id=END,
        unk_id=2,
        bos_id=-1,
        character_coverage=1.0,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return made.getvalue()


def publish(folder: Path, model: bytes, form: str) -> Path:
    """Writes *model* as published files, as transformers converts them, which drops the byte fallback."""
    folder.mkdir()
    (folder / "spiece.model").write_bytes(model)
    (folder / CONFIG).write_text(json.dumps({**PUBLISHED, "extra_ids": 0}))
    if form != "spiece.model alone":
        transformers.AutoTokenizer.from_pretrained(folder).backend_tokenizer.save(str(folder / TOKENIZER_JSON))
    if form == "byte_fallback":
        state = json.loads((folder / TOKENIZER_JSON).read_bytes())
        state["model"]["byte_fallback"] = True
        (folder / TOKENIZER_JSON).write_text(json.dumps(state))
    return folder


def unpacked(folder: Path, target: Path) -> Any:
    """The tokenizer as a lane loads it."""
    target.mkdir()
    for name, content in prepared_tokenizer(folder).files.items():
        (target / name).write_bytes(content)
    return transformers.AutoTokenizer.from_pretrained(target)


@pytest.mark.parametrize("form", ["byte_fallback", "no byte_fallback", "spiece.model alone"])
def test_every_text_becomes_the_tokens_that_its_spiece_model_says(form: str, model: bytes, tmp_path: Path) -> None:
    folder = publish(tmp_path / "published", model, form)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    loaded = unpacked(folder, tmp_path / "made")
    assert type(loaded).__name__ == AS_IT_IS
    for text in (*TEXTS, "日本 🦊 x", "Ⅷ ℃", "x" * 300):
        assert loaded(text).input_ids == [*processor.encode(text), END], text
    fox = loaded("🦊").input_ids
    assert loaded.convert_ids_to_tokens(fox)[-5:] == ["<0xF0>", "<0x9F>", "<0xA6>", "<0x8A>", "</s>"]
    assert loaded.decode(fox, skip_special_tokens=True).strip() == "🦊"
    padded = loaded("🦊", padding="max_length", max_length=9, truncation=True)
    assert (padded.input_ids[-2:], padded.attention_mask[-2:]) == ([0, 0], [0, 0])
    # and what transformers makes of the published folder, which is the reason for all this
    rebuilt = transformers.AutoTokenizer.from_pretrained(folder)
    assert rebuilt.unk_token_id in rebuilt("🦊").input_ids


def test_preparing_leaves_a_prepared_tokenizer_unchanged(model: bytes, tmp_path: Path) -> None:
    """This holds for a tokenizer that is prepared twice, and for one that is no Unigram model with bytes."""
    unpacked(publish(tmp_path / "published", model, "byte_fallback"), tmp_path / "made")
    once = prepared_tokenizer(tmp_path / "published")
    again = prepared_tokenizer(tmp_path / "made")
    assert (again.kind, again.tokens, again.faults) == (once.kind, once.tokens, ())
    tiny = tokenizer(tmp_path / "tiny")
    kept = prepared_tokenizer(tiny)
    assert kept.files == {path.name: path.read_bytes() for path in tiny.iterdir()}


def test_verify_reports_how_a_tokenizer_differs(model: bytes, tmp_path: Path) -> None:
    unpacked(publish(tmp_path / "published", model, "byte_fallback"), tmp_path / "made")
    before = prepared_tokenizer(tmp_path / "made").tokens
    assert list(load_faults(tmp_path / "made", before)) == []
    changed = {**before, "🦊": (2, END)}
    (fault,) = load_faults(tmp_path / "made", changed)
    assert fault.startswith("it encodes '🦊' as [")
    assert fault.endswith(", and as [2, 1] when it was prepared")
    # what transformers rebuilds: the folder with the class that was published
    config = json.loads((tmp_path / "made" / CONFIG).read_bytes())
    (tmp_path / "made" / CONFIG).write_text(json.dumps({**config, **PUBLISHED}))
    faults = list(load_faults(tmp_path / "made", {}))
    assert "it has no token for a part of '🦊'" in faults
    (tmp_path / "made" / TOKENIZER_JSON).write_text("{")
    (fault,) = load_faults(tmp_path / "made", before)
    assert fault.startswith("it does not load (")


def test_a_tokenizer_without_bytes_or_end_is_refused(model: bytes, tmp_path: Path) -> None:
    folder = publish(tmp_path / "published", model, "byte_fallback")
    t2v = layout("phr00t", "t2v")
    encoder = msgspec.structs.replace(t2v.components[1], config={**t2v.components[1].config, "vocab_size": 400})
    wanted = msgspec.structs.replace(t2v, components=(t2v.components[0], encoder, t2v.components[2]))
    source = tmp_path / "aio.safetensors"
    write_all_in_one(wanted, published(wanted, original(wanted, folder)), source)
    planned = plan(wanted, source, tokenizer=folder)
    assert (planned.tokenizer.kind, planned.tokenizer.faults) == (AS_IT_IS, ())
    state = json.loads((folder / TOKENIZER_JSON).read_bytes())
    without = [pair for pair in state["model"]["vocab"] if pair[0] != "<0x52>"]
    changes: dict[str, Any] = {
        "it has no token for a part of 'A RED Fox'": {"model": {**state["model"], "vocab": without}},
        "it does not end '' with </s>": {"post_processor": None},
    }
    (folder / CONFIG).write_text(json.dumps({**PUBLISHED, "tokenizer_class": AS_IT_IS}))
    for reason, change in changes.items():
        (folder / TOKENIZER_JSON).write_text(json.dumps({**state, **change}))
        with pytest.raises(CheckpointRefused, match=f"is not the tokenizer of UMT5: {reason}; give --tokenizer google"):
            plan(wanted, source, tokenizer=folder)
