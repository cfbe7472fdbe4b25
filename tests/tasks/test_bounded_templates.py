"""A template of a run file cannot take all memory or all time, and says in ordinary ways what it said before."""

import pytest

from megatune.errors import ConfigError
from megatune.tasks import RowError
from megatune.tasks.template import check_template, render

DOUBLED = (
    "{%% set box = namespace(text='x') %%}{%% for i in range(99) %%}%s{%% endfor %%}{{ box.text | length }}"
)
NESTED = "{%% set box = namespace(l=[1]) %%}{%% for i in range(120) %%}{%% set box.l = %s %%}{%% endfor %%}{{ box.l }}"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * 10**9 }}",
        "{{ 10**9 * 'x' }}",
        "{{ [1] * 10**8 }}",
        "{{ 2 ** (10**9) }}",
        "{{ 'x'.rjust(10**9) }}",
        "{{ 'x' | center(10**9) }}",
        "{{ 'x' | indent(10**9, true) }}",
        "{{ [1] | batch(10**8, 'x') | list }}",
        "{{ {'a': 1} | tojson(indent=10**9) }}",
        "{{ '%1000000000d' % 5 }}",
        "{{ '%*d' % (10**9, 5) }}",
        "{{ '%1000000000d' | format(5) }}",
        "{{ '{:>1000000000}'.format('x') }}",
        "{{ '{:>{}}'.format('x', 10**9) }}",
        "{{ ('x' * 10**5).replace('x', 'y' * 10**5) }}",
        "{{ ('x' * 10**5) | replace('x', 'y' * 10**5) }}",
        "{{ range(10**5) | join('y' * 10**5) }}",
        "{{ ('y' * 10**5).join(('x' * 10**5) | list) }}",
        "{% for i in range(10**5) %}{% for k in range(10**5) %}x{% endfor %}{% endfor %}",
        "{% for i in range(10**5) %}{% for k in range(10**5) %}{% endfor %}{% endfor %}",
        "{% for i in range(999) %}{{ 'x' * 10**5 }}{% endfor %}",
        "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(1) }}",
        "{{ ('x' * 10**6).join('y' * 10**6) }}",
        "{{ ('y' * 10**6) | join(d='x' * 10**6) }}",
        "{{ range(10**5) | join(d='x' * 10**6) }}",
        "{{ ('a' * 10**6) | replace(old='a', new='x' * 10**6) }}",
        "{{ ['a' * 10**6] | map('replace', 'a', 'x' * 10**6) | list }}",
        "{{ ('\\n' * 10**6) | indent(10**6, blank=true) }}",
        "{{ ('\\n' * 10**6) | indent(width='x' * 10**6, blank=true) }}",
        "{{ ('\\t' * 10**6).expandtabs(10**6) }}",
        "{{ ('\\t' * 10**6).expandtabs(tabsize=10**6) }}",
        "{{ ('{0}' * 10**6).format('x' * 10**6) }}",
        "{{ ('{a}' * 10**6).format(a='x' * 10**6) }}",
        "{{ ('{0:999999}' * 10**5).format(1) }}",
        "{{ ('%(a)s' * 10**6) % {'a': 'x' * 10**6} }}",
        "{{ ('%(a)s' * 10**6) | format(a='x' * 10**6) }}",
        "{{ ('%999999d' * 10**3) % ([1] | batch(10**3, 1) | first | list,) }}",
        "{{ range(10**5) | map('center', 10**5) | list }}",
        "{{ 1.5 | round(10**9, 'ceil') }}",
        "{{ ('f' * 10**6) | int(base=16) }}",
        NESTED % "[box.l, box.l]",
        NESTED % "(box.l, box.l)",
        NESTED % "{1: box.l, 2: box.l}",
        NESTED % "dict(a=box.l, b=box.l)",
        NESTED % "[none, none] | map('default', box.l, true) | list",
        NESTED % "[box.l]",
        DOUBLED % "{% set box.text = box.text + box.text %}",
        DOUBLED % "{% set box.text = box.text ~ box.text %}",
        DOUBLED % "{% set box.text %}{{ box.text }}{{ box.text }}{% endset %}",
    ],
)
def test_a_template_that_grows_without_end_is_refused(template: str) -> None:
    with pytest.raises(
        RowError, match=r"cannot be written by data\.template: .*(Make the template|without end)"
    ):
        render(template, {"text": "x"}, {})


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (
            "{{ ('a' * 10**6).translate({97: 'x' * 10**6}) }}",
            "translate of str cannot be called here; there are .*upper",
        ),
        ("{{ 'a'.encode() }}", "encode of str cannot be called"),
        ("{{ (1).to_bytes(10**9, 'big') }}", "to_bytes of int cannot be called here; there are bit_length"),
        ("{{ '{0.text}'.format(row) }}", "format cannot look into a value"),
        ("{{ [row] | join(attribute='text') }}", r"map\(attribute=\.\.\.\) \| join"),
        ("{{ [[1], [2]] | sum(start=[]) }}", "sum adds up numbers"),
        ("{{ 'abc' | truncate(1) }}", "AssertionError: expected length"),
    ],
)
def test_a_call_that_cannot_be_bounded_is_refused_with_what_is_there(template: str, why: str) -> None:
    with pytest.raises(RowError, match=rf"cannot be written by data\.template: .*{why}"):
        render(template, {"text": "x"}, {"text": "x"})


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ 'x' | wordwrap(wrapstring='y' * 10**6) }}", "no filter 'wordwrap' here; there are abs, .*upper"),
        ("a\n{{ ['x'] | random }}", "line 2: there is no filter 'random' here"),
        ("{% autoescape true %}{{ text }}{% endautoescape %}", "autoescape cannot be set"),
    ],
)
def test_what_a_template_cannot_use_is_found_before_a_row_is_read(template: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check_template(template, {"text"})


def test_namespaces_that_hold_each_other_are_written_in_short() -> None:
    held = "{% set a = namespace() %}{% set b = namespace() %}{% set a.b = b %}{% set b.a = a %}{{ a }}"

    assert render(held, {}, {}) == "<namespace>"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ 'a' ~ 1 ~ ('-' ~ text) }}", "a1-x"),
        ("{{ 'a' + text }}{{ 2 + 3 }}{{ 2 * 3 }}{{ 2 ** 3 }}{{ '-' * 3 }}{{ 7 % 4 }}", "ax568---3"),
        ("{{ '%s is %d' % (text, 3) }}; {{ '%s!' | format(text) }}", "x is 3; x!"),
        ("{{ '{}-{:>4}'.format(text, 5) }}{{ 'x'.center(3) }}|{{ 'ab'.replace('b', 'c') }}", "x-   5 x |ac"),
        ("{{ ['b', 'a'] | sort | join(', ') }} {{ [1, 2, 3] | batch(2) | list }}", "a, b [[1, 2], [3]]"),
        (
            "{{ 'a\nb' | indent(2) }} {{ {'a': 1} | tojson }} {{ 'a-b' | replace('-', '+') }}",
            'a\n  b {"a": 1} a+b',
        ),
        ("{% for word in ['p', 'q'] %}{{ loop.index }}{{ word }}{% else %}none{% endfor %}", "1p2q"),
        (
            "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(text) }}{% set t %}{{ text }}{{ text }}{% endset %}{{ t }}",
            "<x>xx",
        ),
        (
            "{% set box = namespace(all=[]) %}{% for word in row.body %}{% set box.all = box.all + [word] %}"
            "{% endfor %}{{ box.all | join }}{{ box.all[:2] }}",
            "words['w', 'o']",
        ),
        (
            "{% for key, value in row.items() %}{{ key.title() }}: {{ value.replace('o', '0') | e }}{% endfor %}",
            "Body: w0rds",
        ),
        (
            "{{ ['a', 'b'] | map('upper') | join }}{{ [3, 1] | sort | reverse | list }}{{ [1, 2] | sum }}"
            "{{ [1, 2, 3] | slice(2) | list }}",
            "AB[3, 1]3[[1, 2], [3]]",
        ),
        ("{% for a in [1, 2] %}{{ loop.cycle('x', 'y') }}{% endfor %}{{ '%(n)s' % {'n': 3} }}", "xy3"),
        (
            "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{% set j = joiner() %}{{ j() }}{{ j() }}",
            "ab, ",
        ),
        ("{{ ' a,b '.strip().split(',')[0] }}{{ text in ('x', 'y') }}{{ 3.0.is_integer() }}", "aTrueTrue"),
        ("{% filter upper %}{{ text }}{% endfilter %}{{ ('%s' | format(text)).center(3, '*') }}", "X*x*"),
        ("{% for i in [1, [2]] recursive %}{{ loop(i) if i is iterable else i }}{% endfor %}", "12"),
        ("{{ row.body | upper }} {{ 5000000000 }}", "WORDS 5000000000"),
    ],
)
def test_a_template_within_bounds_writes_what_jinja2_does(template: str, text: str) -> None:
    from jinja2 import Environment

    assert render(template, {"text": "x"}, {"body": "words"}) == text
    assert Environment().from_string(template).render(text="x", row={"body": "words"}) == text


def test_the_turns_of_one_row_are_not_those_of_the_next() -> None:
    template = "{% for i in range(60000) %}{% endfor %}{{ text }}"

    assert [render(template, {"text": str(row)}, {}) for row in range(3)] == ["0", "1", "2"]
