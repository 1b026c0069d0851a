"""Tokenizers of Hugging Face: a `tokenizer.json`, run by the `tokenizers` library."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from research.data.tokenizer import CONFIG, JSON, Tokenizer, first_role, sentinels_of
from research.errors import UserError
from research.vocabulary import Vocabulary

# Keys of `tokenizer_config.json` for each role, the key of its id in `config.json`, and what the token is called where
# no file says it, as in old repositories.
_ROLES = {
    "pad": (("pad_token",), "pad_token_id", ("<pad>", "[PAD]")),
    "unknown": (("unk_token",), "", ("<unk>", "[UNK]")),
    "bos": (("bos_token", "cls_token"), "bos_token_id", ("<s>", "<bos>", "[CLS]", "<|begin_of_text|>")),
    "eos": (("eos_token", "sep_token"), "eos_token_id", ("</s>", "<eos>", "[SEP]", "<|end_of_text|>", "<|endoftext|>")),
    "mask": (("mask_token",), "mask_token_id", ("<mask>", "[MASK]")),
}
_TOKEN_KEYS = tuple(key for keys, _, _ in _ROLES.values() for key in keys)
_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class JsonTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library: byte-level BPE (GPT-2, Llama 3, Qwen), WordPiece (BERT), Unigram (T5).

    What the library matches has no special tokens, so that no text can be encoded as one.

    Attributes:
      definition: the contents of its `tokenizer.json`.
      roles: the contents of its `tokenizer_config.json`: names of special tokens, and `add_bos_token`.
    """

    def __init__(self, definition: Mapping[str, Any], roles: Mapping[str, Any]):
        """Builds the tokenizer.

        Args:
          definition: as in a `tokenizer.json`.
          roles: as in a `tokenizer_config.json`; other keys than those of special tokens and `add_bos_token` are left.

        Raises:
          UserError: no `tokenizers` library, a definition that it does not read, a special token that is no id, or no
            token that ends a text.
        """
        self.definition = {**definition, "truncation": None, "padding": None}
        self.roles: dict[str, Any] = {key: _content(roles.get(key)) for key in _TOKEN_KEYS}
        ids = _ids(self.definition)
        vocabulary = _vocabulary(ids, self.roles, roles.get("add_bos_token"), self.definition)
        self.roles |= {"add_bos_token": vocabulary.begins}
        added = self.definition["added_tokens"]
        self._special = {token["id"] for token in added if token["special"]} | set(vocabulary.special)
        self._special |= set(range(vocabulary.size)) - set(ids.values())  # Ids that no piece has stand for nothing.
        self._byte_level = "ByteLevel" in dict(_decoders(self.definition["decoder"]))

        pieces = [f"<{i}>" for i in range(vocabulary.size)]
        for content, token in ids.items():
            pieces[token] = content
        text_of, whole = _text_of(self.definition["decoder"]), {token["id"] for token in added}
        texts = [
            b"" if i in self._special else piece.encode() if i in whole else text_of(piece)
            for i, piece in enumerate(pieces)
        ]
        files = {JSON: _to_json(self.definition), CONFIG: _to_json(self.roles)}
        super().__init__(files, vocabulary, pieces, texts)
        self._engine = _engine(_plain(self.definition, pieces, self._special))

    def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, int32, with all cores."""
        encoded = self._engine.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int32) for one in encoded]

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """The text of ids without the special ones; where bytes are no units, spaces are the library's best guess."""
        if self._byte_level:
            return super().decode(ids)
        return self._engine.decode([int(i) for i in ids if i not in self._special])


def open_json(path: Path) -> JsonTokenizer:
    """The tokenizer of a `tokenizer.json` and of what stands beside it about its special tokens.

    Raises:
      UserError: not a tokenizer.
      OSError: it cannot be read.
    """
    definition = _read(path)
    if not {"model", "added_tokens", "decoder"} <= definition.keys():
        raise UserError(
            "it is not a tokenizer of Hugging Face, which has a model, added_tokens and a decoder: give one"
        )
    beside = {name: _read(path.parent / name) for name in ("config.json", "special_tokens_map.json", CONFIG)}
    ids = _ids(definition)
    names = {token: content for content, token in ids.items()}
    special = {token["content"] for token in definition["added_tokens"] if token["special"]}
    roles: dict[str, Any] = {}
    for keys, id_key, usual in _ROLES.values():
        stated = {k: v for name in ("special_tokens_map.json", CONFIG) for k, v in beside[name].items() if k in keys}
        found = beside["config.json"].get(id_key)
        found = found[0] if isinstance(found, list) and found else found
        if not stated and isinstance(found, int) and found in names:
            stated = {keys[0]: names[found]}
        roles |= stated or dict.fromkeys(keys[:1], next((name for name in usual if name in special), None))
    return JsonTokenizer(definition, roles | {"add_bos_token": beside[CONFIG].get("add_bos_token")})


def _read(path: Path) -> dict[str, Any]:
    if path.name != JSON and not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path.name} is damaged, it is not JSON: restore it") from error
    if not isinstance(found, dict):
        raise UserError(f"{path.name} is damaged, it is not a JSON object: restore it")
    return found


def _to_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()


# --- special tokens ---------------------------------------------------------------------------------------------------


def _content(token: Any) -> str | None:
    """The name of a token, which files write as a string or as an object with flags."""
    return token.get("content") if isinstance(token, dict) else token


