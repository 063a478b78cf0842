"""The vocabulary of a GGUF file: SentencePiece's pieces, then the tokens that were added on top."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from so8t_fsm.step import StepFailure

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's token types (``llama_token_type`` in llama.h)."""

ADDED_SCORE, PADDING_SCORE = -1000.0, -10000.0


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, with the score that ranks merges and llama.cpp's type; all three have the same length."""

    tokens: tuple[bytes, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """Read ``tokenizer.model`` and the added tokens of ``tokenizer.json``, filled up to ``size`` rows of embedding.

    Raises:
        StepFailure: a file is missing, the two disagree, or there are more tokens than rows (``data_invalid``).
    """
    from sentencepiece import SentencePieceProcessor

    model, description = folder / "tokenizer.model", folder / "tokenizer.json"
    for path in (model, description):
        if not path.is_file():
            raise StepFailure(f"{path.name} is missing in {folder}", state="data_invalid",
                              hint="A GGUF vocabulary needs both tokenizer.model and tokenizer.json of the base.")
    pieces = SentencePieceProcessor()
    pieces.LoadFromSerializedProto(model.read_bytes())
    tokens: list[bytes] = []
    scores: list[float] = []
    types: list[int] = []
    for i in range(pieces.GetPieceSize()):
        tokens.append(pieces.IdToPiece(i).encode())
        scores.append(pieces.GetScore(i))
        types.append(
            UNKNOWN if pieces.IsUnknown(i) else CONTROL if pieces.IsControl(i) else UNUSED if pieces.IsUnused(i)
            else BYTE if pieces.IsByte(i) else NORMAL)
    described = json.loads(description.read_text(encoding="utf-8"))
    added = described.get("added_tokens", [])
    _same_pieces(described["model"]["vocab"], tokens, {entry["id"] for entry in added}, folder)
    highest = max([size, len(tokens), *(entry["id"] + 1 for entry in added)])
    if highest > size:
        raise StepFailure(f"{folder}: {highest} tokens but {size} rows of embedding", state="data_invalid",
                          hint="The tokenizer does not belong to this model.")
    for i in range(len(tokens), size):
        tokens.append(f"[PAD{i}]".encode())
        scores.append(PADDING_SCORE)
        types.append(UNUSED)
    for entry in added:
        i = entry["id"]
        tokens[i], scores[i] = entry["content"].encode(), ADDED_SCORE
        types[i] = CONTROL if entry.get("special") else USER_DEFINED
    return Vocabulary(tuple(tokens), tuple(scores), tuple(types))


def _same_pieces(vocab: dict[str, int], tokens: list[bytes], added: set[int], folder: Path) -> None:
    """Whoever extends a tokenizer may change ``tokenizer.json`` alone; llama.cpp would then read other ids."""
    for piece, i in vocab.items():
        if i not in added and (i >= len(tokens) or tokens[i] != piece.encode()):
            there = tokens[i].decode() if i < len(tokens) else None
            raise StepFailure(
                f"{folder}: token {i} is {piece!r} in tokenizer.json and {there!r} in tokenizer.model",
                state="data_invalid", hint="Take both files from the same base model.")
