"""How long to wait before the next attempt: tenacity's exponential backoff with jitter."""

from __future__ import annotations

from tenacity import RetryCallState, Retrying, wait_exponential_jitter


def delay(failures: int, initial: float, longest: float) -> float:
    """Seconds to wait after so many failures in a row (1 is the first): ``initial``·2^(failures−1) plus up to
    ``initial`` of jitter, at most ``longest``."""
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = failures
    return wait_exponential_jitter(multiplier=initial, max=longest, jitter=initial)(state)