def _ids(definition: Mapping[str, Any]) -> dict[str, int]:
    """The id of every piece and added token, by its name."""
    try:
        vocabulary = definition["model"]["vocab"]
        pieces = vocabulary if isinstance(vocabulary, dict) else {piece: i for i, (piece, _) in enumerate(vocabulary)}
        return pieces | {token["content"]: token["id"] for token in definition["added_tokens"]}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{JSON} is damaged, its model has no vocabulary: restore it") from error


def _vocabulary(
    ids: Mapping[str, int], roles: Mapping[str, str | None], add_bos: bool | None, definition: Mapping[str, Any]
) -> Vocabulary:
    for key, content in roles.items():
        if content is not None and content not in ids:
            raise UserError(f"{key}={content!r} is no token of {JSON}: correct it in {CONFIG}")
    own = {role: first_role(*(ids.get(roles[key] or "") for key in keys)) for role, (keys, _, _) in _ROLES.items()}
    if own["eos"] < 0:
        raise UserError(f"the tokenizer has no token that ends a text: name an eos_token in {CONFIG} beside it")
    bos = first_role(own["bos"], own["pad"], own["eos"])
    if add_bos is None:
        add_bos = bos in {ids.get(content) for content in _put_first(definition.get("post_processor"))}
    return Vocabulary(
        max(ids.values()) + 1,
        pad=first_role(own["pad"], own["eos"]),
        unknown=own["unknown"],
        bos=bos,
        eos=own["eos"],
        mask=own["mask"],
        begins=add_bos,
        sentinels=sentinels_of(ids),
    )


def _put_first(processor: Mapping[str, Any] | None) -> Iterator[str]:
    """The special token that a post-processor puts before a text."""
    match processor:
        case {"type": "Sequence", "processors": processors}:
            for one in processors:
                yield from _put_first(one)
        case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": str(content)}}, *_]}:
            yield content
        case {"type": "BertProcessing" | "RobertaProcessing", "cls": [str(content), _]}:
            yield content


# --- the engine -------------------------------------------------------------------------------------------------------


def _plain(definition: Mapping[str, Any], pieces: Sequence[str], special: set[int]) -> dict[str, Any]:
    """The definition with the same ids, in which no text matches a special token.

    Special tokens get names that hold a space, which no engine's pieces do, and are not looked for in the text. Every
    id is one of the model, since added tokens are otherwise numbered anew.
    """
    names = [f" special {i}" if i in special else piece for i, piece in enumerate(pieces)]
    model = dict(definition["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {name: i for i, name in enumerate(names)}
    else:
        scores = [score for _, score in model["vocab"]]
        scores += [min(scores)] * (len(names) - len(scores))
        model["vocab"] = [[name, score] for name, score in zip(names, scores, strict=True)]
    hidden = {pieces[i]: names[i] for i in special}
    if model.get("unk_token") is not None:
        model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if hidden.keys().isdisjoint((*pair, "".join(pair)))]
    added = [token for token in definition["added_tokens"] if token["id"] not in special]
    return {**definition, "model": model, "added_tokens": added, "post_processor": None}


def _engine(definition: Mapping[str, Any]) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            f"{JSON} is read with the tokenizers library, which is not installed: pip install 'isoflop[interop]'"
        ) from error
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(definition))
    except Exception as error:  # The library raises nothing more specific.
        raise UserError(f"{JSON} is damaged or of another version of the tokenizers library: {error}") from error


# --- the bytes of a piece ---------------------------------------------------------------------------------------------


def _decoders(decoder: Mapping[str, Any] | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if decoder and decoder["type"] == "Sequence":
        for one in decoder["decoders"]:
            yield from _decoders(one)
    elif decoder:
        yield decoder["type"], decoder


def _text_of(decoder: Mapping[str, Any] | None) -> Callable[[str], bytes]:
    """How a piece is read as bytes of text, where a piece that begins a word begins with its space."""
    kinds = dict(_decoders(decoder))
    if unknown := kinds.keys() - {"ByteLevel", "WordPiece", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}:
        raise UserError(
            f"{JSON} has a decoder of the kind {', '.join(sorted(unknown))}, which Isoflop does not read: give a "
            "tokenizer with a byte-level, WordPiece or sentencepiece decoder"
        )
    if "ByteLevel" in kinds:
        return partial(_byte_level, {letter: byte for byte, letter in enumerate(byte_letters())})
    if "WordPiece" in kinds:
        return partial(_word_piece, kinds["WordPiece"]["prefix"])
    return _sentencepiece if kinds else partial(_word_piece, "")


def byte_letters() -> list[str]:
    """The letter that byte-level BPE writes for each byte (Radford et al. 2019).

    Visible Latin-1 letters stand for themselves; the others are numbered from U+0100 on.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in visible else chr(next(others)) for byte in range(0x100)]


def _byte_level(bytes_of: Mapping[str, int], piece: str) -> bytes:
    return bytes(bytes_of[letter] for letter in piece) if all(c in bytes_of for c in piece) else piece.encode()


def _word_piece(prefix: str, piece: str) -> bytes:
    return (piece.removeprefix(prefix) if prefix and piece.startswith(prefix) else f" {piece}").encode()


def _sentencepiece(piece: str) -> bytes:
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode()
