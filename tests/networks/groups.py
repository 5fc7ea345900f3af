"""What a structure found, in lists that a test can write down by hand."""

from __future__ import annotations

from secateur.structure.units import Group, Structure

Members = dict[tuple[str, int], list[list[int]]]


def members(group: Group) -> Members:
    """What each unit of a group has in each tensor."""
    return {(part.name, part.dim): part.indices.tolist() for part in group.slices}


def only(structure: Structure) -> Group:
    """The one group of a structure."""
    (group,) = structure.groups.values()
    return group


def singles(number: int) -> list[list[int]]:
    return [[i] for i in range(number)]


def reasons(structure: Structure) -> dict[tuple[str, int], str]:
    return {(p.name, p.dim): p.reason for p in structure.protected}
