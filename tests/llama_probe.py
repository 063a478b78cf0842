"""Run by the tests in a process of its own, because llama.cpp answers a bad file by ending the process.

usage: llama_probe.py MODEL REQUEST ANSWER.  REQUEST is JSON: ``{"ids": [...], "texts": [...]}``; ANSWER becomes
``{"logits": [[...] for each id], "tokens": [[ids] for each text]}``.  The context is 256 tokens.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CONTEXT = 256


def by_llama_cpp_python(model: str, asked: dict[str, Any]) -> dict[str, Any]:
    from llama_cpp import Llama

    llama = Llama(model_path=model, n_ctx=CONTEXT, n_threads=1, logits_all=True, verbose=False)
    tokens = [llama.tokenize(text.encode(), add_bos=False, special=True) for text in asked["texts"]]
    llama.eval(asked["ids"])
    return {"logits": llama.scores[: len(asked["ids"])].tolist(), "tokens": tokens}


def by_cyllama(model: str, asked: dict[str, Any]) -> dict[str, Any]:
    from cyllama.llama import llama_cpp as native

    class Model(native.LlamaModel):
        @property
        def n_vocab(self) -> int:  # get_logits_ith of 0.2.18 asks for it, and nobody has it
            return int(self.get_vocab().n_vocab)

    native.ggml_backend_load_all()
    loaded = Model(model, native.LlamaModelParams(), False)
    params = native.LlamaContextParams()
    params.n_ctx, params.n_threads, params.n_threads_batch = CONTEXT, 1, 1
    context = native.LlamaContext(loaded, params, False)
    batch = native.LlamaBatch(n_tokens=len(asked["ids"]), embd=0, n_seq_max=1)
    for position, token in enumerate(asked["ids"]):
        batch.add(token, position, [0], True)
    context.decode(batch)
    return {"logits": [list(context.get_logits_ith(k)) for k in range(len(asked["ids"]))],
            "tokens": [loaded.get_vocab().tokenize(text, False, True) for text in asked["texts"]]}


if __name__ == "__main__":
    model, request, answer = sys.argv[1:]
    ask = by_llama_cpp_python if find_spec("llama_cpp") else by_cyllama
    found = ask(model, json.loads(Path(request).read_text(encoding="utf-8")))
    Path(answer).write_text(json.dumps(found), encoding="utf-8")
