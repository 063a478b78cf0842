"""What must not be shown is not, and what only looks like it is."""

from __future__ import annotations

import pytest
from monitoring import CASCADE, FULL, OOM

from so8t_fsm.tokens import conceal


@pytest.mark.parametrize(("text", "hidden"), [
    ("token hf_AbCdEfGhIjKlMnOpQrStUvWxYz012345 is wrong", "token hf_*** is wrong"),
    ("Authorization: Bearer abc.DEF-123456", "Authorization: Bearer ***"),
    ("https://me:geheim99@example.org/x", "https://***@example.org/x"),
    ("HF_TOKEN=abcdef123456 python x", "HF_TOKEN=*** python x"), ("api_key: 'sesame123', n=3", "api_key: '***', n=3"),
    ('{"password": "correct horse"}', '{"password": "*** horse"}'),
    ("GET https://s3/x?X-Amz-Signature=0123456789abcdef&b=1", "GET https://s3/x?X-Amz-Signature=***&b=1"),
    ("ghp_0123456789abcdef0123 and sk-proj-0123456789abcdef", "ghp_*** and sk-proj-***"),
    ("https://discord.com/api/webhooks/123/abcDEF-ghi", "https://discord.com/api/webhooks/***"),
])
def test_secrets_are_hidden(text: str, hidden: str) -> None:
    assert conceal(text) == hidden


@pytest.mark.parametrize("text", [
    OOM, CASCADE, FULL, "Invalid user token.", "token: missing", "eos_token = None", "tokens/s 4321", "hf_transfer",
    "the tokenizer has 32064 tokens: fine", "http://127.0.0.1:8080/a@b",
])
def test_what_is_no_secret_stays(text: str) -> None:
    assert conceal(text) == text
