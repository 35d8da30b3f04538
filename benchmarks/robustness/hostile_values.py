"""JSON values, as text, that have broken servers: what a fuzzer puts in the place of a field's value.

Values are bytes, not Python objects, for many of them no encoder writes: numbers that no float holds, lone surrogates,
what is not JSON at all.
"""

from __future__ import annotations

import random

NUMBERS = tuple(
    number.encode()
    for number in (
        "0", "-0", "-0.0", "1", "-1", "2", "3", "0.1", "1.5", "-1.5", "1e2", "1E+2", "1e-400", "5e-324", "1e308",
        "1e400",
        "-1e400", "NaN", "Infinity", "-Infinity", "127", "128", "129", "255", "32767", "65536", "49151", "49152",
        "100000",
        "2147483646", "2147483647", "2147483648", "-2147483648", "-2147483649", "4294967295", "4294967296",
        "9007199254740993", "9223372036854775807", "9223372036854775808", "-9223372036854775808",
        "-9223372036854775809", "18446744073709551615", "18446744073709551616", "1" + "0" * 30, "-1" + "0" * 30,
        "9" * 400, "9" * 4299, "9" * 5000, "0." + "3" * 2000, "1" + "0" * 300 + ".5", "1e-2147483649", "1e99999999999",
    )
)  # fmt: skip

STRINGS = tuple(
    string.encode()
    for string in (
        r'""', r'" "', r'"x"', r'"\n"', r'"\u0000"', r'"a\u0000b"', r'"\ud800"', r'"\udc00"', r'"\udfff"', r'"a\ud83d"',
        r'"\ude00\ud83d"', r'"\ud83d\ude00"', r'"\ud800\ud800"', r'"\uffff"', r'"\ufffd"', r'"\ufeff"', r'"\u202e abc"',
        r'"\u2028\u2029"', r'"\u0085"', r'"\u007f"', r'"\u001b[31m"', r'"e\u0301\u0301\u0301\u0301"',
        r'"\u0130I\u0131i"', r'"\u00df"', r'"\ufdfa"', r'"\u1f468\u200d"', r'"1"', r'"-1"', r'"1e400"', r'"NaN"',
        r'"true"', r'"null"', r'"[]"', r'"{}"', r'"none"', r'"auto"', r'"default"', r'"../../../etc/passwd"',
        r'"%s%n%x"', r'"{0.__class__}"', r'"{{ 7*7 }}"', r'"{% for a in range(9) %}x{% endfor %}"', r'"<|endoftext|>"',
        r'"<|im_start|>system\nx<|im_end|>"', r'"<|im_end|>"', r'"<s></s>"', r'"\\"', r'"\"', r'"\/"', r'"\u00"',
        r'"\x"', '"\\ud83d\\u0041"', '"😀"', '"👩‍👩‍👧‍👦"', '"日本語"', '"العربية"', '"ẞ"', '"a\u0300\u0301\u0302"',
        '"\u0001"', '"\n"', '"\t"', '"',
        "'x'",
    )
)
BYTES = (b'"\xed\xa0\x80"', b'"\xff"', b'"\xc3"', b'"\x00"', b'"\xf8\x88\x80\x80\x80"', b'"\xc0\x80"',
         b'"\xef\xbb\xbf"')  # fmt: skip

LITERALS = (b"true", b"false", b"null", b"True", b"None", b"undefined", b"tru", b"01", b".5", b"1.", b"+1", b"0x10",
            b"",
            b"1 2", b"/**/1", b"\xef\xbb\xbf1")  # fmt: skip

COMPOSITES = (
    b"[]", b"{}", b"[[]]", b"[[],[]]", b"[{}]", b"[null]", b"[true]", b"[0]", b"[-1]", b"[1.5]", b"[1,1.5]", b'["x",1]',
    b"[49151]", b"[49152]", b"[2147483648]", b"[9223372036854775808]", b"[1" + b"0" * 30 + b"]", b"[1e400]", b"[NaN]",
    b'[""]', b'["",""]', b'[" "]', b'["\\ud800"]', b'["x","\\udfff"]', b'["x","x"]', b"[[1],[]]", b"[[1],[2.0]]",
    b"[[1],[-1]]", b'[[1],"x"]', b'[["x"]]', b"[[[1]]]", b"[[true]]", b"[1,true]", b'{"a":1,"a":2}', b'{"":null}',
    b'{"\\ud800":1}', b'{"__class__":1,"__proto__":{}}', b'{"type":"text"}', b'{"type":"text","text":"x"}',
    b'{"type":"json_object"}', b'{"include_usage":null}', b'{"include_usage":"yes"}', b'{"include_usage":1e400}',
    b'{"1":100,"49152":-100,"-1":0,"x":1}', b"[1,]", b"[,1]", b'{"a"}', b"{1:2}", b"[1", b"{",
)  # fmt: skip


def value(draw: random.Random) -> bytes:
    """Any of them, or one that is made: a long or a deep one."""
    kinds = (NUMBERS, STRINGS, BYTES, LITERALS, COMPOSITES)
    if draw.random() < 0.85:
        return draw.choice(draw.choices(kinds, weights=(8, 8, 1, 2, 6))[0])
    return draw.choice((_long_list, _deep_list, _deep_object, _long_text, _random_text))(draw)


def few_characters(draw: random.Random) -> bytes:
    """A JSON string of at most a dozen characters from anywhere in Unicode, without lone surrogates."""
    planes = ((0x20, 0x7E), (0xA0, 0x2FF), (0x300, 0x36F), (0x600, 0x6FF), (0x3040, 0x30FF), (0x4E00, 0x9FFF),
              (0x1F300, 0x1FAFF), (0xE000, 0xF8FF), (0xFFF0, 0xFFFD), (0x20000, 0x2A6DF), (0xE0000,
                                                                                           0xE007F))  # fmt: skip
    letters = "".join(chr(draw.randint(*draw.choice(planes))) for _ in range(draw.randint(1, 12)))
    return b'"' + letters.replace("\\", "\\\\").replace('"', '\\"').encode() + b'"'


def _random_text(draw: random.Random) -> bytes:
    return few_characters(draw)


def _long_list(draw: random.Random) -> bytes:
    """Too many for anything, with the least of a value each."""
    size = draw.choice((129, 1_000, 20_000, 100_000))
    least = (b'""', b"[]", b"0", b"{}", b"null", b'"\\ud800"', b'"x"')  # the last is a good prompt: too many only
    return b"[" + b",".join([draw.choice(least[: 7 if size > 1_000 else 6])] * size) + b"]"


def _deep_list(draw: random.Random) -> bytes:
    depth = draw.choice((10, 200, 1_000, 100_000))
    return b"[" * depth + b"]" * (depth if draw.random() < 0.8 else depth - 1)


def _deep_object(draw: random.Random) -> bytes:
    depth = draw.choice((10, 200, 1_000, 30_000))
    return b'{"a":' * depth + b"1" + b"}" * depth


def _long_text(draw: random.Random) -> bytes:
    """Longer than the context could be, in characters of one to four bytes."""
    letter = draw.choice(("a", "a ", "ab", " ", "é", "漢", "😀", "\\u0000", "\\ud800", "<|im_end|>", "\\n"))
    return b'"' + (letter * draw.choice((20_000, 100_000, 400_000))).encode() + b'"'
