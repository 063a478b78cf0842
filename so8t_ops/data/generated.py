"""Pictures and sounds drawn from a seed, so that the multimodal path runs without any download.

They are declared synthetic and prove plumbing only: shapes, charts, printed words and digits; tones, chirps and noise.
"""

from __future__ import annotations

import io
import math
import wave
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from so8t_ops.data.samples import Sample
from so8t_ops.data.settings import GeneratedSource

COLOURS = {
    "red": ("赤い", (200, 40, 40)), "blue": ("青い", (40, 80, 200)), "green": ("緑の", (30, 140, 60)),
    "orange": ("オレンジ色の", (230, 130, 20)), "purple": ("紫の", (120, 50, 160)), "black": ("黒い", (20, 20, 20)),
}
PAPER = {"white": ("白い", (255, 255, 255)), "grey": ("灰色の", (214, 214, 214)), "yellow": ("黄色い", (255, 244, 180))}
SHAPES = {"circle": "円", "square": "四角形", "triangle": "三角形", "star": "星", "cross": "十字", "ring": "輪"}
WORDS = ("STOP", "HELLO", "EXIT", "SALE", "OPEN", "DANGER", "KYOTO", "HELP")


def samples(settings: GeneratedSource, seed: int) -> Iterator[Sample]:
    """First the pictures, then the sounds; the n-th of each depends on the seed and n alone."""
    for n in range(settings.images):
        rng = np.random.default_rng([seed, 1, n])
        kind, (english, japanese), media = _picture(rng, n, settings.image_size)
        yield _sample("image", kind, n, english, japanese, media, ".png")
    for n in range(settings.sounds):
        rng = np.random.default_rng([seed, 2, n])
        kind, (english, japanese), media = _sound(rng, n, settings.sample_rate, settings.seconds)
        yield _sample("audio", kind, n, english, japanese, media, ".wav")


