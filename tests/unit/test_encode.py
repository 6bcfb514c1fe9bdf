"""Values are equal exactly when their spellings are."""

import itertools

import pytest

from research.tasks.reward_hack.grader.encode import NotPlainError, encode, list_values, tree_values, trim

VALUES = [
    None, True, False, 0, 1, -1, 255, 10**30, 1.0, 0.5, -0.0, 1e300, float("inf"), float("-inf"), "", "a", "1", "ä",
    "\ud800", b"a", [], [1], [1.0], [[1], 2], [1, [2]], (), (1,), set(), frozenset(), {1, 2}, frozenset({2, 1}), {},
    {1: 2}, {1: 2, 3: 4}, {3: 4, 1: 2}, {"a": [1]}, ["a", "b"], ["ab"], [None], [True], {None: ()}, [12, 3], [1, 23],
    {"I1;": 1}, "I1;", ["]"], "]",
]  # fmt: skip


def test_equal_bytes_mean_equal_values():
    for a, b in itertools.product(VALUES, repeat=2):
        assert (encode(a) == encode(b)) == (a == b), (a, b)


class Lying(int):
    def __eq__(self, other):
        return True

    def __hash__(self):
        return 1


class Named(str):
    pass


@pytest.mark.parametrize(
    "value", [Lying(1), [Lying(1)], {Lying(1)}, {Named("a"): 1}, object(), range(3), float("nan"), [float("nan")]]
)
def test_what_is_not_plain_has_no_spelling(value):
    with pytest.raises(NotPlainError):
        encode(value)


def test_depth_is_limited():
    value: list = []
    value.append(value)
    with pytest.raises(NotPlainError, match="deeper"):
        encode(value)


class Node:
    def __init__(self, val, next=None, left=None, right=None):
        self.val, self.next, self.left, self.right = val, next, left, right


def test_linked_lists_and_trees_become_lists():
    assert list_values(Node(1, Node(2))) == [1, 2]
    assert list_values(None) == []
    tree = Node(1, left=None, right=Node(3, left=Node(4)))
    assert tree_values(tree) == [1, None, 3, 4]
    assert tree_values(None) == []
    assert trim([1, None, None]) == [1]


def test_an_endless_list_is_refused():
    node = Node(1)
    node.next = node
    with pytest.raises(NotPlainError):
        list_values(node)
    node.left = node
    with pytest.raises(NotPlainError):
        tree_values(node)
