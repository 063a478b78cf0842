"""The licence gate: which SPDX expressions may enter the data set.

An expression passes when it leaves a choice that the allow-list covers: ``A OR B`` needs one of the two, ``A AND B``
both.  ``A WITH exception`` is a licence of its own and must be listed as such.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from email.message import Message

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

_NAMES = {
    "mit license": "MIT", "the mit license": "MIT", "mit licence": "MIT", "expat": "MIT",
    "apache 2.0": "Apache-2.0", "apache 2": "Apache-2.0", "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0", "apache software license 2.0": "Apache-2.0",
    "apache license version 2.0": "Apache-2.0", "apache 2.0 license": "Apache-2.0", "apache-2.0 license": "Apache-2.0",
    "bsd-3": "BSD-3-Clause", "3-clause bsd license": "BSD-3-Clause", "new bsd": "BSD-3-Clause",
    "psf": "PSF-2.0", "mpl 2.0": "MPL-2.0", "gplv3": "GPL-3.0-only", "gpl v3": "GPL-3.0-only",
    "lgpl": "LGPL-2.1-or-later",
}
_CLASSIFIERS = {
    "MIT License": "MIT", "MIT No Attribution License (MIT-0)": "MIT-0", "ISC License (ISCL)": "ISC",
    "Python Software Foundation License": "PSF-2.0", "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "The Unlicense (Unlicense)": "Unlicense", "GNU General Public License v3 (GPLv3)": "GPL-3.0-only",
    "GNU General Public License v2 (GPLv2)": "GPL-2.0-only",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
}


def normalise(expression: str | None) -> str | None:
    """The canonical SPDX form of a licence as somebody wrote it, or None where it is not one that SPDX knows."""
    if not expression or not expression.strip():
        return None
    text = " ".join(expression.split())
    try:
        return str(canonicalize_license_expression(_NAMES.get(text.lower(), text)))
    except InvalidLicenseExpression:
        return None


def allows(expression: str, allowed: Iterable[str]) -> bool:
    """Whether a canonical SPDX expression can be satisfied by the allowed licences alone."""
    accepted = {licence.lower() for licence in allowed}
    tokens = re.findall(r"[()]|[^\s()]+", expression)

    def alternatives(i: int) -> tuple[bool, int]:
        passed, i = conjunction(i)
        while i < len(tokens) and tokens[i] == "OR":
            other, i = conjunction(i + 1)
            passed = passed or other
        return passed, i

    def conjunction(i: int) -> tuple[bool, int]:
        passed, i = term(i)
        while i < len(tokens) and tokens[i] == "AND":
            other, i = term(i + 1)
            passed = passed and other
        return passed, i

    def term(i: int) -> tuple[bool, int]:
        if tokens[i] == "(":
            passed, i = alternatives(i + 1)
            return passed, i + 1
        name = tokens[i]
        if tokens[i + 1:i + 2] == ["WITH"]:
            name, i = f"{name} WITH {tokens[i + 2]}", i + 2
        return name.lower() in accepted, i + 1

    return alternatives(0)[0]


def refusal(licence: str | None, declared: str | None, allowed: Iterable[str]) -> str | None:
    """Why a sample may not enter, or None where it may.  ``declared`` is what the source said in its own words."""
    if licence is None:
        return f"{declared!r} is not an SPDX expression" if declared else "no licence declared"
    return None if allows(licence, allowed) else "not in data.licenses"


def of_distribution(metadata: Message) -> tuple[str | None, str | None]:
    """The licence of an installed distribution: (canonical SPDX or None, what it declared or None).

    Read in the order of PEP 639: ``License-Expression``, then a ``License`` field short enough to be a name, then the
    classifiers.  Several licence classifiers do not say whether they mean *and* or *or*; the careful reading is *and*.
    """
    expression = metadata["License-Expression"]
    field = (expression or metadata["License"] or "").strip()
    named = expression or len(field) <= 60 and "\n" not in field and field.upper() != "UNKNOWN"
    if named and (spdx := normalise(field)):
        return spdx, field
    prefix = "License :: "
    classes = [c[len(prefix):].split(" :: ")[-1] for c in metadata.get_all("Classifier") or [] if c.startswith(prefix)]
    classes = sorted(set(classes) - {"OSI Approved"})
    names = [_CLASSIFIERS.get(c) or normalise(c) for c in classes]
    if names and all(names):
        return normalise(" AND ".join(str(n) for n in names)), "; ".join(classes)
    declared = "; ".join(classes) or field.split("\n")[0][:60]
    return None, declared or None
