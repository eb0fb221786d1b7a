"""make vendor: copies the files of the page's libraries from npm, as package-lock.json pins them.

npm checks every package against the lock's digest. `files.json` says which files are taken, and their SHA-256, against
which a test holds what lies here. To take a new version: change package.json, `npm install --package-lock-only` there,
`make vendor`, and look at the difference of `files.json`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

VENDOR = Path(__file__).parent.parent / "engine" / "server" / "web" / "vendor"
# File here: file of a package.
TAKEN = {
    "preact.mjs": "preact/dist/preact.mjs",
    "preact-hooks.mjs": "preact/hooks/dist/hooks.mjs",
    "preact.LICENSE.txt": "preact/LICENSE",
    "htm.mjs": "htm/dist/htm.mjs",
    "htm.LICENSE.txt": "htm/LICENSE",
    "signals-core.mjs": "@preact/signals-core/dist/signals-core.mjs",
    "signals-core.LICENSE.txt": "@preact/signals-core/LICENSE",
    "signals.mjs": "@preact/signals/dist/signals.mjs",
    "signals.LICENSE.txt": "@preact/signals/LICENSE",
    "uplot.min.js": "uplot/dist/uPlot.iife.min.js",
    "uplot.min.css": "uplot/dist/uPlot.min.css",
    "uplot.LICENSE.txt": "uplot/LICENSE",
    "marked.mjs": "marked/lib/marked.esm.js",
    "marked.LICENSE.txt": "marked/LICENSE",
    "purify.min.js": "dompurify/dist/purify.min.js",
    "purify.LICENSE.txt": "dompurify/LICENSE",
}


def main() -> None:
    """Copies all files, and writes files.json."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(VENDOR / name, folder)
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True)
        modules = Path(folder) / "node_modules"
        for name, source in TAKEN.items():
            shutil.copyfile(modules / source, VENDOR / name)
    found = {
        name: {"from": source, "sha256": hashlib.sha256((VENDOR / name).read_bytes()).hexdigest()}
        for name, source in TAKEN.items()
    }
    (VENDOR / "files.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
