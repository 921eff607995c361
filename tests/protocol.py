"""A second reader of the worker protocol, written from the words of wire/PROTOCOL.md alone; the standard library is all it uses.

Run by tests/tidy.rs with the document's path. It decodes every golden block and encodes it to the same bytes again, computes the proofs
of the golden handshakes, refuses what must be refused, and says how many blocks it read. What it cannot read is a gap in the document.
"""

import hashlib
import hmac
import math
import re
import struct
import sys
import zlib


class Refused(Exception):
    pass


# Each type is a pair: read(bytes, at) -> (value, at), write(value) -> bytes.


def take(data, at, count):
    if at + count > len(data):
        raise Refused("ends too early")
    return data[at:at + count], at + count


def packed(form):
    size = struct.calcsize(form)

    def read(data, at):
        raw, at = take(data, at, size)
        return struct.unpack(form, raw)[0], at

    return read, lambda value: struct.pack(form, value)


U8, U16, U32, U64 = (packed("<" + letter) for letter in "BHIQ")
I32, F32 = packed("<i"), packed("<f")


def raw(count):
    return (lambda data, at: take(data, at, count)), bytes


def only(inner, allowed):
    def read(data, at):
        value, at = inner[0](data, at)
        if not allowed(value):
            raise Refused(f"{value} is not allowed")
        return value, at

    return read, inner[1]


def among(*values):
    return only(U8, lambda value: value in values)


def flags(known):
    return only(U8, lambda value: value & ~known == 0)


BOOL = among(0, 1)
# A fence: job 1 to 2^53 - 1, epoch, attempt 1 to 65535.


def blob(length, limit):
    def read(data, at):
        count, at = length[0](data, at)
        if count > limit:
            raise Refused("longer than its limit")
        return take(data, at, count)

    return read, lambda value: length[1](len(value)) + value


def text(length, limit, empty=True):
    inner = blob(length, limit)

    def read(data, at):
        value, at = inner[0](data, at)
        try:
            value = value.decode("utf-8", "strict")
        except UnicodeDecodeError:
            raise Refused("not UTF-8") from None
        if not value and not empty:
            raise Refused("an empty name")
        return value, at

    return read, lambda value: inner[1](value.encode())


def items(inner, limit):
    def read(data, at):
        count, at = U32[0](data, at)
        if count > limit:
            raise Refused("more items than the limit")
        values = []
        for _ in range(count):
            value, at = inner[0](data, at)
            values.append(value)
        return values, at

    return read, lambda values: U32[1](len(values)) + b"".join(map(inner[1], values))


def record(*fields):
    """Fields in order. A name that ends in `?N` is there only if bit N of the field `flags` before it is set."""

    def shape(values, name):
        name, _, bit = name.partition("?")
        return name, not bit or values["flags"] & int(bit) != 0

    def read(data, at):
        values = {}
        for name, inner in fields:
            name, there = shape(values, name)
            if there:
                values[name], at = inner[0](data, at)
        return values, at

    def write(values):
        out = b""
        for name, inner in fields:
            name, there = shape(values, name)
            if there:
                out += inner[1](values[name])
        return out

    return read, write


def limits_of(document):
    return {name: int(value) for name, value in re.findall(r"^\| ([A-Z_]+_MAX) \| (\d+) \|", document, re.M)}


