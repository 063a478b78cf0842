"""The Hugging Face Hub: token and rights first, then the files, then every remote sha256 against ours."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from so8t_fsm.step import StepFailure, artifacts
from so8t_ops.hub.errors import translated
from so8t_ops.hub.payload import Entry
from so8t_ops.hub.settings import UploadSettings

DEFAULT_ENDPOINT = "https://huggingface.co"


def endpoint(settings: UploadSettings) -> str:
    """The address in force, without a slash at the end."""
    return (settings.endpoint or os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def prepare(settings: UploadSettings) -> None:
    """Set what the client reads when it is first imported: call before anything imports ``huggingface_hub``."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if endpoint(settings) != DEFAULT_ENDPOINT:
        os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # other servers speak plain LFS


def open_api(settings: UploadSettings) -> Any:
    """An ``HfApi`` with the token of the environment.

    Raises:
        StepFailure: (hub_refused) the environment variable named by ``upload.token_env`` is not set.
    """
    token = os.environ.get(settings.token_env, "").strip()
    if not token:
        raise StepFailure(f"the environment variable {settings.token_env} holds no token", state="hub_refused",
                          hint=f"set {settings.token_env} to a token with write access, then so8t resume")
    prepare(settings)
    from huggingface_hub import HfApi

    return HfApi(endpoint=endpoint(settings), token=token, library_name="so8t")


def check_token(api: Any, repo_id: str) -> str:
    """Whose token it is, after checking that it may write to the owner of ``repo_id``.

    Raises:
        StepFailure: (hub_refused) the token is not valid, reads only, or is for somebody else;
            (network_failed) the Hub cannot be reached.
    """
    with translated():
        me = api.whoami()
    user, owner = str(me.get("name", "")), repo_id.split("/")[0]
    hint = "make a token with write access at https://huggingface.co/settings/tokens"
    token = (me.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        raise StepFailure(f"the token of {user} reads only", state="hub_refused", hint=hint)
    owners = {user.casefold(), *(str(org.get("name", "")).casefold() for org in me.get("orgs") or [])}
    if owner.casefold() not in owners:
        raise StepFailure(f"upload.repo_id: {user} is not {owner} and not a member of it", state="hub_refused",
                          hint=f"name a repository of {', '.join(sorted(owners - {''}))}")
    if token.get("role") == "fineGrained" and not _may_write(token.get("fineGrained") or {}, owner):
        raise StepFailure(f"the fine-grained token of {user} has no repo.write for {owner}", state="hub_refused",
                          hint=hint)
    return user


def _may_write(grant: dict[str, Any], owner: str) -> bool:
    """Does a fine-grained token hold ``repo.write`` for the owner, or for one repository of the owner's?"""
    for scope in grant.get("scoped") or []:
        name = str((scope.get("entity") or {}).get("name", "")).split("/")[0]
        if name.casefold() == owner.casefold() and "repo.write" in (scope.get("permissions") or []):
            return True
    return False


def deliver(payload: Sequence[Entry], settings: UploadSettings, scratch: Path) -> dict[str, Any]:
    """Publish the payload and check it.  What the repository holds already is not sent again.

    Returns:
        ``commit`` (the repository's commit id), ``sent`` (names of the files that had to be sent), ``extra`` (names of
        remote files that are not ours and were left alone) and ``url``.

    Raises:
        StepFailure: (hub_refused | network_failed) with what the Hub said.
    """
    api = open_api(settings)
    check_token(api, settings.repo_id)
    staging = scratch / "payload"
    with translated():
        api.create_repo(settings.repo_id, private=settings.private, exist_ok=True)
        info = api.model_info(settings.repo_id)
        if settings.private and info.private is False:
            raise StepFailure(
                f"{settings.repo_id} is public on the Hub and upload.private is true", state="hub_refused",
                hint="make the repository private, choose another upload.repo_id, or set upload.private: false")
        _gather(payload, staging)
        before = api.verify_repo_checksums(settings.repo_id, local_dir=staging)
        # The client calls "extra" what lies here and not there, "missing" what lies there and not here.
        send = sorted({m["path"] for m in before.mismatches} | set(before.extra_paths))
        if send:
            api.upload_folder(repo_id=settings.repo_id, folder_path=staging, allow_patterns=send,
                              commit_message="Publish the SO8T model")
        # A lost answer to a commit is not repeated by the client, so only what the Hub holds afterwards counts.
        after = api.verify_repo_checksums(settings.repo_id, local_dir=staging)
        if after.mismatches or after.extra_paths:
            raise StepFailure(f"{settings.repo_id}: the Hub's sha256 of a file is not ours after the upload",
                              state="network_failed", hint="so8t resume sends those files again")
        commit = api.model_info(settings.repo_id).sha
    return {"commit": commit, "sent": send, "extra": sorted(after.missing_paths),
            "url": f"{endpoint(settings)}/{settings.repo_id}"}


def _gather(payload: Sequence[Entry], staging: Path) -> None:
    """The payload in one directory, as the client wants it: by hard links where the file system has them."""
    artifacts.remove_tree(staging)
    for entry in payload:
        place = staging / entry.name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(entry.source, place)
        except OSError:
            shutil.copyfile(entry.source, place)
