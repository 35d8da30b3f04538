"""What is found of a prompt, and where: as a plain walk along its blocks finds it, wherever the search begins."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from longspan.core.actions import KVRange
from longspan.core.kv.residence import Residence
from longspan.core.prefixes.index import PrefixIndex
from longspan.core.prefixes.node import Node
from longspan.prefix_keys import KEY_BYTES

BLOCK = 2


@dataclass
class Tree:
    """Residences that go on from each other; a prompt is a path of blocks, each named by all before it.

    holders: instance by position of each prompt that was computed, as far as its own residence and those before it go.
    """

    index: PrefixIndex
    prompts: list[list[int]]
    nodes: list[Node]


def keys_of(prompt: list[int]) -> bytes:
    names = [hash(tuple(prompt[: count + 1])) & (1 << 120) - 1 for count in range(len(prompt))]
    return b"".join([name.to_bytes(KEY_BYTES, "little") for name in names])


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    index, prompts, nodes = PrefixIndex(BLOCK), list[list[int]](), list[Node]()
    for number in range(draw(st.integers(1, 6))):
        parent = draw(st.sampled_from([None, *nodes]))
        before = [] if parent is None else prompts[nodes.index(parent)]
        begin = 0 if parent is None else parent.residence.begin // BLOCK + draw(
            st.integers(1, len(before) - parent.residence.begin // BLOCK)
        )
        own = draw(st.lists(st.integers(0, 2), min_size=1, max_size=5))
        residence = Residence(number, begin * BLOCK)
        for position in range(begin * BLOCK, (begin + len(own)) * BLOCK):
            residence.append([KVRange(draw(st.integers(0, 2)), position, position + 1)])
        prompt = [*before[:begin], *own]
        node = Node(residence, parent, f"r{number}")
        keys = keys_of(prompt)
        for place in range(begin, len(prompt)):
            key = keys[place * KEY_BYTES : (place + 1) * KEY_BYTES]
            node.keys.append(key)
            index.add([key], node)
        prompts.append(prompt)
        nodes.append(node)
    return Tree(index, prompts, nodes)


def owners(node: Node) -> list[int]:
    """By position, walked block by block."""
    found: list[int] = []
    for each in node.path():
        del found[each.residence.begin :]
        for piece in each.residence.ranges():
            found += [piece.instance] * piece.length
    return found


def longest(tree: Tree, prompt: list[int], most: int, allowed: set[int]) -> int:
    best = 0
    for known, node in zip(tree.prompts, tree.nodes, strict=True):
        count = 0
        for position, owner in enumerate(owners(node)):
            if position >= most or owner not in allowed or prompt[: position // BLOCK + 1] != known[
                : position // BLOCK + 1
            ]:
                break
            count += 1
        best = max(best, count // BLOCK * BLOCK)
    return best


@given(trees(), st.data())
def test_the_longest_prefix_is_found_wherever_the_search_begins(tree: Tree, data: st.DataObject) -> None:
    prompt = [*data.draw(st.sampled_from(tree.prompts)), *data.draw(st.lists(st.integers(0, 2), max_size=3))]
    most, near = data.draw(st.integers(0, BLOCK * len(prompt))), data.draw(st.integers(0, 20))
    found = tree.index.longest(keys_of(prompt), most, near)
    assert (0 if found is None else found[1]) == longest(tree, prompt, most, {0, 1, 2})
    if found is None:
        return
    node, length = found
    held = owners(node)[:length]
    assert node.held(length) == {instance: held.count(instance) for instance in sorted(set(held))}
    allowed = data.draw(st.sets(st.integers(0, 2)))
    within = tree.index.longest_within(keys_of(prompt), length, allowed)
    assert (0 if within is None else within[1]) == longest(tree, prompt, length, allowed)


@given(trees(), st.data())
def test_what_has_moved_is_counted_where_it_is(tree: Tree, data: st.DataObject) -> None:
    node = data.draw(st.sampled_from(tree.nodes))
    node.held(node.residence.end)
    residence = data.draw(st.sampled_from(node.path())).residence
    source = data.draw(st.sampled_from(residence.holders))
    residence.move(source, data.draw(st.integers(3, 4)), residence.held(source))
    held = owners(node)
    assert node.held(node.residence.end) == {instance: held.count(instance) for instance in set(held)}


@given(trees(), st.data())
def test_what_others_use_is_counted_from_the_beginning(tree: Tree, data: st.DataObject) -> None:
    for node in tree.nodes:
        node.writer = None
    node = data.draw(st.sampled_from(tree.nodes))
    end = node.residence.begin + BLOCK * data.draw(st.integers(1, len(node.keys)))
    path = node.path()
    for each, behind in zip(path, [*path[1:], None], strict=True):
        each.lengths["user"] = end if behind is None else behind.residence.begin
    for other in tree.nodes:
        common = 0
        for mine, theirs in zip(other.path(), path, strict=False):
            if mine is not theirs:
                break
            common = min(owned_end(other, mine), owned_end(node, theirs) if theirs is not node else end)
        assert other.used(other.residence.end) == common


def owned_end(node: Node, above: Node) -> int:
    """Where the tokens end that a path takes of a node on it."""
    path = node.path()
    place = path.index(above)
    return node.residence.end if above is node else path[place + 1].residence.begin
