"""What will happen, in the order of its time: a calendar queue, as fast for 100,000 entries as for ten.

A heap of that many entries touches as much scattered memory with each entry as all the rest of an event does. Here an
entry is first thrown into the bucket of its time, and a bucket is sorted when its time has come.

Citation: Brown, R.: "Calendar Queues: A Fast O(1) Priority Queue Implementation for the Simulation Event Set Problem",
Communications of the ACM 31(10), 1988.
"""

import heapq
from typing import Any, TypeAlias

__all__ = ["Agenda", "Entry"]

Entry: TypeAlias = tuple[float, int, int, Any, Any]
"""When (seconds), a number that no other entry has, and what."""

CROWDED, SPARSE = 2048, 4
"""Entries in a bucket above which buckets are made narrower; in the mean bucket, below which they are made wider."""
FACTOR = 8.0
FINEST = 2.0**30
"""Buckets a second."""


class Agenda:
    """Entries by time, then by number."""

    __slots__ = ("buckets", "count", "current", "fresh", "numbers", "scale", "sorted")

    def __init__(self) -> None:
        self.scale = 1.0
        """Buckets a second. An entry's bucket never decreases with its time, so the order is exact."""
        self.current = -1
        """The bucket that is being emptied; all before it are empty."""
        self.sorted: list[Entry] = []
        """Its entries, the last first."""
        self.fresh: list[Entry] = []
        """A heap of those that came when it was sorted already."""
        self.buckets: dict[int, list[Entry]] = {}
        self.numbers: list[int] = []
        """A heap of the buckets' numbers."""
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def push(self, entry: Entry) -> None:
        """Add an entry, not before the last one that was popped."""
        self.count += 1
        number = int(entry[0] * self.scale)
        if number <= self.current:
            heapq.heappush(self.fresh, entry)
            if len(self.fresh) % CROWDED == 0 and self.scale < FINEST:
                self.buckets[self.current] = self.fresh + self.sorted
                self.fresh, self.sorted = [], []
                self.widen(FACTOR)
        elif number in self.buckets:
            self.buckets[number].append(entry)
        else:
            self.buckets[number] = [entry]
            heapq.heappush(self.numbers, number)

    def first(self) -> Entry:
        """The entry that `pop` would take."""
        if not self.sorted and not self.fresh:
            self.turn()
        return self.fresh[0] if not self.sorted or (self.fresh and self.fresh[0] < self.sorted[-1]) else self.sorted[-1]

    def pop(self) -> Entry:
        """Take the earliest entry; there must be one."""
        if not self.sorted and not self.fresh:
            self.turn()
        self.count -= 1
        if self.fresh and (not self.sorted or self.fresh[0] < self.sorted[-1]):
            return heapq.heappop(self.fresh)
        return self.sorted.pop()

    def turn(self) -> None:
        """Go to the next bucket."""
        if len(self.buckets) * SPARSE > self.count > CROWDED and self.scale <= 1:
            self.widen(1 / FACTOR)
        while True:
            self.current = heapq.heappop(self.numbers)
            entries = self.buckets.pop(self.current)
            entries.sort(reverse=True)
            last, first = (int(entry[0] * self.scale * FACTOR) for entry in (entries[0], entries[-1]))
            if len(entries) <= CROWDED or first == last:  # those of one instant stay together anyhow
                self.sorted = entries
                return
            self.buckets[self.current] = entries
            heapq.heappush(self.numbers, self.current)
            self.widen(FACTOR)

    def widen(self, factor: float) -> None:
        """Sort all entries into buckets that are narrower by a factor, or wider where it is below 1."""
        self.scale *= factor
        entries = [entry for bucket in self.buckets.values() for entry in bucket]
        self.buckets, self.current = {}, -1
        for entry in entries:
            self.buckets.setdefault(int(entry[0] * self.scale), []).append(entry)
        self.numbers = sorted(self.buckets)  # which is a heap
