"""Step 7: delete what nobody needs any more, and leave behind one page and one file that say how the run went."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from so8t_fsm.step import MiB, Needs, Step, StepContext, artifacts

log = logging.getLogger("so8t.cleanup")


class CleanUp(Step):
    """Commits ``cleanup.json`` and ``run_report.html`` (both volatile: they tell a history), and writes
    ``logs/pipeline_completion_<run>.json`` below the home."""

    name: ClassVar[str] = "cleaning_up"
    state: ClassVar[str] = "cleaning_up"
    uses: ClassVar[tuple[str, ...]] = (
        "collecting", "preprocessing", "training", "integrating", "evaluating", "uploading")

    def needs(self, config: Mapping[str, Mapping[str, Any]], home: Path, out: Path) -> Needs:
        return Needs(disk={out: 4 * MiB})

    def run(self, ctx: StepContext) -> None:
        from so8t_ops.evaluation import run_report, timeline

        cleaned = delete_disposable(ctx)
        now = datetime.now(UTC)
        found = timeline.segments(ctx.record, now)
        completion = completion_record(ctx, cleaned, now)
        logs = ctx.home / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        path = logs / f"pipeline_completion_{ctx.run}.json"
        artifacts.write_durable(path, _json(completion))
        (ctx.volatile(ctx.out / "cleanup.json")).write_bytes(_json(
            {**cleaned, "completion": path.relative_to(ctx.home).as_posix()}))
        page = run_report.run_report(completion, found, outputs(ctx, completion, path))
        ctx.volatile(ctx.out / "run_report.html").write_text(page, encoding="utf-8", newline="\n")


def delete_disposable(ctx: StepContext) -> dict[str, Any]:
    """Delete the directories that the machine says nobody needs, each after a check of our own.

    Returns:
        ``deleted`` (paths below the run's directory), ``kept`` (paths and why each was left alone), ``freed_bytes``.

    Raises:
        StopRequested: through the context, between two of them.
    """
    root = (ctx.home / "state" / "runs" / ctx.run).resolve()
    deleted: list[str] = []
    kept: list[dict[str, str]] = []
    freed = 0
    for done, path in enumerate(ctx.disposable):
        ctx.stop_if_asked()
        ctx.progress(done, len(ctx.disposable), unit="directories")
        if not path.exists() and not path.is_symlink():
            continue
        reason = why_not(path, root, ctx)
        if reason is None:
            try:
                name = path.resolve().relative_to(root).as_posix()
                freed += artifacts.remove_tree(path)
                deleted.append(name)
            except OSError as error:
                reason = error.strerror or str(error)
        if reason is not None:
            log.warning("%s is kept: %s", path, reason)
            kept.append({"path": str(path), "reason": reason})
    ctx.progress(len(ctx.disposable), len(ctx.disposable), unit="directories")
    return {"deleted": deleted, "kept": kept, "freed_bytes": freed}


def why_not(path: Path, root: Path, ctx: StepContext) -> str | None:
    """Why a path must not be deleted, or None when it may be.

    Args:
        root: the run's own directory, resolved; nothing outside it is ever touched.
    """
    if path.is_symlink():
        return "it is a link"
    real = path.resolve()
    if real == root or not real.is_relative_to(root):
        return "it is not inside the directory of this run"
    in_use = [ctx.out, ctx.scratch, *ctx.inputs.values(), *([ctx.checkpoints] if ctx.checkpoints else [])]
    for used in (p.resolve() for p in in_use):
        if used.is_relative_to(real) or real.is_relative_to(used):
            return "it is still in use"
    return None


def completion_record(ctx: StepContext, cleaned: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """The whole run as JSON values: steps, incidents, results, receipt, clean-up.  Unknown things are null."""
    from so8t_ops.evaluation import timeline

    run = ctx.record.get("run") or {}
    found = timeline.segments(ctx.record, now)
    begun = timeline.moment(run.get("created_at")) or min((s.start for s in found), default=None)
    told = {str(s.get("name")): s for s in ctx.record.get("steps") or []}
    steps = []
    for name in dict.fromkeys([*timeline.STEPS, *told]):
        step = told.get(name, {})
        steps.append({
            "name": name, "status": step.get("status"), "attempts": step.get("attempts"),
            "started_at": step.get("started_at"), "committed_at": step.get("committed_at"),
            "seconds": {k: round(v, 3) for k, v in timeline.seconds_by_kind(found, name).items()},
            "identity": step.get("identity") or ctx.identities.get(name), "reused_from": step.get("reused_from")})
    receipt = _read(ctx, "uploading", "receipt.json")
    delivery = _read(ctx, "uploading", "delivery.json")
    return {
        "format": 1, "run": ctx.run, "config": run.get("config_path"), "created_at": run.get("created_at"),
        "written_at": now.isoformat(timespec="seconds"),
        "seconds": round((now - begun).total_seconds(), 3) if begun else None,
        "steps": steps, "incidents": timeline.incidents(ctx.record),
        "overrides": list(ctx.record.get("overrides") or []),
        "results": results(_read(ctx, "evaluating", "summary.json")),
        "upload": {**receipt, "location": (delivery or {}).get("location")} if receipt else None,
        "cleanup": dict(cleaned)}


def results(summary: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The verdict, each model's accuracy (null where it was not run) and the p-values, from evaluating's summary."""
    if not summary:
        return None
    verdict = summary.get("verdict") or {}
    variants = {
        variant: {"name": s.get("name"), "status": s.get("status"), "accuracy": (s.get("accuracy") or {}).get("value")}
        for variant, s in (summary.get("variants") or {}).items()}
    keys = ("pair", "metric", "points", "low_points", "high_points", "p", "p_holm", "significant")
    return {"items": summary.get("items"), "outcome": verdict.get("outcome"), "verdict": verdict.get("en"),
            "verdict_ja": verdict.get("ja"), "variants": variants,
            "comparisons": [{k: row.get(k) for k in keys} for row in summary.get("comparisons") or []]}


def outputs(ctx: StepContext, completion: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Where everything is, for the last table of the page."""
    places = {}
    if (completion["upload"] or {}).get("location"):
        places["published model"] = str(completion["upload"]["location"])
    for name, step, file in (
        ("GGUF", "integrating", "gguf"), ("merged model", "integrating", "merged"),
        ("A/B/C report", "evaluating", "abc_report.html"), ("data report", "preprocessing", "dataset_report.html"),
        ("training report", "training", "training_report.html"), ("provenance", "collecting", "provenance.json"),
    ):
        if step in ctx.inputs and (place := ctx.inputs[step] / file).exists():
            places[name] = str(place)
    return {**places, "completion record": str(path)}


def _read(ctx: StepContext, step: str, name: str) -> dict[str, Any] | None:
    """A JSON object that an earlier step committed, or None: a report must come out whatever a step left."""
    try:
        value = json.loads((ctx.inputs[step] / name).read_text("utf-8"))
    except (KeyError, OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
