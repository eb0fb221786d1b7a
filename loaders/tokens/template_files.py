"""Where a model keeps its chat templates: each by its name, from all the files that may hold some.

transformers writes chat_template.jinja and additional_chat_templates/NAME.jinja today, wrote tokenizer_config.json
before, and chat_template.json for models that see images. It reads the first of these that is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import TokenizerError
from .. import regular

DEFAULT = "default"  # the name of a template that has none
MORE = "additional_chat_templates"


def find(
    directory: Path, settings: Mapping[str, Any], processor: Mapping[str, Any]
) -> tuple[dict[str, str], list[str]]:
    """The templates of a model by name, and what a user should know of where they come from.

    settings: tokenizer_config.json. processor: chat_template.json. Raises TokenizerError for a file that is no text.
    """
    sources = {
        "chat_template.jinja": _of_files(directory),
        "tokenizer_config.json": named(settings.get("chat_template")),
        "chat_template.json": named(processor.get("chat_template")),
    }
    found = {source: templates for source, templates in sources.items() if templates}
    united: dict[str, str] = {}
    for templates in reversed(found.values()):
        united.update(templates)
    texts = {source: templates[DEFAULT].strip() for source, templates in found.items() if DEFAULT in templates}
    if len(set(texts.values())) < 2:
        return united, []
    first, *others = texts
    return united, [
        f"{first} and {' and '.join(others)} hold different chat templates: the first is used, as by transformers"
    ]


def named(value: Any) -> dict[str, str]:
    """Templates by name: of one text, of a list of names and texts, or of a mapping."""
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list):
        value = {str(one.get("name")): one.get("template") for one in value if isinstance(one, dict)}
    return {name: text for name, text in value.items() if isinstance(text, str)} if isinstance(value, dict) else {}


def _of_files(directory: Path) -> dict[str, str]:
    """Templates that have a file of their own; those with a name only beside one without."""
    path = directory / "chat_template.jinja"
    more = sorted((directory / MORE).glob("*.jinja")) if (directory / MORE).is_dir() else []
    files = {DEFAULT: path} if path.is_file() else {}
    return {name: read(file) for name, file in {**files, **{one.stem: one for one in more}}.items()}


def read(path: Path) -> str:
    """The text of a template file; raises TokenizerError if it is none."""
    try:
        return regular.text(path)
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read: {error}; fetch the file again") from error


def named_or_in_file(wanted: str | None) -> str | None:
    """What a user says of a template: the text of a file where there is one of that name, else as it is. Raises
    TokenizerError for a file that cannot be read."""
    if wanted is None or "{" in wanted or not Path(wanted).is_file():
        return wanted
    try:
        return regular.text(Path(wanted))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"chat template {wanted} cannot be read ({error}): give a jinja file") from error
