"""Make the demo model's corpus from two Debian packages, as clean UTF-8 text.

The text is the King James Bible (`bible-kjv-text`, printed by the `bible` program of `bible-kjv`) and the six
novels of Jane Austen (`r-cran-janeaustenr`, an R data base that is decoded here without R). Every chapter becomes
one document: a title line, an empty line, then one verse or paragraph per line. About one chapter in 25 is held
out, spread over both books; a chapter that shares wording with the rest (the Bible repeats itself in places) is
not taken, so that the held-out figures are not flattered. The output is the same on every run.

    apt-get download bible-kjv bible-kjv-text r-cran-janeaustenr
    for d in *.deb; do dpkg -x $d unpacked; done
    python demo/corpus.py --root unpacked --out build/corpus
"""

from __future__ import annotations

import argparse
import re
import subprocess
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

END = "<|endoftext|>"
BIBLE_PROGRAM = "usr/bin/bible"
BIBLE_CHAPTERS = 1189
BIBLE_DATA = "usr/lib/bible.data"
AUSTEN_DATA = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
# The data base stores its objects in this (alphabetical) order.
NOVELS = (
    "Emma",
    "Mansfield Park",
    "Northanger Abbey",
    "Persuasion",
    "Pride and Prejudice",
    "Sense and Sensibility",
)
HOLD_OUT_EVERY = 25
SHINGLE = 8  # words; shared runs this long count as the same wording
MAX_SHARED = 0.03  # a held-out chapter may share this part of its runs with the training text
CHAPTER = re.compile(r"CHAPTER [IVXLC0-9]+\.?$", re.IGNORECASE)
# Printers' and editors' lines that are no part of the novel.
NOT_TEXT = re.compile(r"\s*(VOLUME [IVX]+|THE END|FINIS|\*.*|\[(End volume|At this point).*)$", re.IGNORECASE)
NOTE = "A NOTE ON THE TEXT"


def bible_documents(root: Path) -> list[str]:
    """One document per chapter: "Genesis 1", an empty line, then a verse per line, without verse numbers."""
    # The program looks for its data only below the working directory and /usr/lib, hence the relative names.
    command = [f"./{BIBLE_PROGRAM}", "-l", "9999", "-d", BIBLE_DATA, "Gen1:1-Rev22:21"]
    printed = subprocess.run(command, cwd=root, stdin=subprocess.DEVNULL, capture_output=True, check=True).stdout
    documents: list[list[str]] = []
    for line in printed.decode("ascii").splitlines():
        verse = re.match(r" +\d+ (.*)", line)
        if verse:
            documents[-1].append(tidy(verse.group(1)))
        elif line.strip():
            documents.append([re.sub("^Psalms ", "Psalm ", line.strip()), ""])
    if len(documents) != BIBLE_CHAPTERS:
        raise ValueError(f"{BIBLE_PROGRAM} printed {len(documents)} chapters, not {BIBLE_CHAPTERS}")
    return ["\n".join(lines) + "\n" for lines in documents]


def austen_documents(root: Path) -> list[str]:
    """One document per chapter: "Emma, Chapter 1", an empty line, then a paragraph per line."""
    data = (root / AUSTEN_DATA).read_bytes()
    documents = []
    for novel, stored in zip(NOVELS, stored_objects(data), strict=True):
        for number, lines in enumerate(chapters(character_vector(stored)), start=1):
            body = "\n".join(paragraphs(lines))
            documents.append(f"{novel}, Chapter {number}\n\n{body}\n")
    return documents


def stored_objects(data: bytes) -> Iterator[bytes]:
    """The objects of an R lazy-load data base: each is a 4-byte length and a zlib stream."""
    position = 0
    while position < len(data):
        stream = zlib.decompressobj()
        yield stream.decompress(data[position + 4 :])
        position = len(data) - len(stream.unused_data)


