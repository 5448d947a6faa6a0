"""What is changed in a line of the product: constants, comparisons, signs, joints, calls, refusals.

Pure: text in, changed texts out. Left as they are: what declares (decorators, annotations), what
only words a message (f-strings, the inside of a `raise`), and options that say how text is laid out
or what a type checker asks for (LAYOUT).
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
SIGNS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Div: ast.Mult,
}  # fmt: skip
JOINTS = {ast.And: ast.Or, ast.Or: ast.And}
OTHER_NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
LAYOUT = {"strict", "indent", "ensure_ascii", "stacklevel", "maxsize", "flush", "parents"}


@dataclass(frozen=True)
class Mutant:
    """One change: where, and the whole text of the changed file."""

    file: str
    line: int
    source: str
    """The line as it is, without its margin: an argument for a survivor names it."""
    before: str
    after: str
    text: str

    def __str__(self) -> str:
        shown = (" ".join(part.split()) for part in (self.before, self.after))
        return f"{self.file}:{self.line}: {'  ->  '.join(shown)}"


def mutants_of(file: str, source: str) -> list[Mutant]:
    """Every change of a file, each with the file's new text."""
    raw = source.encode()
    lines = raw.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    made = []
    for node, changed in _changes(ast.parse(source)):
        begin = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[operator]
        after = ast.unparse(ast.fix_missing_locations(changed))
        if isinstance(node, ast.expr):
            after = f"({after})"
        text = (raw[:begin] + after.encode() + raw[end:]).decode()
        shown = lines[node.lineno - 1].decode().strip()
        made.append(Mutant(file, node.lineno, shown, raw[begin:end].decode(), after, text))
    return made


def _changes(tree: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, ast.AST]]:
    """Nodes and what they are changed into."""
    for node in _acting(tree):
        changed = _changed(node)
        if changed is not None:
            assert isinstance(node, (ast.expr, ast.stmt))
            yield node, changed


def _acting(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it, without what only declares or words."""
    yield node
    if isinstance(node, (ast.Raise, ast.JoinedStr)):
        return
    passed = {"decorator_list", "annotation", "returns", "type_params"}
    for name, value in ast.iter_fields(node):
        if name in passed:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.keyword) and child.arg in LAYOUT:
                continue
            if isinstance(child, ast.AST):
                yield from _acting(child)


def _changed(node: ast.AST) -> ast.AST | None:
    """What a node becomes; None for one that stays."""
    match node:
        case ast.Compare(left, [first, *others], right) if type(first) in COMPARISONS:
            return ast.Compare(left, [COMPARISONS[type(first)](), *others], right)
        case ast.BinOp(left, sign, right) if type(sign) in SIGNS and not _is_text(left, right):
            return ast.BinOp(left, SIGNS[type(sign)](), right)
        case ast.AugAssign(target, sign, value) if type(sign) in SIGNS:
            return ast.AugAssign(target, SIGNS[type(sign)](), value)
        case ast.BoolOp(joint, values):
            return ast.BoolOp(JOINTS[type(joint)](), values)
        case ast.Constant(bool(value)):
            return ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            return ast.Constant(value + 1)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            return operand
        case ast.Call(ast.Name(name), arguments, keywords) if name in OTHER_NAMES:
            return ast.Call(ast.Name(OTHER_NAMES[name]), arguments, keywords)
        case ast.Expr(ast.Call()):
            return ast.Expr(ast.Constant(None))
        case ast.Raise():
            return ast.Pass()
    return None


def _is_text(*sides: ast.expr) -> bool:
    """Whether a sum is one of texts, as far as can be seen."""
    return any(
        isinstance(side, ast.JoinedStr)
        or (isinstance(side, ast.Constant) and isinstance(side.value, (str, bytes)))
        for side in sides
    )
