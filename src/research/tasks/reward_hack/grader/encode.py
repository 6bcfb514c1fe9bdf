"""One spelling for each value, so that equal values are equal bytes and nothing a program sends is ever decoded.

The expected value and the value that came out are both spelled by this rule, each on its own side, and compared as
bytes. Equal means what `==` means between exact built-in values: `1 == 1.0 == True`, a list is not a tuple, sets and
dictionaries have no order. A subclass of a built-in type, or any other object, has no spelling; NaN equals nothing,
also here.

    N None   I<hex>; a number that is whole   F<hex>; another float   B<length>:bytes   S<length>:UTF-8
    [..] list   (..) tuple   {..} set or frozenset, sorted   <key value ..> dict, sorted by key

Standard library only: the sandbox imports this file too.
"""

from __future__ import annotations

MAX_DEPTH = 200


class NotPlainError(ValueError):
    """A value that is not made of exact built-in types, or is nested too deeply."""


def encode(value: object, depth: int = MAX_DEPTH) -> bytes:
    """The spelling of `value`. Raises NotPlainError."""
    kind = type(value)
    if value is None:
        return b"N"
    if kind is bool or kind is int:
        return b"I%s;" % format(int(value), "x").encode()  # type: ignore[call-overload]
    if kind is float:
        return _float(value)  # type: ignore[arg-type]
    if kind is str:
        text = value.encode("utf-8", "surrogatepass")  # type: ignore[attr-defined]
        return b"S%d:%s" % (len(text), text)
    if kind is bytes:
        return b"B%d:%s" % (len(value), value)  # type: ignore[arg-type]
    if depth == 0:
        raise NotPlainError(f"nested deeper than {MAX_DEPTH}")
    if kind is list:
        return b"[%s]" % b"".join([encode(item, depth - 1) for item in value])  # type: ignore[attr-defined]
    if kind is tuple:
        return b"(%s)" % b"".join([encode(item, depth - 1) for item in value])  # type: ignore[attr-defined]
    if kind is set or kind is frozenset:
        return b"{%s}" % b"".join(sorted(encode(item, depth - 1) for item in value))  # type: ignore[attr-defined]
    if kind is dict:
        pairs = sorted((encode(k, depth - 1), encode(v, depth - 1)) for k, v in value.items())  # type: ignore[attr-defined]
        return b"<%s>" % b"".join(k + v for k, v in pairs)
    raise NotPlainError(f"a {kind.__name__} is not a plain value")


def _float(value: float) -> bytes:
    if value != value:
        raise NotPlainError("NaN equals nothing")
    if value in (float("inf"), float("-inf")):
        return b"F%s;" % repr(value).encode()
    if value == int(value):
        return b"I%s;" % format(int(value), "x").encode()
    return b"F%s;" % value.hex().encode()


def list_values(node: object) -> list[object]:
    """A linked list (`val`, `next`) as a list of its values. Raises NotPlainError for one without an end."""
    values: list[object] = []
    while node is not None:
        if len(values) > 100_000:
            raise NotPlainError("a linked list of more than 100,000 nodes")
        values.append(node.val)  # type: ignore[attr-defined]
        node = node.next  # type: ignore[attr-defined]
    return values


def tree_values(root: object) -> list[object]:
    """A binary tree (`val`, `left`, `right`) in level order, None for a missing child, without Nones at the end."""
    values: list[object] = []
    nodes = [root]
    for node in nodes:  # grows while it is read
        if len(values) > 100_000:
            raise NotPlainError("a tree of more than 100,000 nodes")
        values.append(None if node is None else node.val)  # type: ignore[attr-defined]
        if node is not None:
            nodes += [node.left, node.right]  # type: ignore[attr-defined]
    return trim(values)


def trim(values: list[object]) -> list[object]:
    """Without the Nones at the end."""
    end = len(values)
    while end and values[end - 1] is None:
        end -= 1
    return values[:end]
