"""What the Hub's answers mean for the machine, read from types and status codes, never from texts alone.

The client hides causes: a refused connection, a plain 403 and an exhausted 503 can all arrive as "cannot find the
requested files".  So the whole chain of causes is read, innermost first.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from so8t_fsm.step import StepFailure

REFUSED = frozenset({400, 401, 402, 403, 404, 410, 413, 422})
PASSING = frozenset({408, 409, 412, 425, 429, 500, 502, 503, 504})  # 409, 412: somebody else committed just now
HINTS = {
    401: "make a token with write access at https://huggingface.co/settings/tokens and set it in the environment",
    402: "the account's storage or plan does not allow it",
    403: "the token lacks write access to upload.repo_id",
    404: "check upload.repo_id and upload.endpoint; a private repository looks like this to a token without rights",
}
_REFUSED_NAMES = frozenset({"LocalTokenNotFoundError", "HFValidationError", "RepositoryNotFoundError",
                            "GatedRepoError", "DisabledRepoError", "RevisionNotFoundError", "BadRequestError"})
_NETWORK_NAMES = frozenset({"TransportError", "XetDownloadError", "OfflineModeIsEnabled"})


def redact(text: str) -> str:
    """The text without anything that looks like a token."""
    return re.sub(r"(hf_|api_org_|Bearer\s+)[A-Za-z0-9._-]+", r"\1***", text)


def as_step_failure(error: BaseException) -> StepFailure | None:
    """The failure that an exception of the Hub client stands for, or None where it is about something else.

    ``hub_refused`` needs a person or another token; ``network_failed`` may pass by itself.
    """
    links = list(_chain(error))
    if any(isinstance(link, OSError) and link.errno == errno.ENOSPC for link in links):
        return None
    for link in reversed(links):
        names = {kind.__name__ for kind in type(link).__mro__}
        response = getattr(link, "response", None)
        status = getattr(response, "status_code", None)
        text = redact(" ".join(str(link).split())) or type(link).__name__
        if status in REFUSED or (status is None and names & _REFUSED_NAMES):
            code = f" ({status})" if status else ""
            return StepFailure(f"the Hub refused{code}: {text}", state="hub_refused", hint=HINTS.get(status or 0, ""))
        if status in PASSING:
            wait = response.headers.get("Retry-After") if response is not None else None
            after = f"; Retry-After: {wait}" if wait else ""
            return StepFailure(f"the Hub answered {status}: {text}{after}", state="network_failed")
        if names & _NETWORK_NAMES or isinstance(link, ConnectionError | TimeoutError):
            return StepFailure(f"the Hub could not be reached: {text}", state="network_failed",
                               hint="check the network; so8t resume goes on with the files that are missing")
    return None


@contextmanager
def translated() -> Iterator[None]:
    """Turn what the Hub client raises into the failure it stands for; let everything else through.

    Raises:
        StepFailure: (hub_refused | network_failed).
    """
    try:
        yield
    except StepFailure:
        raise
    except Exception as error:
        failure = as_step_failure(error)
        if failure is None:
            raise
        raise failure from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
