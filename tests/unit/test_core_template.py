"""Chat templates: what honest ones get, and what hostile ones do not."""

from __future__ import annotations

import contextlib
import json
import re
import resource
from pathlib import Path

import pytest

from llmos.ipc.errors import Code, OpError
from llmos.kernel.core import limits
from llmos.kernel.core.template import CHATML, ChatTemplate, find_template

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Hi {{ 7 * 7 }}  "}]

UNBOUNDED = resource.getrlimit(resource.RLIMIT_AS)


def refusal(source: str) -> OpError:
    with pytest.raises(OpError) as caught:
        ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(TALK)
    assert caught.value.code is Code.INVALID_ARGUMENT
    return caught.value


def test_chatml_is_the_well_known_form() -> None:
    """The form that stands in for a missing template: role, content, markers, and an open assistant turn."""
    assert ChatTemplate(CHATML).render(TALK) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n  Hi {{ 7 * 7 }}  <|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_what_real_templates_use_works() -> None:
    """Namespaces, string methods, loop controls, generation blocks, `tojson`, `strftime_now`, bos and eos tokens."""
    source = """{{ bos_token }}{% set ns = namespace(n=0) %}
{%- for m in messages %}
  {%- if m['role'] == 'tool' %}{% continue %}{% endif %}
  {%- set ns.n = ns.n + 1 %}
  {%- generation %}[{{ m.role.upper() }}] {{ m.content.strip() | tojson }}{% endgeneration %}
{%- endfor -%}
{{ eos_token }}{{ ns.n }}{{ strftime_now('%Y') | length }}"""
    assert ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(
        [*TALK, {"role": "tool", "content": "x"}]
    ) == ('<s>[SYSTEM] "Be brief."[USER] "Hi {{ 7 * 7 }}"</s>24')


def test_a_template_may_refuse_in_its_own_words() -> None:
    """`raise_exception` becomes an error that carries the template's message."""
    assert "roles must alternate" in refusal("{{ raise_exception('roles must alternate') }}").detail


def test_any_fault_of_a_template_is_its_own() -> None:
    """What a template provokes in the interpreter is an error of the template and nothing worse."""
    for source in ("{{ 5 | dictsort }}", "{{ 1 / 0 }}", "{{ strftime_now(5) }}", "{{ none.x.y }}", "{{ [][5] + 1 }}"):
        assert "refused the messages" in refusal(source).detail


def test_a_template_that_does_not_compile_is_named() -> None:
    """A syntax error is an error of the template, not of the messages."""
    assert "does not compile" in refusal("{% for %}").detail


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ ''|attr('__class__') }}",
        "{{ '{0.__class__.__mro__}'.format(messages) }}",
        "{{ messages.append({'role': 'system'}) }}",
        "{{ messages[0].update({'role': 'user'}) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{{ self._TemplateReference__context.environment.loader }}",
        "{{ lipsum.__globals__ }}",
    ],
)
def test_an_escape_reaches_nothing(attack: str) -> None:
    """No way to attributes of the interpreter, to files, or to change what it was given: an error, or empty."""
    with contextlib.suppress(OpError):
        rendered = ChatTemplate(attack, bos_token="<s>", eos_token="</s>").render(TALK)
        assert re.search(r"class|module|root:|uid=|builtin|0x", rendered) is None
    assert TALK[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    "attack",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% for i in range(9) %}{{ f(n - 1) }}{% endfor %}{% endmacro %}{{ f(900) }}",
    ],
)
def test_endless_work_is_cut_off(attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that computes without end is stopped, whether or not it writes."""
    monkeypatch.setattr(limits, "TEMPLATE_SECONDS", 0.2)
    refusal(attack)


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ('a' * 10000000000) | length }}",
        "{{ '%09999999999d' % 1 }}",
        "{{ 'a' | center(9999999999) }}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    ],
)
def test_endless_memory_is_cut_off(attack: str) -> None:
    """A template that asks for gigabytes gets an error, and the process its old limits back."""
    refusal(attack)
    assert resource.getrlimit(resource.RLIMIT_AS) == UNBOUNDED


def test_endless_text_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A template's text is bounded while it is written, not afterwards."""
    monkeypatch.setattr(limits, "TEMPLATE_CHARACTERS", 1000)
    assert "1,000 characters" in refusal("{% for a in range(99999) %}aaaaaaaaaa{% endfor %}").detail


def test_the_folders_own_template_is_found(tmp_path: Path) -> None:
    """`chat_template.jinja` first, then `tokenizer_config.json`, there also as the `default` of several."""
    assert find_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "one"}))
    assert find_template(tmp_path) == "one"
    several = [{"name": "tools", "template": "no"}, {"name": "default", "template": "two"}]
    config.write_text(json.dumps({"chat_template": several}))
    assert find_template(tmp_path) == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert find_template(tmp_path) == "three"
