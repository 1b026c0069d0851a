"""Tokenizers in the metadata of GGUF files: byte-level BPE (`gpt2`), sentencepiece BPE (`llama`) and unigram (`t5`)."""

from collections.abc import Mapping
from typing import Any

from research.data.sentencepieces import SentencepieceTokenizer
from research.data.tokenizer import Tokenizer
from research.data.tokenizer_json import JsonTokenizer
from research.errors import UserError

_KEY = "tokenizer.ggml."
# Kinds of tokens; sentencepiece's own file format has the same numbers.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
    "mask_token": "mask_token_id",
}
_SPACE = "\u2581"

# --- how byte-level BPE cuts a text into words ------------------------------------------------------------------------

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PUNCTUATION_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _after(first: dict[str, Any], use_regex: bool) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [first, _byte_level(use_regex)]}


def _split(digits: str) -> dict[str, Any]:
    """Words with a letter before them, `digits`, punctuation, line ends: as of OpenAI's cl100k."""
    regex = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|{_PUNCTUATION_AND_SPACE}"
    return _after({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}, False)


_GPT2 = _byte_level(True)
_SINGLE_DIGITS = _after({"type": "Digits", "individual_digits": True}, True)
_LLAMA3, _QWEN2 = _split(r"\p{N}{1,3}"), _split(r"\p{N}")
# By `tokenizer.ggml.pre`; of several names the first is written.
_WORDS = {
    "gpt-2": _GPT2,
    "default": _GPT2,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "command-r": _SINGLE_DIGITS,
    "codeshell": _SINGLE_DIGITS,
    "exaone": _SINGLE_DIGITS,
    "minerva-7b": _SINGLE_DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}
_WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3"}  # A word that is a token is not put together of merges.
_COMPOSED = {"qwen2", "deepseek-r1-qwen"}  # Texts are normalised to composed characters.


# --- reading ----------------------------------------------------------------------------------------------------------


def read_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer | None:
    """The tokenizer that the metadata describe, or none where there is none.

    Raises:
      UserError: a kind of tokenizer, or of cutting text into words, that Isoflop does not know.
    """
    kind = metadata.get(f"{_KEY}model", "none")
    if kind in {"none", "no_vocab"}:
        return None
    if kind not in {"gpt2", "llama", "t5"}:
        raise UserError(f"{_KEY}model={kind}: Isoflop knows gpt2, llama and t5")
    found = {key.removeprefix(_KEY): value for key, value in metadata.items() if key.startswith(_KEY)}
    tokens = found.get("tokens", [])
    found.setdefault("token_type", [NORMAL] * len(tokens))
    if kind == "gpt2" and len(set(tokens)) != len(tokens):
        raise UserError(f"{_KEY}tokens names a token twice: convert the model again")
    for name in ("scores",) if kind != "gpt2" else ("merges",):
        if name not in found:
            raise UserError(f"{_KEY}{name} is missing: convert the model again")
    return _byte_level_bpe(found) if kind == "gpt2" else _sentencepiece(found, kind)


def _byte_level_bpe(found: Mapping[str, Any]) -> JsonTokenizer:
    words, tokens = found.get("pre", "default"), found["tokens"]
    if words not in _WORDS:
        raise UserError(f"{_KEY}pre={words}: Isoflop knows {', '.join(_WORDS)}")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": i, "content": token, **flags, "special": kind == CONTROL}
        for i, (token, kind) in enumerate(zip(tokens, found["token_type"], strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": words in _WHOLE_WORDS,
        "vocab": {token: i for i, token in enumerate(tokens)},
        "merges": [merge.split(" ") for merge in found["merges"]],
    }
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if words in _COMPOSED else None,
        "pre_tokenizer": _WORDS[words],
        "post_processor": None,
        "decoder": _byte_level(True),
        "model": model,
    }
    roles = {key: tokens[found[id_key]] for key, id_key in _ROLES.items() if id_key in found}
    return JsonTokenizer(definition, roles | {"add_bos_token": found.get("add_bos_token", words in _WHOLE_WORDS)})


def _sentencepiece(found: Mapping[str, Any], kind: str) -> SentencepieceTokenizer:
    model = _empty_model()
    roles = {key: found[id_key] for key, id_key in _ROLES.items() if id_key in found}
    kinds, tokens = list(found["token_type"]), found["tokens"]
    if UNKNOWN not in kinds:
        kinds[roles.get("unk_token", 0)] = UNKNOWN
    for i, (token, score) in enumerate(zip(tokens, found["scores"], strict=True)):
        own = CONTROL if i in roles.values() and kinds[i] != UNKNOWN else kinds[i]
        piece = token if own in (CONTROL, UNKNOWN) else token.replace(" ", _SPACE)
        model.pieces.add(piece=piece, score=score, type=own)
    spec = model.trainer_spec
    spec.model_type = spec.UNIGRAM if kind == "t5" else spec.BPE
    spec.vocab_size, spec.byte_fallback = len(tokens), BYTE in kinds
    spec.unk_id, spec.unk_piece = kinds.index(UNKNOWN), tokens[kinds.index(UNKNOWN)]
    for key, id_key in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "pad")):
        setattr(spec, f"{id_key}_id", roles.get(key, -1))
        if key in roles:
            setattr(spec, f"{id_key}_piece", tokens[roles[key]])
    normal = model.normalizer_spec
    normal.name, normal.precompiled_charsmap = "identity", bytes(found.get("precompiled_charsmap", []))
    normal.add_dummy_prefix = found.get("add_space_prefix", True)
    normal.remove_extra_whitespaces = found.get("remove_extra_whitespaces", False)
    return SentencepieceTokenizer(model.SerializeToString())


