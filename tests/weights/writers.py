"""Small checkpoints of other systems, written by hand: nothing here is shared with the readers under test."""

import struct
import zlib

import torch

# --- protobuf -------------------------------------------------------------------------------------------------------


def varint(value):
    value &= (1 << 64) - 1  # negative numbers are ten bytes long
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out + bytes([value]))


def number(field, value):
    return varint(field << 3) + varint(value)


def text(field, value):
    value = value.encode() if isinstance(value, str) else bytes(value)
    return varint(field << 3 | 2) + varint(len(value)) + value


def raw(tensor):
    """The bytes of a tensor, little-endian, in C order."""
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist()) if tensor.numel() else b""


# --- MindSpore ------------------------------------------------------------------------------------------------------

MINDSPORE_TYPES = {torch.float32: "Float32", torch.int64: "Int64", torch.float16: "Float16"}


def mindspore_entry(tag, kind, dims, content):
    tensor = b"".join(number(1, dim) for dim in dims) + text(2, kind) + text(3, content)
    return text(1, text(1, tag) + text(2, tensor))


def mindspore(tensors, pieces=1, crc=False):
    """``pieces``: into how many consecutive entries each tensor is cut."""
    out = b""
    for tag, tensor in tensors.items():
        content = raw(tensor)
        step = max(1, -(-len(content) // pieces))
        for at in range(0, max(1, len(content)), step):
            kind = MINDSPORE_TYPES[tensor.dtype]
            out += mindspore_entry(tag, kind, tensor.shape, content[at : at + step])
    return out + (b"crc_num" + zlib.crc32(out).to_bytes(10, "big") if crc else b"")


# --- Caffe ----------------------------------------------------------------------------------------------------------

V1_NUMBERS = {"Convolution": 4, "InnerProduct": 14, "ReLU": 18}


def caffe_blob(tensor, *, packed=True, four=False):
    if four:
        shape = (1,) * (4 - tensor.ndim) + tuple(tensor.shape)
        head = b"".join(number(field, size) for field, size in enumerate(shape, 1))
    else:
        head = text(7, text(1, b"".join(varint(size) for size in tensor.shape)))
    field, fixed = (8, 1) if tensor.dtype is torch.float64 else (5, 5)
    content = raw(tensor)
    if packed:
        return head + text(field, content)
    size = tensor.element_size()
    key = varint(field << 3 | fixed)
    return head + b"".join(key + content[at : at + size] for at in range(0, len(content), size))


def caffe(layers, *, v1=False, **blob):
    """``layers``: (name, type, bottoms, tops, params as bytes, tensors)."""
    name, kind, bottom, top, blobs = (4, 5, 2, 3, 6) if v1 else (1, 2, 3, 4, 7)
    out = text(1, "a net")
    for layer, type_, bottoms, tops, params, tensors in layers:
        message = text(name, layer) + (number(kind, V1_NUMBERS[type_]) if v1 else text(kind, type_))
        message += b"".join(text(bottom, each) for each in bottoms) + b"".join(text(top, each) for each in tops)
        message += params + b"".join(text(blobs, caffe_blob(tensor, **blob)) for tensor in tensors)
        out += text(2 if v1 else 100, message)
    return out


# --- TensorFlow -----------------------------------------------------------------------------------------------------

TENSORFLOW_TYPES = {torch.float32: 1, torch.int64: 9, torch.float16: 19, torch.bool: 10, torch.complex64: 8}


def crc32c(data):
    """A bit at a time."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def masked(data):
    value = crc32c(data)
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def snappy(data):
    """Literals of four bytes, and copies where the four before are the same again."""
    out, at = bytearray(varint(len(data))), 0
    while at < len(data):
        chunk = data[at : at + 4]
        if at >= 4 and chunk == data[at - 4 : at] and len(chunk) == 4:
            run = 4
            while run < 60 and at + run < len(data) and data[at + run] == data[at + run - 4]:
                run += 1
            out += bytes([(run - 1) << 2 | 2]) + struct.pack("<H", 4)
            at += run
        else:
            out += bytes([(len(chunk) - 1) << 2]) + chunk
            at += len(chunk)
    return bytes(out)


def block(pairs, restart_every=3):
    out, restarts, last = b"", [], b""
    for index, (key, value) in enumerate(pairs):
        shared = 0
        if index % restart_every == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        last = key
    return out + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table(pairs, per_block=4, compressed=False):
    """``pairs``: a dictionary, to be sorted, or a list as it is."""
    out, handles = b"", []

    def add(content):
        nonlocal out
        content, kind = (snappy(content), b"\1") if compressed else (content, b"\0")
        handle = varint(len(out)) + varint(len(content))
        out += content + kind + struct.pack("<I", masked(content + kind))
        return handle

    pairs = sorted(pairs.items()) if isinstance(pairs, dict) else pairs
    for at in range(0, len(pairs), per_block):
        part = pairs[at : at + per_block]
        handles.append((part[-1][0], add(block(part))))
    footer = add(block([])) + add(block(handles))
    return out + footer.ljust(40, b"\0") + bytes.fromhex("57fb808b247547db")


def bundle_entry(dtype, shape, shard, offset, content):
    sizes = b"".join(text(2, number(1, size)) for size in shape)
    places = number(3, shard) + number(4, offset) + number(5, len(content))
    return number(1, dtype) + text(2, sizes) + places + varint(6 << 3 | 5) + struct.pack("<I", masked(content))


def tensorflow(prefix, tensors, *, shards=1, big_endian=False, extra=(), tail=b"", **table_options):
    """Write ``prefix.index`` and its data files; ``extra`` adds (name, entry) pairs, ``tail`` data to the first."""
    data = [b""] * shards
    pairs = {b"": number(1, shards) + number(2, int(big_endian)) + text(3, number(1, 1))}
    for index, (name, tensor) in enumerate(tensors.items()):
        content, shard = raw(tensor), index % shards
        if big_endian:
            size = tensor.element_size() // (2 if tensor.is_complex() else 1)
            content = b"".join(content[at : at + size][::-1] for at in range(0, len(content), size))
        kind = TENSORFLOW_TYPES[tensor.dtype]
        pairs[name.encode()] = bundle_entry(kind, tensor.shape, shard, len(data[shard]), content)
        data[shard] += content
    pairs.update(extra)
    data[0] += tail
    prefix.with_name(f"{prefix.name}.index").write_bytes(table(pairs, **table_options))
    for shard, content in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{shards:05d}").write_bytes(content)
    return prefix
