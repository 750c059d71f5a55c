"""What protoc would make of click.proto, whose text is in $CLICK_PROTO, as far as
Batch and Click need it."""
import os, re

with open(os.environ["CLICK_PROTO"]) as file:
    MESSAGES = {
        name: {int(number): (field, kind, bool(repeated))
               for repeated, kind, field, number in re.findall(r"^\s*(repeated )?(\w+) (\w+) = (\d+);", body, re.M)}
        for name, body in re.findall(r"^message (\w+) \{(.*?)^\}", file.read(), re.M | re.S)
    }


def varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return value, at


def scalar(kind, value):
    if kind == "sint64":
        return value >> 1 ^ -(value & 1)
    if kind == "int64" and value >> 63:
        return value - (1 << 64)
    return value


class Message:
    def __init__(self, name):
        self._fields = MESSAGES[name]
        for field, kind, repeated in self._fields.values():
            zero = b"" if kind == "bytes" else "" if kind == "string" else None if kind in MESSAGES else 0
            setattr(self, field, [] if repeated else zero)

    def MergeFromString(self, data):
        at = 0
        while at < len(data):
            tag, at = varint(data, at)
            if tag & 7 == 0:
                value, at = varint(data, at)
            else:
                size, at = (8, at) if tag & 7 == 1 else varint(data, at)
                value, at = data[at:at + size], at + size
            if tag >> 3 in self._fields:
                self._set(*self._fields[tag >> 3], tag & 7, value)

    def _set(self, field, kind, repeated, wire, value):
        if wire == 1:
            value = int.from_bytes(value, "little")
        elif kind in MESSAGES:
            inner, value = value, Message(kind)
            value.MergeFromString(inner)
        elif kind == "string":
            value = value.decode()
        elif wire == 2 and kind != "bytes":  # packed numbers
            numbers, at = [], 0
            while at < len(value):
                number, at = varint(value, at)
                numbers.append(scalar(kind, number))
            getattr(self, field).extend(numbers)
            return
        elif wire == 0:
            value = scalar(kind, value)
        getattr(self, field).append(value) if repeated else setattr(self, field, value)


class Batch(Message):
    @staticmethod
    def FromString(data):
        batch = Message("Batch")
        batch.MergeFromString(data)
        return batch
