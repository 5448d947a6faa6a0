"""How often 95 % intervals hold the truth, and how often tests find a difference where there is none.

  python -m tests.campaigns.coverage                                  the shape of UCF101's first test list
  python -m tests.campaigns.coverage --list testlist01.txt            that list itself
  python -m tests.campaigns.coverage --rounds 500 --accuracies 0.5,0.99

Each round draws a logit for every recording (a normal deviate of `deviation` around its class's) and answers for its
clips by it. The truth is the mean probability over all recordings that could have been drawn, by Gauss-Hermite.
"""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from hpc_stres.evaluation import statistics

CLASSES, RECORDINGS, CLIPS = 101, 7, 3783
DEVIATIONS = (0.0, 1.0, 2.0)


def shape_of_testlist01(seed=0):
    """Labels and groups with its counts: 101 classes of 7 recordings of 4 to 7 clips, 3,783 clips in all."""
    random = np.random.default_rng(seed)
    sizes = random.integers(4, 8, CLASSES * RECORDINGS)
    while sizes.sum() != CLIPS:
        place = random.integers(len(sizes))
        sizes[place] = np.clip(sizes[place] + np.sign(CLIPS - sizes.sum()), 4, 7)
    labels = np.repeat(np.repeat(np.arange(CLASSES), RECORDINGS), sizes)
    return labels, [f"r{number}" for number in np.repeat(np.arange(len(sizes)), sizes)]


def read_list(path):
    """Labels and groups of a list in UCF101's form."""
    names = [line.split()[0] for line in Path(path).read_text().splitlines() if line.strip()]
    classes = sorted({name.split("/")[0] for name in names})
    groups = [re.sub(r"_c\d+(\.\w+)?$", "", name) for name in names]
    return np.array([classes.index(name.split("/")[0]) for name in names]), groups


def logistic(value):
    return 1 / (1 + np.exp(-value))


def expected(centre, deviation, points=64):
    """Mean of logistic(centre + deviation x) over a normal x."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    return (logistic(np.asarray(centre)[..., None] + deviation * nodes) * weights).sum(
        -1
    ) / weights.sum()


def centre_for(accuracy, deviation):
    """The logit around which recordings have this mean accuracy."""
    low, high = -30.0, 30.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle, deviation) < accuracy else (low, middle)
    return (low + high) / 2


class World:
    """A test list, and networks whose accuracies are known."""

    def __init__(self, labels, groups, accuracy, deviation, class_deviation, random):
        self.labels, self.random, self.deviation = labels, random, deviation
        self.plan = statistics.design(labels, groups)
        offsets = class_deviation * random.standard_normal(labels.max() + 1)
        self.centres = centre_for(accuracy, deviation) + offsets[labels]
        self.chance = expected(self.centres, deviation)
        self.weights = statistics.class_weights(labels)
        self.truth = {
            "top-1": self.chance.mean(),
            "mean class": np.average(self.chance, weights=self.weights),
        }

    def answers(self, logits=None):
        """Which clips are right; a second network may share the recordings' logits."""
        own = (
            self.deviation * self.random.standard_normal(self.plan.count)
            if logits is None
            else logits
        )
        chance = logistic(self.centres + own[self.plan.recordings])
        return self.random.random(len(self.labels)) < chance, own


def coverage(world, rounds):
    """Share of rounds whose interval holds the truth; `naive` is Wilson's, as if clips were independent."""
    held, width = Counter(), Counter()
    for _ in range(rounds):
        right, _ = world.answers()
        intervals = {
            "top-1": statistics.share_interval(right, world.plan),
            "mean class": statistics.share_interval(right, world.plan, world.weights),
        }
        truth = {**world.truth, "naive": world.truth["top-1"]}
        intervals["naive"] = statistics.wilson(right.mean(), len(right))
        for name, (low, high) in intervals.items():
            held[name] += low <= truth[name] <= high
            width[name] += high - low
    return {name: (count / rounds, width[name] / rounds) for name, count in held.items()}


def size_and_coverage(world, rounds, shared):
    """Of two networks of equal accuracy: how often the test says they differ, and the interval holds 0."""
    rejected = held = naive = 0
    for _ in range(rounds):
        one, logits = world.answers()
        two, _ = world.answers(logits if shared else None)
        differences = two.astype(np.int64) - one
        rejected += statistics.sign_flip_p(differences, world.plan) < 0.05
        naive += (
            statistics.mcnemar_p(int((differences < 0).sum()), int((differences > 0).sum())) < 0.05
        )
        _, low, high = statistics.difference_interval(differences.astype(np.float64), world.plan)
        held += low <= 0 <= high
    return rejected / rounds, held / rounds, naive / rounds


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", help="a list of CLASS/v_CLASS_gNN_cNN.avi")
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--accuracies", default="0.6,0.82,0.93")
    parser.add_argument(
        "--class-deviation", type=float, default=1.0, help="deviation of the classes' logits"
    )
    args = parser.parse_args(argv)
    labels, groups = read_list(args.list) if args.list else shape_of_testlist01()
    random = np.random.default_rng(args.seed)
    print(
        f"{len(labels)} clips, {len(set(groups))} recordings, {labels.max() + 1} classes, {args.rounds} rounds"
    )
    print(
        "accuracy  deviation   top-1  mean class   naive   |  size of the test (networks alike, not)  interval  naive"
    )
    failed = False
    for accuracy in map(float, args.accuracies.split(",")):
        for deviation in DEVIATIONS:
            world = World(labels, groups, accuracy, deviation, args.class_deviation, random)
            found = coverage(world, args.rounds)
            alike, own = (size_and_coverage(world, args.rounds, shared) for shared in (True, False))
            cells = [100 * found[name][0] for name in ("top-1", "mean class", "naive")]
            words = f"{accuracy:8.2f}  {deviation:9.1f}  {cells[0]:6.1f}  {cells[1]:10.1f}  {cells[2]:6.1f}   |  "
            tests = "  ".join(f"{100 * value:.1f}" for value in (alike[0], *own))
            print(words + tests, flush=True)
            failed |= not all(93 <= cell <= 97 for cell in cells[:2])
            failed |= not all(0.03 <= size <= 0.07 for size in (alike[0], own[0]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
