"""How a format has fared, and the note of what a worker is reading, for the process that watches it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

CLOCK = struct.Struct("<qqd")  # which format, which mutant, since when (0: none is being read)


@dataclass
class Count:
    """The ``next`` index, what was accepted and refused, and findings by signature."""

    next: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    findings: dict[str, int] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        return self.accepted + self.refused + sum(self.findings.values())

    def add(self, other: Count) -> None:
        self.accepted += other.accepted
        self.refused += other.refused
        self.seconds += other.seconds
        for what, number in other.findings.items():
            self.findings[what] = self.findings.get(what, 0) + number
