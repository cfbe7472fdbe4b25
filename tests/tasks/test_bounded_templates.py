"""A template of a run file cannot take all memory or all time, and says in ordinary ways what it said before."""

import pytest

from megatune.tasks import RowError
from megatune.tasks.template import render

DOUBLED = (
    "{%% set box = namespace(text='x') %%}{%% for i in range(99) %%}%s{%% endfor %%}{{ box.text | length }}"
)


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