def layouts(most):
    fence = record(
        ("job", only(U64, lambda job: 1 <= job < 2**53)),
        ("epoch", U32),
        ("attempt", only(U16, lambda attempt: attempt >= 1)),
    )
    name = text(U16, most["NAME_BYTES_MAX"])
    named = text(U16, most["NAME_BYTES_MAX"], empty=False)
    message = text(U16, most["MESSAGE_BYTES_MAX"])
    fences = items(fence, most["BATCH_ITEMS_MAX"])
    usage = record(*((part, U64) for part in ("wall", "user", "system", "peak", "stdout", "stderr")))
    detail = record(
        ("flags", flags(7)),
        ("exit_code?1", U8),
        ("signal?2", U8),
        ("message", message),
        ("result", blob(U32, most["RESULT_BYTES_MAX"])),
        ("stderr_tail", blob(U16, most["STDERR_TAIL_BYTES_MAX"])),
        ("usage?4", usage),
    )
    nothing = record()
    outcomes = {
        1: nothing,
        2: record(("code", only(U8, lambda code: code >= 1))),
        3: record(("signal", only(U8, lambda signal: signal >= 1))),
        4: nothing,
        5: nothing,
        6: record(("errno", I32)),
        7: record(("flags", flags(3)), ("retry_after_ms?2", U64)),
        8: nothing,
        9: nothing,
        10: nothing,
    }

    def read_outcome(data, at):
        code, at = U8[0](data, at)
        if code not in outcomes:
            raise Refused("an unknown outcome")
        value, at = outcomes[code][0](data, at)
        return (code, value), at

    outcome = read_outcome, lambda pair: U8[1](pair[0]) + outcomes[pair[0]][1](pair[1])
    report = record(
        ("fence", fence),
        ("flags", flags(7)),
        ("run_us", U64),
        ("outcome", outcome),
        ("detail?4", detail),
    )
    live = record(
        ("fence", fence),
        ("flags", flags(7)),
        ("pid", U32),
        ("processes", U32),
        ("cpu_ms", U64),
        ("rss_bytes", U64),
        ("stdout_bytes", U64),
        ("stderr_bytes", U64),
        ("quiet_ms", U64),
        ("output_age_ms?4", U64),
        ("progress?2", only(F32, lambda part: not math.isnan(part) and 0 <= part <= 1)),
        ("note", message),
    )
    chunk = record(
        ("fence", fence),
        ("stream", among(1, 2)),
        ("offset", U64),
        ("at_ms", U64),
        ("data", blob(U32, most["CHUNK_BYTES_MAX"])),
    )

    def within_64_bits(value):
        return value["offset"] + len(value["data"]) < 2**64

    frames = {
        0x01: record(
            ("magic", only(raw(4), lambda magic: magic == b"HSTL")),
            ("version_min", U16),
            ("version_max", U16),
            ("capabilities", U64),
            ("role", among(1, 2)),
            ("token_id", name),
            ("nonce", raw(32)),
        ),
        0x02: record(
            ("version", U16),
            ("capabilities", U64),
            ("nonce", raw(32)),
            ("cluster", raw(16)),
            ("epoch", U32),
            ("epoch_nonce", raw(16)),
            ("proof", raw(32)),
        ),
        0x03: record(
            ("name", named),
            ("instance", U64),
            ("flags", flags(3)),
            ("session?1", U64),
            ("slots", U32),
            ("handlers", items(named, most["HANDLERS_MAX"])),
            ("queues", items(named, most["QUEUES_MAX"])),
            ("labels", items(record(("key", named), ("value", name)), most["LABELS_MAX"])),
            ("allocation", name),
            ("held", items(record(("fence", fence), ("started", BOOL)), most["HELD_MAX"])),
            ("last_report", U64),
            ("epochs", items(record(("epoch", U32), ("nonce", raw(16))), most["EPOCHS_MAX"])),
            ("proof", raw(32)),
        ),
        0x04: record(("session", U64), ("beat_ms", U32), ("grace_ms", U32), ("result_bytes_max", U32)),
        0x05: record(("code", among(*range(1, 9))), ("message", message)),
        0x06: record(("addresses", items(text(U16, most["ADDRESS_BYTES_MAX"]), most["ADDRESSES_MAX"]))),
        0x07: record(("acked", U64), ("void", items(fence, most["HELD_MAX"]))),
        0x10: record(
            ("seq", U64),
            ("jobs", items(record(("fence", fence), ("body", blob(U32, most["WORK_BYTES_MAX"]))), most["BATCH_ITEMS_MAX"])),
        ),
        0x11: record(("fences", fences)),
        0x12: record(("fence", fence), ("force", BOOL)),
        0x13: record(("fences", fences)),
        0x20: record(("fences", fences)),
        0x21: record(("first", only(U64, lambda first: first >= 1)), ("reports", items(report, most["BATCH_ITEMS_MAX"]))),
        0x22: record(("fences", fences), ("draining", BOOL)),
        0x23: record(("through", U64)),
        0x24: record(("assign_seq", U64), ("held", U32)),
        0x30: record(("ask", U64), ("fences", items(fence, most["PROBE_ITEMS_MAX"]))),
        0x31: record(("ask", U64), ("lives", items(live, most["PROBE_ITEMS_MAX"]))),
        0x40: only(chunk, within_64_bits),
        0x41: record(("fence", fence), ("stdout_bytes", U64), ("stderr_bytes", U64), ("dropped_bytes", U64)),
        0x42: record(("fence", fence), ("stdout_through", U64), ("stderr_through", U64), ("ended", BOOL)),
        0x43: record(("fence", fence), ("mode", among(0, 1)), ("overflow", among(0, 1)), ("limit_bytes", U64)),
    }

    long_text = text(U32, most["BODY_BYTES_MAX"])
    head = (("layout", among(1)), ("task", among(1, 2)))
    limits = (
        ("on_partition", among(0, 1)),
        ("output", among(0, 1, 2)),
        ("overflow", among(0, 1)),
        ("output_limit", U64),
        ("timeout_ms?1", U64),
        ("grace_ms?2", U64),
        ("stall_ms?16", U64),
    )
    command = (
        ("argv", only(items(long_text, most["ARGS_MAX"]), lambda argv: len(argv) >= 1)),
        ("env", items(record(("name", long_text), ("value", long_text)), most["ARGS_MAX"])),
        ("cwd?4", long_text),
        ("stdin?8", blob(U32, most["BODY_BYTES_MAX"])),
    )
    handler = (("name", named), ("payload", blob(U32, most["BODY_BYTES_MAX"])))
    work = {
        1: record(*head, ("flags", flags(31)), *limits, *command),
        2: record(*head, ("flags", flags(19)), *limits, *handler),
    }
    return frames, work


def checksums(head, body):
    return zlib.crc32(head) & 0xFFFF, zlib.crc32(head + body)


