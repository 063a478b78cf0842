"""Which samples are the same, and which are too close to be on both sides of a split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from so8t_ops.data.cleansing import comparable
from so8t_ops.data.files import bad_data
from so8t_ops.data.labels import LABELS
from so8t_ops.data.samples import Row
from so8t_ops.data.settings import NearDuplicateSettings

Pair = tuple[int, int, float]
"""Two row numbers (the smaller first) and their similarity."""


def shingles(row: Row, settings: NearDuplicateSettings) -> frozenset[str]:
    """The character n-grams of a text without spaces: they need no word boundaries, which Japanese does not write."""
    text = comparable(row["text"]).replace(" ", "")
    n = settings.ngram_ja if row["language"] == "ja" else settings.ngram_en
    return frozenset(text[i:i + n] for i in range(max(1, len(text) - n + 1)))


def signatures(
    rows: Sequence[Row], settings: NearDuplicateSettings, start: np.ndarray | None = None,
    tick: Callable[[np.ndarray], None] = lambda _: None,
) -> np.ndarray:
    """MinHash signatures (Broder 1997), one row of ``permutations`` values per text.

    ``start`` holds the first signatures where an earlier attempt made them; ``tick`` is given those done so far.
    """
    from datasketch import MinHash

    base = MinHash(num_perm=settings.permutations, seed=1)
    table = np.zeros((len(rows), settings.permutations), dtype=base.hashvalues.dtype)
    done = 0 if start is None else len(start)
    if start is not None:
        table[:done] = start
    for i in range(done, len(rows)):
        sketch = base.copy()  # shares the permutations, which are costly to draw
        sketch.update_batch([s.encode() for s in sorted(shingles(rows[i], settings))])
        table[i] = sketch.hashvalues
        if i % 64 == 63:
            tick(table[:i + 1])
    return table


def similar_texts(rows: Sequence[Row], table: np.ndarray, settings: NearDuplicateSettings) -> list[Pair]:
    """Every pair found whose Jaccard similarity is at least ``group_at``, sorted.

    Locality-sensitive hashing proposes pairs; the exact similarity of their shingles decides.
    """
    from datasketch import MinHash, MinHashLSH

    if not rows:
        return []
    base = MinHash(num_perm=settings.permutations, seed=1)
    # a missed pair leaks between splits, a false proposal costs a comparison: so recall weighs more
    index = MinHashLSH(threshold=settings.group_at, num_perm=settings.permutations, weights=(0.1, 0.9))
    pairs: list[Pair] = []
    for i, values in enumerate(table):
        sketch = base.copy()
        sketch.hashvalues = values
        mine = shingles(rows[i], settings)
        for j in sorted(index.query(sketch)):
            other = shingles(rows[j], settings)
            similarity = len(mine & other) / len(mine | other)
            if similarity >= settings.group_at:
                pairs.append((j, i, similarity))
        index.insert(i, sketch)
    return sorted(pairs)


def similar_images(paths: Sequence[Path], distance: int) -> Iterator[tuple[int, int]]:
    """Pairs of pictures whose 64-bit perceptual hashes differ in at most ``distance`` bits.

    Two such hashes agree in at least one of ``distance + 1`` bands, so only pictures that share a band are compared.

    Raises:
        StepFailure: a file is not a picture.
    """
    import imagehash
    from PIL import Image, UnidentifiedImageError

    hashes = []
    for path in paths:
        try:
            with Image.open(path) as image:
                hashes.append(imagehash.phash(image).hash.ravel())
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise bad_data(f"{path.name}: not a readable picture ({error})", "Remove it from its source.") from None
    candidates: set[tuple[int, int]] = set()
    for band in np.array_split(np.arange(64), distance + 1):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for i, bits in enumerate(hashes):
            buckets[bits[band].tobytes()].append(i)
        for members in buckets.values():
            candidates.update(combinations(members, 2))
    for i, j in sorted(candidates):
        if int(np.count_nonzero(hashes[i] != hashes[j])) <= distance:
            yield i, j


def duplicates(
    rows: Sequence[Row], pairs: Sequence[tuple[int, int]], on_conflict: str,
) -> tuple[dict[int, int], list[tuple[int, int]]]:
    """Who gives way to whom among equal samples: ({row left out: row it equals}, the pairs whose labels disagree).

    Labelled rows come before unlabelled, stricter labels before milder, earlier rows before later; a row gives way to
    the first row kept before it that it equals.  With ``drop``, rows that disagree all give way.
    """
    neighbours: dict[int, list[int]] = defaultdict(list)
    conflicts = []
    gone: dict[int, int] = {}
    for i, j in pairs:
        neighbours[i].append(j)
        neighbours[j].append(i)
        a, b = rows[i]["label"], rows[j]["label"]
        if a and b and a != b:
            conflicts.append((i, j))
            if on_conflict == "drop":
                gone.setdefault(i, j)
                gone.setdefault(j, i)
    kept: set[int] = set()
    for i in sorted(neighbours, key=lambda i: (-LABELS.index(rows[i]["label"]) if rows[i]["label"] else 1, i)):
        if i in gone:
            continue
        first = next((j for j in sorted(neighbours[i]) if j in kept), None)
        if first is None:
            kept.add(i)
        else:
            gone[i] = first
    return gone, conflicts


def components(size: int, pairs: Sequence[tuple[int, int]], keys: Sequence[str]) -> list[str]:
    """Group names: rows that share a key or are linked by pairs, directly or through others, get the same one.

    The name is the smallest key in the group.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first: dict[str, int] = {}
    links = [*pairs, *((first.setdefault(key, i), i) for i, key in enumerate(keys))]
    ends = np.array(links or np.zeros((0, 2)), dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), dtype=np.int8), (ends[:, 0], ends[:, 1])), shape=(size, size))
    _, number = connected_components(graph.tocsr(), directed=False)
    names: dict[int, str] = {}
    for n, key in zip(number.tolist(), keys, strict=True):
        names[n] = min(names.get(n, key), key)
    return [names[n] for n in number.tolist()]