def _sample(modality: str, kind: str, n: int, english: str, japanese: str, media: bytes, suffix: str) -> Sample:
    language = "ja" if (n // 2) % 2 else "en"
    return Sample(
        text=japanese if language == "ja" else english, label=None, language=language, licence="Apache-2.0",
        declared="Apache-2.0", synthetic=True, group=f"{kind}-{n}", modality=modality, media=media, suffix=suffix,
        item=kind)


def _picture(rng: np.random.Generator, n: int, size: int) -> tuple[str, tuple[str, str], bytes]:
    """One square RGB picture as PNG: (kind, (English, Japanese caption), bytes)."""
    paper = list(PAPER)[int(rng.integers(len(PAPER)))]
    colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
    image = Image.new("RGB", (size, size), PAPER[paper][1])
    draw, ink = ImageDraw.Draw(image), COLOURS[colour][1]
    kind = ("shape", "digits", "bars", "word", "line")[n % 5]
    ground = f"on {paper} paper", f"{PAPER[paper][0]}紙に"
    if kind == "shape":
        shape = list(SHAPES)[int(rng.integers(len(SHAPES)))]
        _draw_shape(draw, shape, ink, size, rng)
        caption = f"a {colour} {shape} {ground[0]}", f"{ground[1]}{COLOURS[colour][0]}{SHAPES[shape]}"
    elif kind in ("digits", "word"):
        text = str(rng.integers(100, 1000)) if kind == "digits" else WORDS[int(rng.integers(len(WORDS)))]
        font = ImageFont.load_default(size / (0.62 * len(text) + 0.6))
        draw.text((size / 2, size / 2 + float(rng.integers(-size // 6, size // 6 + 1))), text, ink, font, anchor="mm")
        what = ("the number", "数字") if kind == "digits" else ("the word", "単語")
        caption = f"{what[0]} {text} in {colour} {ground[0]}", f"{ground[1]}{COLOURS[colour][0]}{what[1]}「{text}」"
    else:
        values = rng.uniform(0.1, 0.9, int(rng.integers(3, 7)))
        _draw_chart(draw, kind, values, ink, size)
        top = int(np.argmax(values)) + 1
        name = ("bar chart", "棒グラフ") if kind == "bars" else ("line chart", "折れ線グラフ")
        caption = (f"a {colour} {name[0]} with {len(values)} values, number {top} is the highest",
                   f"{len(values)}個の値の{COLOURS[colour][0]}{name[1]}。{top}番目が最大")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=9)
    return kind, caption, buffer.getvalue()


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, ink: tuple[int, int, int], size: int, rng: np.random.Generator,
) -> None:
    r = float(rng.uniform(0.18, 0.34)) * size
    x, y = (float(v) for v in rng.uniform(r + 2, size - r - 2, 2))
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)
    elif shape == "ring":
        draw.ellipse((x - r, y - r, x + r, y + r), outline=ink, width=max(2, size // 14))
    elif shape == "square":
        draw.rectangle((x - r, y - r, x + r, y + r), fill=ink)
    elif shape == "cross":
        w = r / 3
        draw.rectangle((x - r, y - w, x + r, y + w), fill=ink)
        draw.rectangle((x - w, y - r, x + w, y + r), fill=ink)
    else:
        points = 3 if shape == "triangle" else 10
        radius = [r if shape == "triangle" or k % 2 == 0 else 0.42 * r for k in range(points)]
        angle = [2 * math.pi * k / points - math.pi / 2 for k in range(points)]
        draw.polygon([(x + radius[k] * math.cos(angle[k]), y + radius[k] * math.sin(angle[k]))
                      for k in range(points)], fill=ink)


def _draw_chart(
    draw: ImageDraw.ImageDraw, kind: str, values: np.ndarray, ink: tuple[int, int, int], size: int,
) -> None:
    edge = size // 10
    draw.line([(edge, edge), (edge, size - edge), (size - edge, size - edge)], fill=(60, 60, 60), width=2)
    step = (size - 2 * edge) / len(values)
    height = [size - edge - float(v) * (size - 2 * edge) for v in values]
    if kind == "bars":
        for k, top in enumerate(height):
            draw.rectangle((edge + (k + 0.2) * step, top, edge + (k + 0.8) * step, size - edge - 1), fill=ink)
    else:
        draw.line([(edge + (k + 0.5) * step, y) for k, y in enumerate(height)], fill=ink, width=max(2, size // 32))


def _sound(rng: np.random.Generator, n: int, rate: int, seconds: float) -> tuple[str, tuple[str, str], bytes]:
    """One mono 16-bit WAV: (kind, (English, Japanese caption), bytes)."""
    t = np.arange(int(rate * seconds)) / rate
    kind = ("tone", "rising", "noise", "falling")[n % 4]
    low, high = sorted(int(v) * 20 for v in rng.choice(np.arange(10, 120), 2, replace=False))
    if kind == "tone":
        signal = np.sin(2 * np.pi * low * t)
        caption = f"a steady tone of {low} hertz", f"{low}ヘルツの一定の音"
    elif kind == "noise":
        signal = rng.uniform(-1, 1, len(t)) * np.exp(-t * low / 400)
        caption = f"noise that fades away, number {n}", f"消えていく雑音その{n}"
    else:
        start, end = (low, high) if kind == "rising" else (high, low)
        signal = np.sin(2 * np.pi * (start * t + (end - start) * t**2 / (2 * seconds)))  # linear chirp
        way = ("rising", "上がる") if kind == "rising" else ("falling", "下がる")
        caption = f"a sound {way[0]} from {start} to {end} hertz", f"{start}から{end}ヘルツへ{way[1]}音"
    ramp = np.minimum(1, np.minimum(t, t[::-1]) * 100)  # 10 ms, so that no sound begins with a click
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(np.round(signal * ramp * 0.6 * 32767).astype("<i2").tobytes())
    return kind, caption, buffer.getvalue()
