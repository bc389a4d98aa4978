# SPDX-License-Identifier: Apache-2.0
"""
How two C declarations differ.

Two types are alike when code compiled for the one can call code compiled for the other: equal sizes,
signedness, depth of pointers and offsets of members; equal tags where a structure is only a name. ``const``
and the names of parameters do not matter, nor whether a number is written as an enumeration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tools.declarations import INTEGERS, Array, Function, Member, Pointer, Record, Scalar, Type, Void, size_of


def differences(ours: Type, theirs: Type, *, older: bool = False) -> list[str]:
    """
    Where two types are not alike, each as "place: ours, theirs"; nothing when they are.

    older
        theirs comes from a header that is older than what ours was written after: a member that it does not know
        may lie where it has kept room, or be a further alternative in a union.
    """
    comparison = Comparison(older)
    comparison.types("", ours, theirs)
    return comparison.found


def are_alike(ours: Scalar, theirs: Scalar) -> bool:
    """Whether two numbers are passed alike; the sign of an enumeration is the compiler's choice."""
    signs = {ours.kind, theirs.kind} <= set(INTEGERS) and (ours.is_enumeration or theirs.is_enumeration)
    return ours.size == theirs.size and (ours.kind == theirs.kind or signs)


def is_raw(type_: Type) -> bool:
    """Whether a member is only there to take its room."""
    return isinstance(type_, Array) and isinstance(type_.of, Scalar) and type_.of.kind in INTEGERS


def is_reserve(member: Member) -> bool:
    return re.match(r"_?(reserved|pad)", member.name) is not None


@dataclass
class Comparison:
    """One walk through two types, and what it has found."""

    older: bool
    found: list[str] = field(default_factory=list)
    met: set[tuple[int, int]] = field(default_factory=set)

    def unlike(self, at: str, ours: Type, theirs: Type) -> None:
        self.found.append(f"{at or 'it'}: ours is {ours}, theirs {theirs}")

    def types(self, at: str, ours: Type, theirs: Type) -> None:
        match ours, theirs:
            case Void(), Void():
                pass
            case Scalar(), Scalar() if are_alike(ours, theirs):
                pass
            case Pointer(), Pointer():
                self.types(f"{at} *".strip(), ours.to, theirs.to)
            case Array(), Array() if ours.count == theirs.count:
                self.types(f"{at}[]", ours.of, theirs.of)
            case Function(), Function():
                self.functions(at, ours, theirs)
            case Record(), Record():
                if (id(ours), id(theirs)) not in self.met:
                    self.met.add((id(ours), id(theirs)))
                    self.records(at, ours, theirs)
            case _ if is_raw(ours) and isinstance(theirs, Array | Record) and size_of(ours) == size_of(theirs):
                pass
            case _:
                self.unlike(at, ours, theirs)

    def functions(self, at: str, ours: Function, theirs: Function) -> None:
        self.types(f"{at} return value".strip(), ours.returns, theirs.returns)
        if len(ours.parameters) != len(theirs.parameters):
            counts = f"{len(ours.parameters)} parameters, theirs {len(theirs.parameters)}"
            self.found.append(f"{at} takes {counts}".strip())
            return
        for index, (own, other) in enumerate(zip(ours.parameters, theirs.parameters, strict=True), 1):
            self.types(f"{at} parameter {index}".strip(), own, other)

    def records(self, at: str, ours: Record, theirs: Record) -> None:
        if not (ours.complete and theirs.complete):
            if ours.tag != theirs.tag:
                self.unlike(at, ours, theirs)
            return
        where = f"{at} {ours.tag or theirs.tag}".strip()
        if ours.size != theirs.size:
            self.found.append(f"{where}: ours has {ours.size} bytes, theirs {theirs.size}")
        self.members(where, ours, theirs)
        taken = {bit for member in ours.named() for bit in range(member.offset, member.offset + member.bits)}
        for member in theirs.named():
            if not taken.issuperset(range(member.offset, member.offset + member.bits)):
                self.found.append(f"{where}: ours has nothing at {member.place}, where theirs has {member.name}")

    def members(self, where: str, ours: Record, theirs: Record) -> None:
        """Each member of ours; what theirs has besides is looked at by who calls this."""
        known = {member.name: member for member in theirs.named()}
        for member in ours.named():
            other = known.get(member.name)
            if is_raw(member.type) and (other is None or is_reserve(member)):
                continue  # takes room, and says nothing about what is in it
            if other is None:
                if not (self.older and may_be_newer(member, theirs)):
                    self.found.append(f"{where}.{member.name} ({member.place}): theirs has no such member")
            elif is_alternative(member, ours) and member.bits < other.bits and member.offset == other.offset:
                self.starts(f"{where}.{member.name}", member.type, other.type)
            elif (member.offset, member.bits) != (other.offset, other.bits):
                self.found.append(f"{where}.{member.name}: ours is at {member.place}, theirs at {other.place}")
            else:
                self.alternatives(f"{where}.{member.name}", member.type, other.type)

    def alternatives(self, at: str, ours: Type, theirs: Type) -> None:
        """Equal in place and size; theirs may have put the only value into a structure."""
        if isinstance(theirs, Record) and theirs.complete and not isinstance(ours, Record) and not is_raw(ours):
            self.starts(at, ours, theirs)
        else:
            self.types(at, ours, theirs)

    def starts(self, at: str, ours: Type, theirs: Type) -> None:
        """Ours is the beginning of theirs: what a union holds may grow."""
        if isinstance(ours, Record) and isinstance(theirs, Record) and ours.complete and theirs.complete:
            self.members(at, ours, theirs)
        elif isinstance(theirs, Record) and (first := next(theirs.named(), None)) is not None:
            self.starts(at, ours, first.type)
        else:
            self.types(at, ours, theirs)


def is_alternative(member: Member, record: Record) -> bool:
    """Whether others lie where a member lies: it is of a union."""
    return sum(member.offset == other.offset for other in record.named()) > 1


def may_be_newer(member: Member, theirs: Record) -> bool:
    """Whether an older header leaves room for a member that it does not know yet."""
    return (theirs.union and member.offset + member.bits <= theirs.size * 8) or any(
        is_reserve(other) and other.offset <= member.offset and member.offset + member.bits <= other.offset + other.bits
        for other in theirs.named()
    )