def read_frame(data, frames, body_bytes_max):
    """Kind and value of the one frame in `data`; no value for one that is passed over."""
    (length, kind, bits, check, crc), body = struct.unpack("<IBBHI", take(data, 0, 12)[0]), data[12:]
    if zlib.crc32(data[:6]) & 0xFFFF != check:
        raise Refused("the header does not match its checksum")
    if length < 8:
        raise Refused("the length does not cover the header")
    if length - 8 > body_bytes_max:
        raise Refused("longer than the limit")
    if bits & ~1:
        raise Refused("unknown flags")
    if kind not in frames and not bits & 1:
        raise Refused("an unknown kind")
    if len(body) != length - 8:
        raise Refused("not one whole frame")
    if zlib.crc32(data[:6] + body) != crc:
        raise Refused("the frame does not match its checksum")
    return kind, whole(frames[kind], body) if kind in frames else None


def write_frame(kind, value, frames):
    body = frames[kind][1](value)
    head = struct.pack("<IBB", len(body) + 8, kind, 0)
    return head + struct.pack("<HI", *checksums(head, body)) + body


def whole(layout, data):
    value, at = layout[0](data, 0)
    if at != len(data):
        raise Refused("bytes after the last field")
    return value


def blocks_of(document):
    found = {}
    for name, lines in re.findall(r"^```hex (\S+)\n(.*?)\n```$", document, re.M | re.S):
        digits = "".join(line.split("#")[0] for line in lines.split("\n"))
        found[name] = bytes.fromhex("".join(digits.split()))
    return found


def handshake(blocks, suffix):
    """The proofs of a golden handshake, from the token's secret alone."""

    def mac(key, *parts):
        return hmac.new(key, b"".join(parts), hashlib.sha256).digest()

    client_key = mac(blocks["key/secret"], b"Client Key")
    server_key = mac(blocks["key/secret"], b"Server Key")
    stored_key = hashlib.sha256(client_key).digest()
    assert blocks["key/client_key"] == client_key
    assert blocks["key/server_key"] == server_key
    assert blocks["key/stored_key"] == stored_key
    hello, challenge, login = (blocks[name + suffix][12:] for name in ("hello", "challenge", "login"))
    assert challenge[-32:] == mac(server_key, hello, challenge[:-32]), "the server's proof"
    pad = mac(stored_key, hello, challenge[:-32], login[:-32])
    assert login[-32:] == bytes(a ^ b for a, b in zip(client_key, pad)), "the client's proof"
    if not suffix:
        channel = b"TLS " + blocks["key/tls_exporter"]
        proof = mac(server_key, channel, hello, challenge[:-32])
        assert blocks["key/tls_challenge_proof"] == proof, "the server's proof under TLS"
        pad = mac(stored_key, channel, hello, challenge[:-32], login[:-32])
        proof = bytes(a ^ b for a, b in zip(client_key, pad))
        assert blocks["key/tls_login_proof"] == proof, "the client's proof under TLS"


def token(document):
    found = re.search(r"^```text token\n(\S+)\n```$", document, re.M).group(1)
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

    def base62(number, count):
        out = ""
        for _ in range(count):
            number, digit = divmod(number, 62)
            out = digits[digit] + out
        return out

    secret = int.from_bytes(blocks_of(document)["key/secret"], "big")
    start = "hostler_worker_Ab3dE6gH_" + base62(secret, 43)
    assert found == start + base62(zlib.crc32(start.encode()), 6)


def main(path):
    with open(path, encoding="utf-8") as file:
        document = file.read()
    blocks, most = blocks_of(document), limits_of(document)
    frames, work = layouts(most)
    kinds = {int(kind, 16) for kind in re.findall(r"^\| (0x[0-9a-f]{2}) \| `", document, re.M)}
    assert kinds == set(frames), "the table of kinds"
    seen, count = set(), 0
    for name, data in blocks.items():
        if name.startswith("key/"):
            continue
        count += 1
        if name.startswith("bad/"):
            try:
                value = read_frame(data, frames, most["FRAME_BYTES_MAX"])
            except Refused:
                continue
            raise AssertionError(f"{name} was taken: {value}")
        try:
            if name.startswith("work/"):
                layout = work[data[1]]
                assert layout[1](whole(layout, data)) == data, name
                continue
            kind, value = read_frame(data, frames, most["FRAME_BYTES_MAX"])
        except Refused as refused:
            raise AssertionError(f"{name}: {refused}") from None
        if name.startswith("skipped/"):
            assert value is None, name
            continue
        assert write_frame(kind, value, frames) == data, name
        seen.add(kind)
        for job in value.get("jobs", []):
            layout = work[job["body"][1]]
            assert layout[1](whole(layout, job["body"])) == job["body"], name
        for at in range(len(data)):
            changed = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1:]
            try:
                read_frame(changed, frames, most["FRAME_BYTES_MAX"])
            except Refused:
                continue
            raise AssertionError(f"{name} was taken with byte {at} changed")
    assert seen == kinds, f"kinds without a block: {kinds - seen}"
    for suffix in ("", "/output"):
        handshake(blocks, suffix)
    token(document)
    print(f"{count} blocks read")


if __name__ == "__main__":
    main(sys.argv[1])
