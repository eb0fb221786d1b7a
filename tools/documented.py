"""The commands of headrace that README and docs/ name, as lists of arguments."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
IN_A_LINE = re.compile(r"`(headrace [^`]+)`")
COMMENT = re.compile(r"\s+#\s.*$|\s{3,}\S.*$")  # or what stands to the right of a command, without a sign


@dataclass(frozen=True)
class Documented:
    """where: file and line. text: as it stands there. whole: it stands alone, to be typed; not within a sentence, where
    it may be a part of a command."""

    where: str
    text: str
    whole: bool

    @property
    def arguments(self) -> list[str]:
        """Behind the name of the program: what may be left out is, as are pipes and files that output goes to."""
        text = re.sub(r"^(?:\$ )?headrace\s+(\w+)\s+", r"headrace \1 ", self.text)
        text = COMMENT.sub("", text)
        text = re.sub(r"\s\[[^\]]*\]", "", text)
        words = shlex.split(text)
        ends = [at for at, word in enumerate(words) if word in ("|", ">", "&&", "&")]
        return words[1 : min(ends, default=len(words))]


def documented(pages: tuple[Path, ...] = PAGES) -> Iterator[Documented]:
    for page in pages:
        fenced, lines = False, page.read_text().splitlines()
        for number, line in enumerate(lines):
            where = f"{page.relative_to(ROOT)}:{number + 1}"
            if line.startswith("```"):
                fenced = not fenced
            elif re.match(r"(\$ )?headrace\s+\S", line.strip()) and (fenced or line.startswith("    ")):
                more = [line.strip()]
                while more[-1].endswith("\\"):
                    more[-1:] = [more[-1][:-1], lines[number + len(more)].strip()]
                yield Documented(where, " ".join(more), whole=True)
            elif not fenced:
                yield from (Documented(where, found, whole=False) for found in IN_A_LINE.findall(line))
