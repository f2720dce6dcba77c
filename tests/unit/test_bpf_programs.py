"""The assembler, the reader of BTF, and the programs that report packets, as bytes."""

from __future__ import annotations

import json
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from netbox.errors import Unsupported
from netbox.kernel import btf
from netbox.kernel.bpf_assembler import STACK, Program
from netbox.kernel.packet_programs import OFFSETS, PACKET_MAX, TRACEPOINTS, Match, Wanted, decode, program
from netbox.kernel.symbols import Symbols


def _words(code: bytes) -> list[tuple[int, int, int, int, int]]:
    found = []
    for opcode, registers, offset, immediate in struct.iter_unpack("<BBhi", code):
        found.append((opcode, registers & 0xF, registers >> 4, offset, immediate))
    return found


def test_instructions() -> None:
    code = Program()
    code.set(0, -1)
    code.move(6, 1)
    code.load(8, 2, 1, 16)
    code.store(4, STACK, -8, 2)
    code.store_number(8, STACK, -16, 7)
    code.calculate("+", 1, -16)
    code.call(113)
    code.exit()
    assert _words(code.code()) == [
        (0xB7, 0, 0, 0, -1),
        (0xBF, 6, 1, 0, 0),
        (0x79, 2, 1, 16, 0),
        (0x63, 10, 2, -8, 0),
        (0x7A, 10, 0, -16, 7),
        (0x07, 1, 0, 0, -16),
        (0x85, 0, 0, 0, 113),
        (0x95, 0, 0, 0, 0),
    ]


def test_jumps_go_forward_and_back() -> None:
    code = Program()
    code.label("start")
    code.jump_if(2, "<=", 2, "end")
    code.jump_if_word(2, "==", 0xF0000000, "start")
    code.jump("end")
    code.label("end")
    code.exit()
    assert [(opcode, offset) for opcode, _, _, offset, _ in _words(code.code())] == [(0xB5, 2), (0x16, -2), (0x05, 0), (0x95, 0)]


def test_labels_are_checked() -> None:
    code = Program()
    code.label("a")
    with pytest.raises(ValueError, match="twice"):
        code.label("a")
    code.jump("nowhere")
    with pytest.raises(KeyError):
        code.code()


def test_a_map_takes_two_instructions() -> None:
    code = Program()
    code.load_map(1, 5)
    assert _words(code.code()) == [(0x18, 1, 1, 0, 5), (0, 0, 0, 0, 0)]


@pytest.mark.parametrize("tracepoint", sorted(TRACEPOINTS))
def test_programs_are_small_enough(tracepoint: str) -> None:
    offsets = dict.fromkeys(OFFSETS, 8)
    wanted = Wanted([1, 0xF0000001], [Match(4, 2, 0x1234, 0, 0xF0, 0x40), Match(12, 4, 0x0A000001)])
    bare, filtered = program(tracepoint, offsets, {}, 3, Wanted()), program(tracepoint, offsets, {}, 3, wanted)
    assert len(bare) < len(filtered) < 4096 * 8
    assert _words(filtered)[-1] == (0x95, 0, 0, 0, 0)


@pytest.mark.parametrize("number", [1, 2])
def test_a_reason_that_says_nothing_has_the_number_of_this_kernel(number: int) -> None:
    """SKB_CONSUMED came before it with Linux 6.2: what is 2 since then was NO_SOCKET."""
    code = program(
        "kfree_skb", dict.fromkeys(OFFSETS, 8), {number: "SKB_DROP_REASON_NOT_SPECIFIED", 3: "SKB_DROP_REASON_NO_SOCKET"}, 3, Wanted()
    )
    opcode, register, _, _, immediate = _words(code)[2]
    assert (opcode, register, immediate) == (0xB5, 2, number)  # if reason <= number


def test_an_argument_that_the_kernel_does_not_have_is_not_read() -> None:
    """consume_skb has its location since Linux 6.4; attaching a program that reads beyond the arguments fails with EINVAL."""

    def arguments(located: bool) -> list[int]:
        words = _words(program("consume_skb", dict.fromkeys(OFFSETS, 8), {}, 3, Wanted(), located))
        return [offset for opcode, _, source, offset, _ in words if (opcode, source) == (0x79, 1)]

    assert (arguments(True), arguments(False)) == ([0, 8], [0])


