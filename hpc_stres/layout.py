"""Who computes which positions of the global batch, in which micro-step. Pure: the weights do
not depend on it.

The ranks are cut into teams of equal size. A norm group belongs to one team, whose ranks share it
out; a rank alone is a team of one. A micro-step of a team takes one or more whole groups.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from hpc_stres.errors import ConfigError

# A smaller team is preferred until it would keep the busiest rank this much longer at work
# than an even cut.
TOLERATED_IMBALANCE = 1.25


def group_sizes(global_batch: int, norm_group: int) -> list[int]:
    """Sizes of the interleaved norm groups: 256 by 86 are 86, 85, 85."""
    count = -(-global_batch // norm_group)
    return [len(range(group, global_batch, count)) for group in range(count)]


@dataclass(frozen=True)
class Share:
    """What one rank computes in one micro-step: positions of the global batch and the
    norm group of each."""

    positions: tuple[int, ...]
    groups: tuple[int, ...]

    @cached_property
    def local_groups(self) -> tuple[int, ...]:
        """The group of each position, counted from 0 within this micro-step."""
        numbers = {group: number for number, group in enumerate(sorted(set(self.groups)))}
        return tuple(numbers[group] for group in self.groups)


@dataclass(frozen=True)
class Layout:
    """A plan: `shares[rank][micro_step]`, and the ranks of each team."""

    global_batch: int
    norm_group: int
    world_size: int
    team_size: int
    shares: tuple[tuple[Share, ...], ...]

    @property
    def micro_steps(self) -> int:
        """Micro-steps of one SGD step, the same on every rank."""
        return len(self.shares[0])

    @property
    def teams(self) -> list[list[int]]:
        """Ranks that share norm groups."""
        size = self.team_size
        return [list(range(first, first + size)) for first in range(0, self.world_size, size)]

    def team(self, rank: int) -> list[int]:
        """The team of one rank."""
        return self.teams[rank // self.team_size]

    @property
    def largest_micro_batch(self) -> int:
        """Most videos that any rank takes at once."""
        return max(len(share.positions) for shares in self.shares for share in shares)

    @property
    def busiest(self) -> int:
        """Videos that pass through the slowest rank in one SGD step, waits for its
        neighbours included."""
        return sum(
            max(len(shares[m].positions) for shares in self.shares) for m in range(self.micro_steps)
        )

    def explain(self) -> str:
        """The plan in one line."""
        sizes = group_sizes(self.global_batch, self.norm_group)
        distinct = "/".join(
            str(size) for size in (sizes if len(sizes) <= 4 else sorted(set(sizes), reverse=True))
        )
        counts = sorted(
            {len(share.positions) for shares in self.shares for share in shares if share.positions}
        )
        each = (
            " or ".join(str(count) for count in counts)
            if len(counts) <= 3
            else f"{counts[0]} to {counts[-1]}"
        )
        at_once = max(len(set(share.groups)) for shares in self.shares for share in shares)
        groups = "one group" if at_once == 1 else f"{at_once} groups"
        plural = "s" if len(sizes) > 1 else ""
        text = (
            f"{self.global_batch} = {len(sizes)} group{plural} of {distinct}, {groups} a micro-step"
        )
        if self.team_size > 1:
            text += f" over {self.team_size} ranks"
        teams = self.world_size // self.team_size
        if teams > 1:
            text += f", {teams} teams" if self.team_size > 1 else f" on each of {teams} ranks"
        return f"{text}, {each} a rank, {self.micro_steps} micro-step{'s' if self.micro_steps > 1 else ''}"


def plan(
    global_batch: int,
    norm_group: int,
    world_size: int,
    max_micro_batch: int | None = None,
    unit: int = 1,
) -> Layout:
    """Cut the global batch; whole groups on one rank first, then the fewest ranks a group, then the
    fewest micro-steps.

    No `unit` of a group, so many of its videos in their order, is cut. Refuses with the nearest
    sizes that can be cut.
    """
    _check_sizes(global_batch, norm_group, world_size, max_micro_batch)
    sizes = group_sizes(global_batch, norm_group)
    refuse_unit(sizes, unit)
    limit = max_micro_batch or global_batch
    candidates = [
        team for team in range(1, world_size + 1) if _feasible(sizes, world_size, team, limit, unit)
    ]
    if not candidates:
        raise ConfigError(_refusal(global_batch, norm_group, world_size, limit, unit))
    even = -(-global_batch // world_size)
    layouts = (
        _lay_out(global_batch, norm_group, world_size, team, limit, unit) for team in candidates
    )
    best: Layout | None = None
    for layout in layouts:
        if layout.busiest <= TOLERATED_IMBALANCE * even:
            return layout
        if best is None or layout.busiest < best.busiest:
            best = layout
    assert best is not None
    return best


def _check_sizes(
    global_batch: int, norm_group: int, world_size: int, max_micro_batch: int | None
) -> None:
    named = {"global_batch": global_batch, "norm_group": norm_group, "world_size": world_size}
    if max_micro_batch is not None:
        named["max_micro_batch"] = max_micro_batch
    for name, value in named.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be 1 or more")
    if norm_group > global_batch:
        raise ConfigError(
            f"norm_group {norm_group} is larger than the global batch of {global_batch}"
        )


def refuse_unit(sizes: list[int], unit: int) -> None:
    """A group is a whole number of units, so that no layout needs a kernel of another shape."""
    common = math.gcd(*sizes)
    if unit < 1 or common % unit:
        divisors = sorted(
            (n for n in range(1, common + 1) if common % n == 0), key=lambda n: abs(n - unit)
        )
        distinct = "/".join(str(size) for size in sorted(set(sizes), reverse=True))
        raise ConfigError(
            f"norm groups of {distinct} videos are not whole numbers of units of {unit}.\n"
            f"Nearest training.unit: {', '.join(str(n) for n in sorted(divisors[:2]))}"
        )


def _largest_share(sizes: list[int], team: int, unit: int) -> int:
    """Videos of the largest group that the busiest rank of a team takes."""
    return -(-(max(sizes) // unit) // team) * unit


def _feasible(sizes: list[int], world_size: int, team: int, limit: int, unit: int = 1) -> bool:
    """Every rank has work in each group of its team, and its share fits."""
    if world_size % team:
        return False
    has_work = world_size // team <= len(sizes) and team <= min(sizes) // unit
    return has_work and _largest_share(sizes, team, unit) <= limit


def _lay_out(
    global_batch: int, norm_group: int, world_size: int, team_size: int, limit: int, unit: int
) -> Layout:
    sizes = group_sizes(global_batch, norm_group)
    teams = world_size // team_size
    groups_at_once = _groups_at_once(sizes, team_size, limit, unit)
    # Even numbers of groups a team, dealt so that the longer groups are spread as well.
    hands = [list(range(team, len(sizes), teams)) for team in range(teams)]
    micro_steps = -(-max(len(hand) for hand in hands) // groups_at_once)
    shares: list[tuple[Share, ...]] = []
    for rank in range(world_size):
        hand = hands[rank // team_size]
        steps = _deal(hand, micro_steps)
        shares.append(
            tuple(
                _share(groups, global_batch, len(sizes), team_size, rank % team_size, unit)
                for groups in steps
            )
        )
    return Layout(global_batch, norm_group, world_size, team_size, tuple(shares))


def _groups_at_once(sizes: list[int], team_size: int, limit: int, unit: int) -> int:
    """Whole groups whose shares fit one rank together, the largest ones taken."""
    count, videos = 0, 0
    for size in sorted(sizes, reverse=True):
        videos += _largest_share([size], team_size, unit)
        if videos > limit:
            break
        count += 1
    return count


def _deal(hand: list[int], micro_steps: int) -> list[list[int]]:
    """A team's groups over its micro-steps, evenly; an empty one comes first, so that the
    last is never empty."""
    base, extra = divmod(len(hand), micro_steps)
    counts = [base] * (micro_steps - extra) + [base + 1] * extra
    steps, start = [], 0
    for count in counts:
        steps.append(hand[start : start + count])
        start += count
    return steps


def _share(
    groups: list[int], global_batch: int, group_count: int, team_size: int, member: int, unit: int
) -> Share:
    """The positions that one member of a team takes of some groups: contiguous cuts between units,
    as even as can be."""
    positions: list[int] = []
    owners: list[int] = []
    for group in groups:
        everyone = range(group, global_batch, group_count)
        units = len(everyone) // unit
        start, stop = (units * edge // team_size * unit for edge in (member, member + 1))
        positions += everyone[start:stop]
        owners += [group] * (stop - start)
    return Share(tuple(positions), tuple(owners))


def _refusal(global_batch: int, norm_group: int, world_size: int, limit: int, unit: int) -> str:
    def works(batch: int, group: int, world: int, most: int, unit: int = unit) -> bool:
        if not (1 <= group <= batch and world >= 1):
            return False
        sizes = group_sizes(batch, group)
        if math.gcd(*sizes) % unit:
            return False
        return any(_feasible(sizes, world, team, most, unit) for team in range(1, world + 1))

    worlds = [w for w in range(1, 2 * world_size + 1) if works(global_batch, norm_group, w, limit)]
    below = max((w for w in worlds if w < world_size), default=None)
    above = min((w for w in worlds if w > world_size), default=None)
    hints = [f"{w} ranks" for w in (below, above) if w is not None]
    larger = next(
        (
            m
            for m in range(limit, global_batch + 1)
            if works(global_batch, norm_group, world_size, m)
        ),
        None,
    )
    if larger is not None:
        hints.append(f"max_micro_batch {larger}")
    smaller = (
        u for u in range(unit - 1, 0, -1) if works(global_batch, norm_group, world_size, limit, u)
    )
    fewer = next(smaller, None)
    if fewer is not None:
        hints.append(f"training.unit {fewer}")
    nearest = sorted(range(1, global_batch + 1), key=lambda g: abs(g - norm_group))
    group = next((g for g in nearest if works(global_batch, g, world_size, limit)), None)
    if group is not None:
        hints.append(f"norm_group {group}")
    units = f" in units of {unit}" if unit > 1 else ""
    return (
        f"a global batch of {global_batch} in norm groups of {norm_group} cannot be cut over {world_size} ranks "
        f"with at most {limit} videos a rank at once{units}.\nNearest that can: {', or '.join(hints) or 'none'}"
    )
