"""The prompts: Markdown files with `$name` placeholders, which a user can replace individually.

The digest of the prompts of a request is part of the key of its answer: changing a prompt repeats only the requests
that use it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

from longrl_files.folders import ForeignFolder
from longvideo_reason_data.errors import UsageError
from longvideo_reason_data.records.record import Skill

WRITING_PROMPTS: Mapping[str, frozenset[str]] = {
    "caption": frozenset({"num_frames", "start_seconds", "end_seconds", "previous", "speech"}),
    "question": frozenset({"captions", "duration_seconds", "skill", "number", "earlier", "form"}),
    "choice": frozenset[str](),
    "open": frozenset[str](),
    "rewrite": frozenset({"question", "options", "answer", "steps"}),
    **{skill.value: frozenset[str]() for skill in Skill},
}
"""The prompts for generating questions."""

ANSWERING_PROMPTS: Mapping[str, frozenset[str]] = {
    "answer": frozenset({"material", "question", "form"}),
    "same_answer": frozenset({"question", "right", "given"}),
    "support": frozenset({"question", "reasoning"}),
}
"""The prompts for answering and judging questions."""


MAX_PROMPT_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """The texts by name."""

    texts: Mapping[str, str]

    def fill(self, name: str, **values: object) -> str:
        """Return a prompt with its placeholders filled in."""
        return Template(self.texts[name]).substitute({key: str(value) for key, value in values.items()})

    def digest_of(self, *names: str) -> str:
        """Compute the common digest of some prompts; by default of all."""
        joined = "\0".join(f"{name}\0{self.texts[name]}" for name in sorted(names or self.texts))
        return hashlib.sha256(joined.encode()).hexdigest()


def load_prompts(folder: Path | None = None, names: Mapping[str, frozenset[str]] = WRITING_PROMPTS) -> Prompts:
    """Read the prompts of this package, replacing those that a folder provides.

    Args:
        folder: Files named like the prompts with the extension `.md`; any may be absent.
        names: The prompts, with the placeholders of each: `WRITING_PROMPTS` or `ANSWERING_PROMPTS`.

    Raises:
        UsageError: When the folder doesn't exist, has none of them, or a file uses an unknown placeholder.
    """
    own = resources.files("longvideo_reason_data") / "prompts"
    texts = {name: (own / f"{name}.md").read_text(encoding="utf-8").strip() for name in names}
    if folder is not None:
        files = ForeignFolder(folder, error=UsageError)
        found = [name for name in names if folder.is_dir() and files.has(f"{name}.md")]
        known = [f"{name}.md" for name in (*WRITING_PROMPTS, *ANSWERING_PROMPTS)]
        if not any((folder / name).is_file() for name in known):
            raise UsageError(f"{folder}: contains no prompts; expected one or more of {', '.join(known)}")
        for name in found:
            texts[name] = files.read_text(f"{name}.md", max_bytes=MAX_PROMPT_BYTES).strip()
            _check(folder / f"{name}.md", texts[name], names[name])
    return Prompts(texts=texts)


def _check(path: Path, text: str, allowed: frozenset[str]) -> None:
    template = Template(text)
    if not text or not template.is_valid():
        raise UsageError(f"{path}: empty, or a '$' without a name; write '$$' for a dollar sign")
    unknown = sorted(set(template.get_identifiers()) - allowed)
    if unknown:
        names = ", ".join(f"${name}" for name in sorted(allowed)) or "no names"
        raise UsageError(f"{path}: ${unknown[0]} is unknown; this prompt has {names}")