def test_a_record() -> None:
    packet = b"\x45" + bytes(PACKET_MAX - 1)
    record = struct.pack("=QQQII16sIHBxII", 5, 0xFFFF888000000000, 0xFFFFFFFF81000000, 40, 2, b"eth0", 60, 0x0008, 2, 12, 1) + packet
    event, location = decode(record, {12: "NETFILTER_DROP"})
    assert (event.time, event.kind, event.netns, event.ifindex, event.device) == (5, "drop", 40, 2, "eth0")
    assert (event.protocol, event.length, event.reason, event.mark, event.packet) == (0x0800, 60, "NETFILTER_DROP", 1, packet)
    assert location == 0xFFFFFFFF81000000


# -- BTF -----------------------------------------------------------------------------------------------------------------------------------

_INT, _STRUCT, _UNION, _ENUM, _TYPEDEF = 1, 4, 5, 6, 8


def _blob() -> bytes:
    """``typedef struct inner { int a; int b; } inner_t; struct outer { int x; struct { inner_t in; }; }; enum why { WHY_A, WHY_B = 7 }``"""
    strings = b"\0int\0inner\0a\0b\0inner_t\0outer\0x\0in\0why\0WHY_A\0WHY_B\0"

    def name(text: str) -> int:
        return strings.index(b"\0" + text.encode() + b"\0") + 1

    def head(text: str, kind: int, count: int, size: int) -> bytes:
        return struct.pack("<III", name(text) if text else 0, kind << 24 | count, size)

    def member(text: str, type_id: int, bits: int) -> bytes:
        return struct.pack("<III", name(text) if text else 0, type_id, bits)

    types = [
        head("int", _INT, 0, 4) + struct.pack("<I", 32),  # 1
        head("inner", _STRUCT, 2, 8) + member("a", 1, 0) + member("b", 1, 32),  # 2
        head("inner_t", _TYPEDEF, 0, 2),  # 3
        head("", _STRUCT, 1, 8) + member("in", 3, 0),  # 4
        head("outer", _STRUCT, 2, 12) + member("x", 1, 0) + member("", 4, 32),  # 5
        head("why", _ENUM, 2, 4) + struct.pack("<Ii", name("WHY_A"), 0) + struct.pack("<Ii", name("WHY_B"), 7),  # 6
    ]
    body = b"".join(types)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(strings)) + body + strings


def test_offsets_and_names() -> None:
    found = btf.Btf(_blob())
    assert [found.offset(path) for path in ("outer.x", "outer.in", "outer.in.b", "inner.a")] == [0, 4, 8, 0]
    assert btf.without_prefix(found.enum("why"), "WHY_") == {0: "A", 7: "B"}
    for path in ("outer.y", "nothing.x", "why.x", "outer.x.y"):
        with pytest.raises(KeyError):
            found.offset(path)
    with pytest.raises(KeyError):
        found.enum("outer")


@pytest.mark.parametrize("data", [b"", b"\x9f\xeb", bytes(64)])
def test_other_data_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="BTF"):
        btf.Btf(data)


def test_the_layout_is_kept(tmp_path: object) -> None:
    file, cache = f"{tmp_path}/vmlinux", f"{tmp_path}/cache"
    with open(file, "wb") as target:
        target.write(_blob())
    first = btf.layout(["outer.in.b"], ["why"], cache, file)
    with open(file, "wb") as target:
        target.write(bytes(len(_blob())))  # the same kernel, so it is not read again
    assert btf.layout(["outer.in.b"], ["why"], cache, file) == first == btf.Layout({"outer.in.b": 8}, {"why": {0: "WHY_A", 7: "WHY_B"}})
    with pytest.raises(Unsupported, match="not as expected"):
        btf.layout(["outer.x"], [], cache, file)
    with pytest.raises(Unsupported, match="CONFIG_DEBUG_INFO_BTF"):
        btf.layout(["outer.x"], [], None, f"{tmp_path}/missing")


def test_two_threads_keep_the_same_layout_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "vmlinux"
    file.write_bytes(_blob())
    cache = str(tmp_path / "cache")
    dump = json.dump
    others: list[threading.Thread] = []

    def late(*arguments: Any) -> None:
        """The second thread does all of it while the first one writes."""
        dump(*arguments)
        if not others:
            others.append(threading.Thread(target=btf.layout, args=(["outer.in.b"], ["why"], cache, str(file))))
            others[0].start()
            others[0].join()

    monkeypatch.setattr("netbox.kernel.btf.json.dump", late)
    first = btf.layout(["outer.in.b"], ["why"], cache, str(file))
    kept = list((tmp_path / "cache").iterdir())
    assert len(kept) == 1
    assert json.loads(kept[0].read_text())["offsets"] == first.offsets


def test_symbols_without_addresses_are_numbers() -> None:
    assert Symbols().name(0) == ""
    assert Symbols().name(1) == "0x1"
