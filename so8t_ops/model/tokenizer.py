"""A Phi-3 style tokenizer made from text: SentencePiece BPE with byte fallback, the same pieces for every reader.

Two files describe it: ``tokenizer.model`` (SentencePiece, what GGUF's vocabulary is read from) and ``tokenizer.json``
(what transformers runs).  Both give the same ids, as they do in the published Phi-3 models.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from so8t_ops.model.prompt import INSTRUCTION, LABELS, REASONS

END_OF_TEXT = "<|endoftext|>"
SPECIALS = (
    END_OF_TEXT, "<|assistant|>", "<|placeholder1|>", "<|placeholder2|>", "<|placeholder3|>", "<|placeholder4|>",
    "<|system|>", "<|end|>", "<|placeholder5|>", "<|placeholder6|>", "<|user|>",
)
"""Phi-3's added tokens in the order of their ids, which follow the last SentencePiece piece."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> bytes:
    """Learn the pieces.  One thread and no shuffling: the same text gives the same bytes.

    Raises:
        ValueError: the text is too small for the 256 byte pieces and one more.
    """
    import sentencepiece

    # The words the model must be able to say; often enough that each becomes one piece.
    own = [INSTRUCTION, *(f"{label} {reasons[label]}" for reasons in REASONS.values() for label in LABELS)] * 50
    corpus = [line for text in texts for line in text.splitlines() if line.strip()] + own
    size, coverage = vocab_size, 0.9995
    while True:
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(corpus), model_writer=model, vocab_size=size, model_type="bpe",
                byte_fallback=True, character_coverage=coverage, normalization_rule_name="identity",
                remove_extra_whitespaces=False, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, num_threads=1,
                max_sentence_length=65536, shuffle_input_sentence=False, minloglevel=2,
            )
        except RuntimeError as error:
            # The trainer takes neither what there is nor what fits.  Text with more characters than the vocabulary
            # has room for: leave the rare ones to the bytes.  Text with fewer pieces than asked for: ask for fewer.
            if "required_chars" in str(error) and coverage > 0.5:
                coverage -= 0.02
            elif "required_chars" not in str(error) and size > 300:
                size = max(300, int(size * 0.9))
            else:
                raise ValueError(f"no tokenizer can be learnt from {len(corpus)} lines of text: {error}") from error
            continue
        return model.getvalue()


def _backend(model: bytes) -> dict[str, Any]:
    """The ``tokenizer.json`` of a SentencePiece BPE model, laid out as in Phi-3's own."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    # SentencePiece merges the pair whose union scores best; pairs listed in the order of their unions do the same.
    merges = []
    for piece, rank in vocab.items():
        if pieces.is_byte(rank) or pieces.is_control(rank) or pieces.is_unknown(rank):
            continue
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(vocab[a], vocab[b], a, b) for a, b in splits if a in vocab and b in vocab]
        merges += [(-pieces.get_score(rank), rank, *pair) for pair in known]
    merges.sort()
    added = [("<unk>", 0), ("<s>", 1), ("</s>", 2), *((token, len(vocab) + i) for i, token in enumerate(SPECIALS))]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {
                "id": number, "content": token, "single_word": False, "lstrip": False,
                # Phi-3: the line break after a role or an end marker belongs to the marker.
                "rstrip": token not in ("<unk>", "<s>", END_OF_TEXT),
                "normalized": False, "special": token != "</s>",
            }
            for token, number in added
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocab, "merges": [[left, right] for *_, left, right in merges],
        },
    }


def write_tokenizer(texts: Iterable[str], vocab_size: int, directory: Path, max_length: int) -> int:
    """Learn a tokenizer and write its files into ``directory``.  Returns the number of tokens, added ones included."""
    model = train_sentencepiece(texts, vocab_size)
    backend = _backend(model)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model)
    _write_json(directory / "tokenizer.json", backend)
    _write_json(
        directory / "tokenizer_config.json",
        {
            # The generic class runs tokenizer.json as it is; LlamaTokenizer would rebuild the normaliser from guesses.
            "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "add_eos_token": False,
            "bos_token": "<s>", "eos_token": END_OF_TEXT, "unk_token": "<unk>", "pad_token": END_OF_TEXT,
            "clean_up_tokenization_spaces": False, "model_max_length": max_length, "padding_side": "left",
            "chat_template": CHAT_TEMPLATE, "model_input_names": ["input_ids", "attention_mask"],
        },
    )
    return len(backend["model"]["vocab"]) + len(SPECIALS)


def copy_tokenizer(source: Path, target: Path) -> Sequence[str]:
    """Copy a model folder's tokenizer files as they are, with the ``tokenizer.model`` that ``save_pretrained`` forgets.

    Returns the names copied.
    """
    import shutil

    names = (
        "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "chat_template.jinja",
    )
    found = [name for name in names if (source / name).is_file()]
    for name in found:
        shutil.copyfile(source / name, target / name)
    return found


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n")
