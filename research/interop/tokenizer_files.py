"""The tokenizer of an exported model, as files that `transformers` reads."""

import json
import shutil
from pathlib import Path
from typing import Any

import sentencepiece

from research.data.sentencepieces import SentencepieceTokenizer
from research.data.tokenizer import CONFIG, JSON, PROBE, Tokenizer, load
from research.vocabulary import Vocabulary

# What a directory of transformers may hold about its tokenizer, and about how text is continued with it.
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    "chat_template.jinja",
    "generation_config.json",
)
_SPACE = "\u2581"


def write(directory: Path, tokenizer: Path | Tokenizer | None) -> list[str]:
    """Writes the files; gives notes on what a reader should know of them."""
    if tokenizer is None:
        return ["no tokenizer was written"]
    if isinstance(tokenizer, Path):
        for name in _FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, directory / name)
        return []
    if isinstance(tokenizer, SentencepieceTokenizer):
        definition = translated(tokenizer) if tokenizer.trained_here else None
        if definition is None:
            (directory / "tokenizer.model").write_bytes(tokenizer.model)
            return ["the tokenizer was written as tokenizer.model, a sentencepiece model: load it with sentencepiece"]
        _write_json(directory / JSON, definition)
        _write_json(directory / CONFIG, _roles(tokenizer))
        return [f"the tokenizer was written as {JSON}, and gave the same ids; it reads {_SPACE} in a text as a space"]
    for name, content in tokenizer.files.items():
        (directory / name).write_bytes(content)
    roles = json.loads(tokenizer.files[CONFIG]) if CONFIG in tokenizer.files else {}
    _write_json(directory / CONFIG, {"tokenizer_class": "PreTrainedTokenizerFast", **roles})
    return []


def ids(tokenizer: Path | Tokenizer | None, encoder_decoder: bool) -> dict[str, int | None]:
    """The special ids as keys of a config.json; none where there is no such token."""
    found = load(tokenizer) if isinstance(tokenizer, Path) else tokenizer
    own = Vocabulary(0, -1, -1, -1, -1, -1) if found is None else found.vocabulary
    keys = {"bos_token_id": own.bos, "eos_token_id": own.eos, "pad_token_id": own.pad}
    found_ids: dict[str, int | None] = {key: token if token >= 0 else None for key, token in keys.items()}
    # A decoder's text begins with `bos`; the key must be a number even where there is no tokenizer.
    return found_ids | ({"decoder_start_token_id": max(own.bos, 0)} if encoder_decoder else {})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _roles(tokenizer: Tokenizer) -> dict[str, Any]:
    own = tokenizer.vocabulary
    roles = {"pad": own.pad, "unk": own.unknown, "bos": own.bos, "eos": own.eos, "mask": own.mask}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": tokenizer.piece(token) for role, token in roles.items()},
    }


# --- our sentencepiece models as a tokenizer.json ---------------------------------------------------------------------


def translated(tokenizer: SentencepieceTokenizer) -> dict[str, Any] | None:
    """A `tokenizer.json` with the same ids, `bos` before a text; none where it can not be made or gives other ids.

    What a BPE model of sentencepiece decides by the scores of its pieces, the `tokenizers` library decides by an order
    of merges; on a text of hard cases both must agree. A unigram model has ties, which the two break differently.
    """
    try:
        import tokenizers
    except ImportError:
        return None
    own, processor = tokenizer.vocabulary, sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    pieces: list[str] = [processor.id_to_piece(token) for token in range(own.size)]
    scores: list[float] = [processor.get_score(token) for token in range(own.size)]
    if not _is_bpe(pieces, scores):
        return None
    special = [own.pad, own.unknown, own.bos, own.eos, own.mask]
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(token, pieces[token]) for token in special],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        "pre_tokenizer": None,
        "post_processor": _template(pieces[own.bos], own.bos),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": _merged(pieces, scores, own.unknown),
    }
    engine = tokenizers.Tokenizer.from_str(json.dumps(definition))
    probe = PROBE.replace(_SPACE, "").replace(pieces[own.mask], "") + _MORE
    same = engine.encode(probe, add_special_tokens=False).ids == tokenizer.encode(probe).tolist()
    return definition if same else None


_MORE = """
def function(argument: int = 0) -> list[str]:
    \"\"\"Returns the words of a text, which is read from ``path``; see also `os.path`.\"\"\"
\treturn [word for word in "the quick brown fox".split(" ")]  # 3.14159, 1_000_000

    Raises:      ValueError, aaaaaaaa, --------, ........  na\u00efve caf\u00e9 \u0440\u0443\u0441\u0441
"""


def _is_bpe(pieces: list[str], scores: list[float]) -> bool:
    """Scores of a BPE model are 0, -1, -2, ... in the order of its merges."""
    longer = [score for piece, score in zip(pieces, scores, strict=True) if score < 0]
    return all(score == int(score) for score in scores) and longer == sorted(longer, reverse=True)


def _merged(pieces: list[str], scores: list[float], unknown: int) -> dict[str, Any]:
    numbers = {piece: token for token, piece in enumerate(pieces)}
    merges = []
    for token in sorted(range(len(pieces)), key=lambda token: -scores[token]):
        piece = pieces[token]
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        known = [cut for cut in cuts if cut[0] in numbers and cut[1] in numbers]
        merges += sorted(known, key=lambda cut: (numbers[cut[0]], numbers[cut[1]]))
    return {
        "type": "BPE",
        "unk_token": pieces[unknown],
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": numbers,
        "merges": [list(merge) for merge in merges],
    }


def _added(token: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": content, "special": True, **flags}


def _template(content: str, token: int) -> dict[str, Any]:
    """`bos` before a text, as in training."""
    start, text = {"SpecialToken": {"id": content, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {content: {"id": content, "ids": [token], "tokens": [content]}},
    }
