"""Mutants: the product with one line changed, and the tests that should notice: `python -m tests.campaign.mutants`.

  --count 200 --seed 1     so many lines, drawn from the seed
  --list                   say what would be changed
  --only FILE              of one file

Changed are constants, comparisons, signs and calls, in the parts that compute or protect. A mutant runs in a copy of
the tree; which tests are asked stands in TESTS, kept by hand: a file of the product and the test files that are about
it. A mutant that no test notices is printed as a survivor.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_SECONDS = 400
UNIT = "tests/unit"
# The product's file, and the test files that are about it.
TESTS: dict[str, tuple[str, ...]] = {
    "run/paths.py": ("test_sealed", "test_experiment", "test_done"),
    "run/ownership.py": ("test_ownership",),
    "run/product.py": ("test_done", "test_sealed"),
    "run/experiment.py": ("test_experiment", "test_sealed"),
    "run/data_set.py": ("test_data_set",),
    "config/seal.py": ("test_sealed", "test_guards_of_a_run"),
    "config/schedule.py": ("test_config", "test_recipe", "test_planning"),
    "layout.py": ("test_layout",),
    "counter.py": ("test_random_numbers",),
    "data/requests.py": ("test_requests",),
    "data/segments.py": ("test_segments",),
    "training/checkpoint.py": ("test_checkpoint",),
    "training/trail.py": ("test_trail",),
    "training/loss.py": ("test_step", "test_finite"),
    "training/metrics.py": ("test_checkpoint", "test_sealed", "test_guards_of_a_run"),
    "store/checks.py": ("test_store_damage", "test_store"),
    "store/packing.py": ("test_packing", "test_store"),
    "store/staging.py": ("test_stage",),
    "models/norm_plain.py": ("test_norm",),
    "evaluation/statistics.py": ("test_statistics",),
    "evaluation/scores.py": ("test_scores",),
    "evaluation/parts.py": ("test_evaluation", "test_scores"),
    "evaluation/groups.py": ("test_groups",),
    "evaluation/measures.py": ("test_statistics", "test_scores", "test_multilabel"),
}  # fmt: skip
COMPARISONS = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
               ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}  # fmt: skip
SIGNS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
         ast.Div: ast.Mult}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: where, and the whole text of the changed file."""

    file: str
    line: int
    before: str
    after: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before}  ->  {self.after}"


def _changes(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Nodes and what they are changed into."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
            yield (
                node,
                ast.Compare(
                    node.left, [COMPARISONS[type(node.ops[0])](), *node.ops[1:]], node.comparators
                ),
            )
        elif isinstance(node, ast.BinOp) and type(node.op) in SIGNS:
            yield node, ast.BinOp(node.left, SIGNS[type(node.op)](), node.right)
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            yield node, ast.Constant(node.value + 1)
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield node, ast.Constant(not node.value)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
            yield node, node.operand
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield node, ast.Expr(ast.Constant(None))
        elif isinstance(node, ast.Raise):
            yield node, ast.Pass()


def mutants_of(file: str) -> list[Mutant]:
    """Every change of a file, each with the file's new text."""
    source = (ROOT / "hpc_stres" / file).read_text("utf-8")
    lines, found = source.splitlines(keepends=True), []
    for node, changed in _changes(ast.parse(source)):
        first, last = node.lineno, node.end_lineno  # type: ignore[attr-defined]
        if first != last:
            continue
        raw = lines[first - 1].encode()
        begin, end = node.col_offset, node.end_col_offset  # type: ignore[attr-defined]
        before, after = raw[begin:end].decode(), ast.unparse(ast.fix_missing_locations(changed))
        if isinstance(node, ast.expr):
            after = f"({after})"
        new = (raw[:begin] + after.encode() + raw[end:]).decode()
        text = "".join([*lines[: first - 1], new, *lines[first:]])
        try:
            compile(text, file, "exec")
        except SyntaxError:
            continue  # inside an f-string
        found.append(Mutant(file, first, before, after, text))
    return found


def draw(seed: int, count: int, only: str | None) -> list[Mutant]:
    """So many mutants, spread evenly over the files."""
    dice, chosen = random.Random(seed), list[Mutant]()
    pools = {file: mutants_of(file) for file in TESTS if only in (None, file)}
    for pool in pools.values():
        dice.shuffle(pool)
    while len(chosen) < count and any(pools.values()):
        file = dice.choice([file for file, pool in pools.items() if pool])
        chosen.append(pools[file].pop())
    return chosen


def is_noticed(mutant: Mutant, tree: Path) -> bool:
    """Whether a test fails with the change."""
    path = tree / "hpc_stres" / mutant.file
    whole = path.read_text("utf-8")
    path.write_text(mutant.text, "utf-8")
    names = [
        f"{UNIT}/{name}.py" for name in TESTS[mutant.file] if (tree / UNIT / f"{name}.py").is_file()
    ]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *names]
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environment,
            capture_output=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True  # it hangs: nobody would miss that
    finally:
        path.write_text(whole, "utf-8")
    if done.returncode not in (0, 1, 2):
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-500:]!r}")
    return done.returncode != 0


def main() -> int:
    """Draw, change, test; the survivors at the end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=list(TESTS))
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    chosen = draw(args.seed, args.count, args.only)
    if args.list:
        print("\n".join(map(str, chosen)))
        return 0
    survivors = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "*.pyc", "runs", "data"),
                        symlinks=True)  # fmt: skip
        for number, mutant in enumerate(chosen, 1):
            noticed = is_noticed(mutant, tree)
            print(f"{number:4d} {'noticed ' if noticed else 'SURVIVED'} {mutant}", flush=True)
            survivors += [] if noticed else [mutant]
    share = 100 * (len(chosen) - len(survivors)) / max(1, len(chosen))
    print(f"\n{len(chosen)} mutants, {share:.0f} % noticed; survivors:")
    print("\n".join(map(str, survivors)) or "none")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
