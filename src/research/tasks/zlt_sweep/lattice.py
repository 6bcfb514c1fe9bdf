"""The sweep's cells arranged by learning rate and epochs: a lattice for each group, seeds gathered at each place.

A group is what shares every setting but lr, epochs and seed. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from research.reporting.rows import Row, count, is_done, rate, setting, varying
from research.reporting.tables import number
from research.scoring.statistics import Estimate, mean_interval
from research.tasks.zlt_sweep.derive import bystander_rates, leak, persona_rates, regime, regime_of

WITHIN_GROUP = ("lr", "epochs", "seed")


@dataclass
class Place:
    """One (lr, epochs) with a row for each seed."""

    lr: float
    epochs: int
    rows: list[Row] = field(default_factory=list)

    @property
    def done(self) -> list[Row]:
        return [row for row in self.rows if is_done(row)]

    @property
    def mark(self) -> str:
        """What a figure writes where there is no result: × for a failed cell, – for a missing one."""
        return "×" if any(row.get("status") == "failed" for row in self.rows) else "–"

    def mean(self, name: str) -> float | None:
        """Mean of a top-level number over the seeds that have it."""
        values = [row[name] for row in self.done if row.get(name) is not None]
        return sum(values) / len(values) if values else None

    def estimate(self, name: str) -> Estimate | None:
        """One seed: the rate with Wilson's interval, where counts are known.

        Several: the mean with a t-interval over seeds.
        """
        found = [row for row in self.done if row.get(name) is not None]
        if not found:
            return None
        if len(found) == 1:
            return rate(found[0], name) or Estimate(found[0][name], float("nan"), float("nan"), 0)
        return mean_interval([row[name] for row in found])

    @property
    def leak(self) -> float | None:
        """Highest rate of any persona but the source, mean over seeds."""
        values = [value for row in self.done if (value := leak(row)) is not None]
        return sum(values) / len(values) if values else None

    @property
    def regime(self) -> str | None:
        source, spread = self.mean("source_marker"), self.leak
        return None if source is None or spread is None else regime(source, spread)

    @property
    def clean(self) -> bool:
        """Whether every seed is clean by itself, which the mean over seeds does not tell."""
        return bool(self.done) and all(regime_of(row) == "clean" for row in self.done)

    def persona(self, name: str) -> float | None:
        values = [rates[name] for row in self.done if name in (rates := persona_rates(row))]
        return sum(values) / len(values) if values else None

    def worst(self) -> str:
        """Which bystander has the maximum, over the mean of the seeds.

        `N tied` where several do, empty where none shows the marker.
        """
        names = dict.fromkeys(
            name for row in self.done for name in bystander_rates(persona_rates(row), row["config"]["source"])
        )
        rates = {name: self.persona(name) or 0.0 for name in names}
        top = max(rates.values(), default=0.0)
        best = [name for name, value in rates.items() if value == top]
        return "" if top == 0 else ", ".join(best) if len(best) <= 2 else f"{len(best)} tied"


@dataclass
class Group:
    """A lattice: what its cells share, and its places by (lr, epochs)."""

    label: str
    places: dict[tuple[float, int], Place]

    @property
    def lrs(self) -> list[float]:
        return sorted({lr for lr, _ in self.places})

    @property
    def epochs(self) -> list[int]:
        return sorted({epochs for _, epochs in self.places})

    @property
    def rows(self) -> list[Row]:
        return [row for place in self.ordered for row in place.rows]

    @property
    def ordered(self) -> list[Place]:
        return [self.places[key] for key in sorted(self.places)]

    @property
    def done(self) -> list[Place]:
        return [place for place in self.ordered if place.done]

    @property
    def source(self) -> str:
        return str(setting(self.rows[0], "task.source", "source"))

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for row in self.rows if (seed := setting(row, "seed")) is not None})

    @property
    def unit(self) -> str:
        """What a point of the lattice is called: with several seeds it is several cells."""
        return "place" if len(self.seeds) > 1 else "cell"

    @property
    def personas(self) -> list[str]:
        """The source first, the assistant next, then the others in the files' order."""
        names = list(dict.fromkeys(name for place in self.done for row in place.done for name in persona_rates(row)))
        first = [name for name in dict.fromkeys((self.source, "assistant")) if name in names]
        return first + [name for name in names if name not in first]

    @property
    def trials(self) -> list[int]:
        """Completions a persona and cell: the distinct numbers over the cells, empty where unknown."""
        return sorted({found[1] for place in self.done for row in place.done if (found := count(row, "source_marker"))})

    @property
    def slug(self) -> str:
        return re.sub(r"[^\w.+-]+", "_", self.label).strip("_")


def groups(rows: Sequence[Row]) -> list[Group]:
    """The rows by what they share apart from lr, epochs and seed; in the order in which they first occur."""
    names = varying(rows, WITHIN_GROUP)
    found: dict[str, Group] = {}
    for row in rows:
        label = ", ".join(f"{name.split('.')[-1]} {number(setting(row, name))}" for name in names)
        group = found.setdefault(label, Group(label, {}))
        where = (float(setting(row, "lr")), int(setting(row, "epochs")))
        group.places.setdefault(where, Place(*where)).rows.append(row)
    return list(found.values())


def one_seed(group: Group, seed: int) -> Group:
    """The part of a group that one seed ran."""
    places = {
        where: Place(*where, [row for row in place.rows if setting(row, "seed") == seed])
        for where, place in group.places.items()
    }
    label = ", ".join(part for part in (group.label, f"seed {seed}") if part)
    return Group(label, {where: place for where, place in places.items() if place.rows})
