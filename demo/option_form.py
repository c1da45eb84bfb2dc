"""The form of a method's hyper-parameters as HTML, and how the page reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vtprune.demo.options import Field, Options, fields

READ = """
element.addEventListener('input', () => {
  const entered = {};
  for (const entry of element.querySelectorAll('[data-option]')) {
    const value = entry.type === 'checkbox' ? entry.checked : entry.value;
    (entered[entry.dataset.method] ??= {})[entry.dataset.option] = value;
  }
  trigger('input', {entered});
});
"""
"""JavaScript that sends all entries whenever one of them changes, so that none is ever missed."""


def form_html(names: Sequence[str], options: Options | None = None) -> str:
    """Labelled entries for all hyper-parameters of the methods.

    Args:
        names: The methods.
        options: What was changed before.
    """
    entries = [
        _entry(name, field, (options or {}).get(name, {}).get(field.name, field.default))
        for name in names
        for field in fields(name)
    ]
    if not entries:
        return f'<p class="caption">{escape(" and ".join(names)) or "Nothing"} has no options.</p>'
    return f'<div class="options-form">{"".join(entries)}</div>'


def changed(entered: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of what was entered that which is not the default."""
    found: dict[str, dict[str, Any]] = {}
    for name, values in entered.items():
        for field in fields(name):
            value = values.get(field.name, field.default)
            if _shown(field, value) != _shown(field, field.default):
                found.setdefault(name, {})[field.name] = value
    return found


def _shown(field: Field, value: Any) -> str:
    shown = field.show(value) if not isinstance(value, str) else value
    return "" if shown is None else str(shown).strip()


def _entry(name: str, field: Field, value: Any) -> str:
    marks = f'id="option-{name}-{field.name}" data-method="{escape(name)}" data-option="{field.name}"'
    match field.kind:
        case "flag":
            entry = f'<input type="checkbox" {marks}{" checked" if value else ""}/>'
        case "choice":
            choices = "".join(
                f"<option{' selected' if choice == value else ''}>{choice}</option>" for choice in field.choices
            )
            entry = f"<select {marks}>{choices}</select>"
        case _:
            hint = field.range or ("automatic" if field.optional else "")
            mode = ' inputmode="decimal"' if field.kind in ("integer", "number") else ""
            shown = escape(_shown(field, value), quote=True)
            entry = f'<input type="text"{mode} value="{shown}" placeholder="{escape(hint)}" {marks}/>'
    allowed = f", {field.range}" if field.range and field.kind != "choice" else ""
    return (
        f'<label><b>{escape(name)}: {field.name}</b><span class="range">{escape(allowed)}</span>{entry}'
        f"<small>{escape(field.help)}</small></label>"
    )
