"""``metrics.json`` and ``training_report.html``: the curves, as plain SVG so that the page repeats byte for byte."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from so8t_ops.training.journal import Curve

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 420, 190, 56, 26, 12

CHARTS: tuple[tuple[str, str, str, str], ...] = (
    ("base", "loss", "Base: language-model loss (nats/token)", "ベース：言語モデル損失"),
    ("warm", "loss", "Warm start: loss (nats/token)", "ウォームスタート：損失"),
    ("ppo", "reward", "PPO: mean reward", "PPO：平均報酬"),
    ("ppo", "accuracy", "PPO: share of right classes in rollouts", "PPO：ロールアウト正答率"),
    ("ppo", "kl", "PPO: divergence from the warm start (nats/answer)", "PPO：ウォームスタートからのKL"),
    ("ppo", "kl_weight", "PPO: adaptive KL weight", "PPO：適応KL係数"),
    ("ppo", "policy_loss", "PPO: policy loss", "PPO：方策損失"),
    ("ppo", "value_loss", "PPO: value loss", "PPO：価値損失"),
    ("ppo", "entropy", "PPO: entropy (nats/token)", "PPO：エントロピー"),
    ("ppo", "clipped", "PPO: share of clipped tokens", "PPO：クリップ率"),
)

STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.6 system-ui,'Noto Sans JP',sans-serif;max-width:60rem;"
    "margin:2rem auto;padding:0 1rem}h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}"
    "table{border-collapse:collapse}td,th{padding:.25rem .9rem;border-bottom:1px solid #8886;text-align:right}"
    "th:first-child,td:first-child{text-align:left}.charts{display:grid;gap:1.2rem;"
    "grid-template-columns:repeat(auto-fill,minmax(26rem,1fr))}figure{margin:0}figcaption{font-size:.85rem}"
    "svg{width:100%;height:auto}svg text{font-size:10px;fill:currentColor}"
)


def write_report(out: Path, curves: Mapping[str, Curve], summary: Mapping[str, Any]) -> None:
    """Write both files into ``out``.  Neither holds a time, a host or a path."""
    facts = {"summary": summary, "curves": curves}
    text = json.dumps(facts, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    (out / "metrics.json").write_text(text + "\n", encoding="utf-8", newline="\n")
    (out / "training_report.html").write_text(page(curves, summary), encoding="utf-8", newline="\n")


def page(curves: Mapping[str, Curve], summary: Mapping[str, Any]) -> str:
    """The whole report as one HTML page without outside parts."""
    figures = [
        f"<figure>{chart([(e['step'], e[key]) for e in curves[phase]], english)}"
        f"<figcaption>{escape(english)}<br>{escape(japanese)}</figcaption></figure>"
        for phase, key, english, japanese in CHARTS if len(curves.get(phase, ())) > 1
    ]
    return "\n".join([
        "<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>Training report</title><style>{STYLE}</style></head><body>",
        "<h1>Training report / 学習レポート</h1>", "<h2>What was trained / 学習の概要</h2>", _table(summary["run"]),
        "<h2>Validation, greedy answers / 検証データ（貪欲生成）</h2>", _variants(summary["validation"]),
        "<p>B is the warm start, C is B after PPO. The comparison with statistics is the evaluation step's. "
        "／ Bはウォームスタート、CはPPO後です。統計的な比較は評価ステップが行います。</p>",
        "<h2>Curves / 学習曲線</h2>", f'<div class="charts">{"".join(figures)}</div>', "</body></html>", "",
    ])


def chart(points: Sequence[tuple[float, float]], title: str) -> str:
    """One line chart as SVG: least and greatest value on the left, first and last step below."""
    (x0, x1), (y0, y1) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))
    across, up = (x1 - x0) or 1.0, (y1 - y0) or 1.0
    plot_w, plot_h = WIDTH - LEFT - 10, HEIGHT - BOTTOM - TOP
    line = " ".join(
        f"{LEFT + (x - x0) / across * plot_w:.1f},{TOP + (1 - (y - y0) / up) * plot_h:.1f}" for x, y in points
    )
    floor = HEIGHT - BOTTOM
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: from {points[0][1]:.4g} to '
        f'{points[-1][1]:.4g}"><path d="M{LEFT},{TOP}V{floor}H{WIDTH - 10}" fill="none" stroke="currentColor" '
        f'opacity=".4"/><polyline points="{line}" fill="none" stroke="#2f7ed8" stroke-width="1.6"/>'
        f'<text x="{LEFT - 5}" y="{TOP + 4}" text-anchor="end">{y1:.4g}</text>'
        f'<text x="{LEFT - 5}" y="{floor}" text-anchor="end">{y0:.4g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 8}">{x0:g}</text>'
        f'<text x="{WIDTH - 10}" y="{HEIGHT - 8}" text-anchor="end">{x1:g}</text></svg>'
    )


def _table(facts: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in facts.items())
    return f"<table>{rows}</table>"


def _variants(validation: Mapping[str, Mapping[str, float]]) -> str:
    names = ("n", "accuracy", "reward", "unsafe", "no_label")
    head = ("Variant", "n", "Accuracy / 正答率", "Reward / 報酬", "Unsafe as ALLOW / 危険の見逃し", "No class / 無回答")
    body = "".join(
        f"<tr><td>{escape(variant)}</td>" + "".join(f"<td>{facts[name]:.4g}</td>" for name in names) + "</tr>"
        for variant, facts in validation.items()
    )
    return f"<table><tr>{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr>{body}</table>"
