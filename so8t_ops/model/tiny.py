"""A small Phi-3 of the native class with fresh weights: the base for whoever has no base to download."""

from __future__ import annotations

from typing import Any

from so8t_ops.model.settings import TinySettings


def fresh_phi3(sizes: TinySettings, tokenizer: Any) -> Any:
    """A ``Phi3ForCausalLM`` with random fp32 weights; seed torch first.

    The vocabulary is rounded up to a multiple of 32, as Phi-3 pads its own, so that every row length stays aligned.
    """
    import torch
    from transformers import GenerationConfig, Phi3Config, Phi3ForCausalLM

    end = tokenizer.convert_tokens_to_ids("<|end|>")
    config = Phi3Config(
        vocab_size=-(-len(tokenizer) // 32) * 32, hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads, max_position_embeddings=sizes.context_length,
        original_max_position_embeddings=sizes.context_length, sliding_window=None, tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )
    model = Phi3ForCausalLM(config)
    # The final norm fixes the length of what the head sees: at the usual 0.02 a narrow model could never be sure of a
    # token, however long it trained, and would sample noise.
    torch.nn.init.normal_(model.lm_head.weight, std=sizes.hidden_size**-0.5)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=[tokenizer.eos_token_id, end],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model
