"""The page's own files, as they are in `web/`: read once, and sent with a policy by which a browser runs nothing else.

The page loads nothing from elsewhere, runs no script that is not a file here (but the import map, by its digest), and
makes HTML only through its sanitizer: whatever a model writes stays text.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.datastructures import Headers
from starlette.responses import Response

WEB = Path(__file__).parent.parent / "web"
INDEX, PREFIX = "index.html", "/page/"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
IMPORT_MAP = re.compile(rb'<script type="importmap">(.*?)</script>', re.DOTALL)
SAFE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # asks each time, and gets 304
}


@cache
def files() -> dict[str, bytes]:
    """By path what there is."""
    found = sorted(one for one in WEB.rglob("*") if one.is_file() and one.suffix in KINDS)
    return {one.relative_to(WEB).as_posix(): one.read_bytes() for one in found}


@cache
def policy() -> str:
    """What a browser may do with the page."""
    maps = [base64.b64encode(hashlib.sha256(one).digest()).decode() for one in IMPORT_MAP.findall(files()[INDEX])]
    hashes = "".join(f" 'sha256-{one}'" for one in maps)
    return (
        f"default-src 'none'; script-src 'self'{hashes}; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
        "trusted-types dompurify"
    )


def is_page(path: str, headers: Headers) -> bool:
    """Whether a request is for the page: one of its files, or / by a browser."""
    return path.startswith(PREFIX) or (path == "/" and "text/html" in headers.get("accept", ""))


def response(path: str, headers: Headers) -> Response | None:
    """A file of the page; None where there is none."""
    name = INDEX if path == "/" else path.removeprefix(PREFIX)
    data = files().get(name)
    if data is None:
        return None
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    more = {**SAFE, "etag": tag, "content-security-policy": policy(), **({"vary": "accept"} if path == "/" else {})}
    if headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=more)
    return Response(data, headers={**more, "content-type": KINDS[Path(name).suffix]})