def _empty_model() -> Any:
    """A message of sentencepiece's file format."""
    from sentencepiece import sentencepiece_model_pb2

    return sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]


# --- writing ----------------------------------------------------------------------------------------------------------


def tokenizer_keys(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """The metadata that describe a tokenizer; ids up to `vocab_size` that it lacks are named as unused.

    Raises:
      UserError: a tokenizer that is larger than the model, or of a kind that GGUF has no words for.
    """
    vocabulary = tokenizer.vocabulary
    if vocabulary.size > vocab_size:
        raise UserError(
            f"the tokenizer has {vocabulary.size} ids, but the model {vocab_size} rows: give the model's own"
        )
    found = _json_keys(tokenizer) if isinstance(tokenizer, JsonTokenizer) else _model_keys(tokenizer)
    unused = range(vocabulary.size, vocab_size)
    found["tokens"] += [f"[PAD{i}]" for i in unused]
    found["token_type"] += [UNUSED for _ in unused]
    if "scores" in found:
        found["scores"] += [min(found["scores"]) for _ in unused]
    own_bos = vocabulary.begins or vocabulary.bos in (vocabulary.eos, vocabulary.unknown)
    ids = {
        "bos_token_id": vocabulary.bos if own_bos or vocabulary.bos != vocabulary.pad else -1,
        "eos_token_id": vocabulary.eos,
        "unknown_token_id": vocabulary.unknown,
        "padding_token_id": vocabulary.pad,
        "mask_token_id": vocabulary.mask,
    }
    found |= {key: token for key, token in ids.items() if token >= 0}
    return {_KEY + key: value for key, value in (found | {"add_bos_token": vocabulary.begins}).items()}


def _json_keys(tokenizer: JsonTokenizer) -> dict[str, Any]:
    definition = tokenizer.definition
    words = _words_of(definition["pre_tokenizer"])
    if definition["model"]["type"] != "BPE" or words is None:
        raise UserError(
            f"a GGUF cannot hold this tokenizer ({definition['model']['type']} in tokenizer.json): only byte-level BPE "
            "that cuts words like GPT-2, SmolLM, Llama 3 or Qwen2, and sentencepiece models, can be written"
        )
    added = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in definition["added_tokens"]}
    merges = definition["model"]["merges"]
    size = tokenizer.vocabulary.size
    return {
        "model": "gpt2",
        "pre": words,
        "tokens": [tokenizer.name_of(i) for i in range(size)],
        "token_type": [added.get(i, NORMAL) for i in range(size)],
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
    }


def _words_of(pre_tokenizer: Mapping[str, Any] | None) -> str | None:
    """The first name of a way to cut words, offsets apart, which do not matter."""

    def bare(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: bare(inner) for key, inner in value.items() if key != "trim_offsets"}
        return [bare(inner) for inner in value] if isinstance(value, list) else value

    return next((name for name, known in _WORDS.items() if bare(known) == bare(pre_tokenizer)), None)


def _model_keys(tokenizer: Tokenizer) -> dict[str, Any]:
    assert isinstance(tokenizer, SentencepieceTokenizer)
    model = _empty_model()
    model.ParseFromString(tokenizer.model)
    kinds = {model.trainer_spec.BPE: "llama", model.trainer_spec.UNIGRAM: "t5"}
    charsmap = model.normalizer_spec.precompiled_charsmap
    kind = kinds.get(model.trainer_spec.model_type)
    if kind is None or (charsmap and kind == "llama"):
        raise UserError(
            "a GGUF has no words for this tokenizer: of sentencepiece models only BPE without normalisation and "
            "unigram can be written"
        )
    found: dict[str, Any] = {
        "model": kind,
        "pre": "default",
        "tokens": [piece.piece for piece in model.pieces],
        "scores": [piece.score for piece in model.pieces],
        "token_type": [piece.type for piece in model.pieces],
        "add_space_prefix": model.normalizer_spec.add_dummy_prefix,
        "remove_extra_whitespaces": model.normalizer_spec.remove_extra_whitespaces,
    }
    return found | ({"precompiled_charsmap": list(charsmap)} if charsmap else {})
