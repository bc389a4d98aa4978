# SPDX-License-Identifier: Apache-2.0
"""
What a C header declares, as the compiler understands it.

Nothing here reads C. The compiler does, and writes what it found into its debugging information: every
prototype, every layout, every enumerator, with all typedefs and macros resolved. So one reader serves our
headers, NVIDIA's, and the bodies of the simulated GPU. ``differences.py`` compares.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import build
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

# ---- types --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Void:
    def __str__(self) -> str:
        return "void"


@dataclass(frozen=True)
class Scalar:
    name: str
    size: int
    kind: str
    """``signed``, ``unsigned``, ``float``, ``bool`` or ``other``."""

    @property
    def is_enumeration(self) -> bool:
        return self.name.startswith("enum")

    def __str__(self) -> str:
        if self.is_enumeration or self.kind not in INTEGERS:
            return self.name
        return f"{'u' if self.kind == 'unsigned' else ''}int{self.size * 8}"


INTEGERS = ("signed", "unsigned")


@dataclass(frozen=True)
class Pointer:
    to: Type

    def __str__(self) -> str:
        return f"{self.to} *" if not isinstance(self.to, Function) else f"pointer to {self.to}"


@dataclass(frozen=True)
class Array:
    of: Type
    count: int

    def __str__(self) -> str:
        return f"{self.of} [{self.count}]"


@dataclass(frozen=True)
class Function:
    returns: Type
    parameters: tuple[Type, ...]

    def __str__(self) -> str:
        return f"{self.returns} ({', '.join(map(str, self.parameters)) or 'void'})"


@dataclass(frozen=True)
class Member:
    name: str
    offset: int
    """In bits."""
    bits: int
    type: Type

    @property
    def place(self) -> str:
        """Where it lies, for people."""
        whole = self.offset % 8 == 0 and self.bits % 8 == 0
        return f"bytes {self.offset // 8}+{self.bits // 8}" if whole else f"bits {self.offset}+{self.bits}"


@dataclass(eq=False)
class Record:
    """A structure or a union; equal only to itself, because it may contain a pointer to itself."""

    tag: str
    size: int = 0
    complete: bool = False
    union: bool = False
    members: list[Member] = field(default_factory=list)

    def __str__(self) -> str:
        return f"struct {self.tag or '(unnamed)'}"

    def named(self, at: int = 0) -> Iterator[Member]:
        """The members by name, those of unnamed members as its own."""
        for member in self.members:
            if member.name or not isinstance(member.type, Record):
                yield Member(member.name, at + member.offset, member.bits, member.type)
            else:
                yield from member.type.named(at + member.offset)


Type = Void | Scalar | Pointer | Array | Function | Record


@dataclass
class Declarations:
    """What one header, or one compiled file, says."""

    functions: dict[str, Type] = field(default_factory=dict)
    types: dict[str, Type] = field(default_factory=dict)
    """By typedef name."""
    constants: dict[str, int] = field(default_factory=dict)
    """Enumerators, and those macros that were asked for."""
    alignments: dict[str, int] = field(default_factory=dict)


# ---- reading debugging information ------------------------------------------------------------------------

ENCODINGS = {2: "bool", 4: "float", 5: "signed", 6: "signed", 7: "unsigned", 8: "unsigned"}


class Reader:
    """Types of one compiled file, each made once."""

    def __init__(self, dwarf: Any) -> None:
        self.units = list(dwarf.iter_CUs())
        self.known: dict[int, Type] = {}

    def type_of(self, die: Any) -> Type:
        """The type that an entry refers to; without one, ``void``."""
        if "DW_AT_type" not in die.attributes:
            return Void()
        target = die.get_DIE_from_attribute("DW_AT_type")
        if target.offset not in self.known:
            made = self.make(target)
            self.known[target.offset] = made
        return self.known[target.offset]

    def make(self, die: Any) -> Type:
        name, size = text(die, "DW_AT_name"), number(die, "DW_AT_byte_size")
        match die.tag:
            case "DW_TAG_base_type":
                return Scalar(name, size, ENCODINGS.get(number(die, "DW_AT_encoding"), "other"))
            case "DW_TAG_enumeration_type":
                return Scalar(f"enum {name}".strip(), size, self.kind_of_enumeration(die))
            case "DW_TAG_pointer_type":
                return Pointer(self.type_of(die))
            case "DW_TAG_subroutine_type" | "DW_TAG_subprogram":
                return self.function(die)
            case "DW_TAG_array_type":
                made = self.type_of(die)
                for length in reversed([length_of(child) for child in die.iter_children()]):
                    made = Array(made, length)
                return made
            case "DW_TAG_structure_type" | "DW_TAG_union_type":
                complete, union = "DW_AT_declaration" not in die.attributes, die.tag == "DW_TAG_union_type"
                return self.record(die, Record(name, size, complete, union))
            case _:  # a typedef, or a qualifier
                return self.type_of(die)

    def function(self, die: Any) -> Function:
        parameters = [child for child in die.iter_children() if child.tag == "DW_TAG_formal_parameter"]
        return Function(self.type_of(die), tuple(self.type_of(child) for child in parameters))

    def kind_of_enumeration(self, die: Any) -> str:
        underlying = self.type_of(die)
        if isinstance(underlying, Scalar):
            return underlying.kind
        return "signed" if any(value < 0 for _, value in enumerators(die)) else "unsigned"

    def record(self, die: Any, made: Record) -> Record:
        self.known[die.offset] = made  # first: a member may point back
        for child in die.iter_children():
            if child.tag != "DW_TAG_member":
                continue
            type_ = self.type_of(child)
            bits = number(child, "DW_AT_bit_size") or size_of(type_) * 8
            offset = number(child, "DW_AT_data_bit_offset") or number(child, "DW_AT_data_member_location") * 8
            if "DW_AT_bit_offset" in child.attributes:  # counted from the other end of its storage
                storage = number(child, "DW_AT_byte_size") or size_of(type_)
                offset += storage * 8 - number(child, "DW_AT_bit_offset") - bits
            made.members.append(Member(text(child, "DW_AT_name"), offset, bits, type_))
        return made


def text(die: Any, attribute: str) -> str:
    return die.attributes[attribute].value.decode() if attribute in die.attributes else ""


def number(die: Any, attribute: str) -> int:
    return int(die.attributes[attribute].value) if attribute in die.attributes else 0


def length_of(subrange: Any) -> int:
    return number(subrange, "DW_AT_count") or (
        number(subrange, "DW_AT_upper_bound") + 1 if "DW_AT_upper_bound" in subrange.attributes else 0
    )


def enumerators(die: Any) -> Iterator[tuple[str, int]]:
    for child in die.iter_children():
        if child.tag == "DW_TAG_enumerator":
            yield text(child, "DW_AT_name"), number(child, "DW_AT_const_value")


def size_of(type_: Type) -> int:
    """In bytes."""
    match type_:
        case Pointer():
            return 8
        case Array(of, count):
            return size_of(of) * count
        case Scalar() | Record():
            return type_.size
        case _:
            return 0


FUNCTION, ALIGNMENT, CONSTANT = "vgpu_function_", "vgpu_alignment_", "vgpu_constant_"


def read_compiled(path: Path) -> Declarations:
    """Read a compiled file: its probes (see ``read_header``), its types, and the functions that it defines."""
    found = Declarations()
    with path.open("rb") as file:
        elf = ELFFile(file)
        reader = Reader(elf.get_dwarf_info())
        for unit in reader.units:
            for die in unit.get_top_DIE().iter_children():
                gather(reader, die, found)
        symbols = elf.get_section_by_name(".symtab")
        assert isinstance(symbols, SymbolTableSection)
        for symbol in symbols.iter_symbols():
            if symbol.name.startswith(CONSTANT):
                section = elf.get_section(symbol["st_shndx"])
                at = symbol["st_value"] - section["sh_addr"]
                value = b"\0" * 8 if section["sh_type"] == "SHT_NOBITS" else section.data()[at : at + 8]
                found.constants[symbol.name.removeprefix(CONSTANT)] = int.from_bytes(value, "little", signed=True)
    return found


def gather(reader: Reader, die: Any, found: Declarations) -> None:
    """Put one entry of the top level where it belongs."""
    name = text(die, "DW_AT_name")
    match die.tag:
        case "DW_TAG_typedef":
            found.types[name] = reader.type_of(die)
        case "DW_TAG_enumeration_type":
            found.constants.update(enumerators(die))
        case "DW_TAG_subprogram" if "DW_AT_external" in die.attributes and "DW_AT_low_pc" in die.attributes:
            found.functions[name] = reader.function(die)
        case "DW_TAG_variable" if name.startswith(FUNCTION):
            pointer = reader.type_of(die)
            assert isinstance(pointer, Pointer)
            found.functions[name.removeprefix(FUNCTION)] = pointer.to
        case "DW_TAG_variable" if name.startswith(ALIGNMENT):
            array = reader.type_of(die)
            assert isinstance(array, Array)
            found.alignments[name.removeprefix(ALIGNMENT)] = array.count


# ---- compiling ------------------------------------------------------------------------------------------------


def read_header(
    source: str, scratch: Path, *, folders: Sequence[Path] = (), functions: str, constants: Iterable[str] = ()
) -> Declarations:
    """
    Read what a piece of C declares.

    functions
        matches the prototypes to read; its first group is the name.
    constants
        names that may be macros, and whose values are wanted.
    """
    first, second, made = scratch / "header.c", scratch / "preprocessed.c", scratch / "header.so"
    probes = [f"#ifdef {name}\nconst long long {CONSTANT}{name} = (long long)({name});\n#endif" for name in constants]
    first.write_text("\n".join([source, *probes]) + "\n")
    command = [*build.compiler(), "-std=gnu11", "-w"]
    build.run([*command, "-E", "-P", *(f"-I{folder}" for folder in folders), str(first), "-o", str(second)])
    # What follows is added after the preprocessor, whose macros would rename it.
    said = second.read_text()
    names = sorted(set(re.findall(functions, said)))
    aligned = sorted(set(re.findall(r"(?:\}|\btypedef\s+\w+)\s*((?:CU|nvml)\w+)\s*[;,]", said)))
    probes = [f"__typeof__(&{name}) {FUNCTION}{name};" for name in names]
    probes += [f"char {ALIGNMENT}{name}[_Alignof({name})];" for name in aligned]
    second.write_text(said + "\n" + "\n".join(probes) + "\n")
    compile_with_types(made, second, flags=["-fno-eliminate-unused-debug-types"])
    return read_compiled(made)


def compile_with_types(made: Path, *sources: Path, flags: Sequence[str] = ()) -> None:
    """Compile with debugging information; linked, because a reader of objects would have to relocate them first."""
    build.run([*build.compiler(), "-std=gnu11", "-w", "-O0", "-g", "-gdwarf-4", "-fPIC", "-shared",
               *flags, *map(str, sources), "-o", str(made)])  # fmt: skip
