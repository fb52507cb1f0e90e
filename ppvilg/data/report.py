"""What became of a source's samples: how many are used, and which were left out and why."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from ppvilg.files import write_whole

NAMED = 5
"""How many of the samples left out for one reason are named."""


@dataclass
class Report:
    """Counts and names of what was skipped; `str(report)` is a block for people, `write` makes JSON for machines."""

    source: str
    used: int = 0
    filtered: int = 0
    """Samples that are fine but belong to another split or were not wanted (`data.keep`)."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason: number of samples."""
    names: dict[str, list[str]] = field(default_factory=dict)
    """Reason: the first few names."""
    notes: list[str] = field(default_factory=list)
    """What else there is to say, in sentences."""

    def skip(self, reason: str, name: str) -> None:
        """Note that a sample is left out."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        first = self.names.setdefault(reason, [])
        if len(first) < NAMED:
            first.append(name)

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.used} samples used, {sum(self.skipped.values())} skipped"]
        lines += [f"  {note}" for note in self.notes]
        for reason, count in sorted(self.skipped.items(), key=lambda item: -item[1]):
            more = ", ..." if count > len(self.names[reason]) else ""
            lines.append(f"  {count} x {reason}: {', '.join(self.names[reason])}{more}")
        return "\n".join(lines)

    def write(self, path: str | Path) -> None:
        """Write the report as JSON."""
        content = {
            "source": self.source,
            "used": self.used,
            "filtered": self.filtered,
            "notes": self.notes,
            "skipped": {reason: {"count": count, "first": self.names[reason]} for reason, count in self.skipped.items()},
        }
        write_whole(Path(path), (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())