def character_vector(stored: bytes) -> list[str]:
    """The strings of one serialised R character vector (XDR format, version 3)."""
    start = 18 + int.from_bytes(stored[14:18], "big")  # past the header and the name of the native encoding
    if stored[:2] != b"X\n" or stored[start : start + 4] != b"\0\0\0\x10":
        raise ValueError("not a serialised R character vector")
    count = int.from_bytes(stored[start + 4 : start + 8], "big")
    position = start + 8
    strings = []
    for _ in range(count):
        size = int.from_bytes(stored[position + 4 : position + 8], "big")
        strings.append(stored[position + 8 : position + 8 + size].decode("utf-8"))
        position += 8 + size
    return strings


def chapters(lines: Iterable[str]) -> Iterator[list[str]]:
    """The lines of each chapter of one novel; what stands before the first heading is left out."""
    current: list[str] | None = None
    for line in lines:
        if CHAPTER.match(line.strip()):
            if current is not None:
                yield current
            current = []
        elif line.strip() == NOTE:
            break
        elif current is not None and not NOT_TEXT.match(line):
            current.append(line)
    if current is not None:
        yield current


def paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Unwrap the lines between empty lines; indented blocks (verse, signatures) keep their lines."""
    for block in re.split(r"\n\s*\n", "\n".join(lines)):
        rows = [row for row in block.split("\n") if row.strip()]
        if not rows:
            continue
        indented = any(row.startswith("  ") for row in rows)
        yield "\n".join(map(tidy, rows)) if indented else tidy(" ".join(rows))


def tidy(text: str) -> str:
    """Drop the underscores that stood for italics, and runs of spaces."""
    return re.sub(r"\s+", " ", text.replace("_", "")).strip()


def shingles(document: str) -> set[tuple[str, ...]]:
    """All runs of SHINGLE words."""
    words = re.findall(r"[a-z']+", document.lower())
    return {tuple(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}


def split(documents: list[str]) -> tuple[list[str], list[str]]:
    """Hold out about one document in HOLD_OUT_EVERY: the first of each such group that is no near copy."""
    runs = [shingles(document) for document in documents]
    seen = Counter(run for one in runs for run in one)
    held = set()
    for start in range(HOLD_OUT_EVERY // 2, len(documents), HOLD_OUT_EVERY):
        for i in range(start, min(start + HOLD_OUT_EVERY // 2, len(documents))):
            shared = sum(seen[run] > 1 for run in runs[i])
            if shared <= MAX_SHARED * len(runs[i]):
                held.add(i)
                break
    train = [document for i, document in enumerate(documents) if i not in held]
    return train, [documents[i] for i in sorted(held)]


def excerpt(bible: list[str], austen: list[str], size: int) -> str:
    """Whole held-out chapters from both books, spread over them and mixed, in all about `size` bytes."""
    placed: list[tuple[float, str]] = []
    for documents in (bible, austen):
        step = max(1, round(sum(map(len, documents)) / (size / 2)))
        chosen = documents[step // 2 :: step]
        placed += [((i + 0.5) / len(chosen), document) for i, document in enumerate(chosen)]
    return "\n".join(document for _, document in sorted(placed))


def write(path: Path, documents: list[str]) -> None:
    """Write documents as one file, each followed by a line with the end-of-text token."""
    path.write_text("".join(f"{document}{END}\n" for document in documents), encoding="utf-8")
    print(f"{path.name}: {len(documents)} documents, {path.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the packages are installed or unpacked")
    parser.add_argument("--out", type=Path, required=True, help="directory for train.txt and held-out.txt")
    parser.add_argument("--excerpt", type=Path, help="also write an excerpt of the held-out text to this file")
    parser.add_argument("--excerpt-bytes", type=int, default=84_000)
    options = parser.parse_args()
    bible_train, bible_held = split(bible_documents(options.root))
    austen_train, austen_held = split(austen_documents(options.root))
    options.out.mkdir(parents=True, exist_ok=True)
    write(options.out / "train.txt", bible_train + austen_train)
    write(options.out / "held-out.txt", bible_held + austen_held)
    if options.excerpt:
        text = excerpt(bible_held, austen_held, options.excerpt_bytes)
        options.excerpt.write_text(text, encoding="utf-8")
        print(f"{options.excerpt.name}: {len(text.encode())} bytes")


if __name__ == "__main__":
    main()
