"""The lengths of JavaScript functions, by hand-written sources."""

from __future__ import annotations

import pytest

from tests.javascript import javascript_functions


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("function one() {}", [("one", 1)]),
        ("export async function two(a, { b } = {}) {\n}\n", [("two", 2)]),
        ("const three = (a) => {\n\n};", [("three", 3)]),
        ("const four = async a => {\n};", [("four", 2)]),
        ("const five = function () {\n};", [("five", 2)]),
        ("const six = (a) => a + 1;", []),
        ("const it = { seven(a) {\n}, eight: () => {\n} };", [("seven", 2), ("eight", 2)]),
        ("class A { get nine() {\n} *ten() {} }", [("nine", 2), ("ten", 1)]),
        ("each((x) => {\n});", [("anonymous", 2)]),
        ("function outer() {\n  function inner() {\n  }\n}", [("outer", 4), ("inner", 2)]),
        ("if (a) {\n} for (;;) {} while (b) {} switch (c) {} try {} catch (e) {}", []),
        ("function a(\n  b,\n) {\n}", [("a", 4)]),  # the head counts
    ],
)
def test_functions_are_found_by_name(source, expected):
    assert javascript_functions(source) == expected


@pytest.mark.parametrize(
    "body",
    [
        '  const s = \'}\' + "}\\"}";\n',
        "  // }\n",
        "  /* }\n  } */\n",
        "  const r = /[/}]\\}/g.test(s);\n",
        "  const t = `}${a ? `}${b}` : { c: 1 }.c}}`;\n",
        "  const t = `$} \\` ${(() => {})()} }\n`;\n",
        "  return a / b / `}`.length / 2;\n",
    ],
)
def test_brackets_in_literals_and_comments_are_passed_over(body):
    source = f"function f() {{\n{body}}}\nfunction g() {{\n}}\n"
    found = [one for one in javascript_functions(source) if one[0] in "fg"]
    assert found == [("f", 2 + body.count("\n")), ("g", 2)]


@pytest.mark.parametrize("source", ["function f() {", "f(]", "}", "const a = 'b\n';", "`${a"])
def test_what_cannot_be_read_is_refused(source):
    with pytest.raises(ValueError, match="line 1"):
        javascript_functions(source)
