"""Notices that sampling has become slower than it was, which a sync should never cause."""

from __future__ import annotations

import warnings
from collections import defaultdict

DROP = 0.7  # below this share of the earlier speed a user wants to know
MEMORY = 5
ENOUGH = 2000  # tokens; shorter calls measure their overhead


class SpeedWatch:
    """Warns when tokens a second after a sync fall below what calls of the same size reached before it.

    A call's size is the power of two of its number of sequences: small batches are slower for good reasons.
    """

    def __init__(self) -> None:
        self.before: dict[int, list[float]] = defaultdict(list)
        self.since: dict[int, list[float]] = defaultdict(list)

    def synced(self) -> None:
        """What was measured since the previous sync becomes the standard for what follows."""
        for size, speeds in self.since.items():
            self.before[size] = (self.before[size] + speeds)[-MEMORY:]
        self.since.clear()

    def generated(self, sequences: int, tokens: int, seconds: float) -> float:
        """Record one call and return its tokens a second; warns of a drop."""
        speed, size = tokens / max(seconds, 1e-9), sequences.bit_length()
        if tokens < ENOUGH:
            return speed
        self.since[size].append(speed)
        earlier = sorted(self.before[size])
        if len(earlier) >= 2 and speed < DROP * (usual := earlier[len(earlier) // 2]):
            warnings.warn(
                f"sampling fell from {usual:.0f} to {speed:.0f} tokens/s after a weight sync ({sequences} sequences): "
                "an adapter re-read from disk at every step, adapter kernels, CUDA graphs lost, or another load here",
                RuntimeWarning,
                stacklevel=3,
            )
        return speed
