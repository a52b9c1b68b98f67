"""Writes the configuration reference and the JSON Schema from `schema.py`; with `--check`, says whether they are so."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from extproc.config.schema import json_schema

_HEAD: Final = """\
# Configuration reference

Generated from the schema by `make generate`: every key of `extproc.yaml`, its default and its meaning.
Unknown keys are refused, and so is a file with any other mistake, whole. Durations are `30s`, `5m` or `250ms`,
sizes `4MiB` or `64KB`. A secret is `{env: NAME}`, `{file: PATH}` or `{value: TEXT}`.
`docs/extproc.schema.json` is the same for editors; `extproc config schema` prints it.
"""


def reference(schema: dict[str, Any]) -> str:
    """The schema as Markdown: a table for each part."""
    parts = [_HEAD, *_part("extproc.yaml", schema, schema)]
    for name, part in schema["$defs"].items():
        if "properties" in part:
            parts += _part(name, part, schema)
    return "\n".join(parts) + "\n"


def _part(title: str, part: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    yield f"\n## {title}\n"
    if about := part.get("description"):
        yield f"{_line(about)}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for key, field in part["properties"].items():
        default = "required" if key in part.get("required", ()) else _default(field)
        yield f"| `{key}` | {_type(field, schema)} | {default} | {_line(_meaning(field, schema))} |"


def _default(field: dict[str, Any]) -> str:
    value = field.get("default")
    if value is None:
        return ""
    if isinstance(value, dict) and {"host", "port"} == set(value):
        value = f"{value['host']}:{value['port']}"
    return "see there" if isinstance(value, dict) and value else f"`{json.dumps(value, ensure_ascii=False)}`"


def _meaning(field: dict[str, Any], schema: dict[str, Any]) -> str:
    if "description" in field:
        return str(field["description"])
    reference = field.get("$ref")
    return str(_resolve(reference, schema).get("description", "")) if reference else ""


def _type(field: dict[str, Any], schema: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})" if "properties" in _resolve(field["$ref"], schema) else name
    if options := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(_type(option, schema) for option in options if option.get("type") != "null")
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    match field.get("type"):
        case "array":
            return f"list of {_type(field['items'], schema)}"
        case "object" if "patternProperties" in field:
            return f"name → {_type(next(iter(field['patternProperties'].values())), schema)}"
        case "object" if "additionalProperties" in field and isinstance(field["additionalProperties"], dict):
            return f"name → {_type(field['additionalProperties'], schema)}"
        case list(kinds):
            return " or ".join(kinds)
        case kind:
            return str(kind or "any")


def _resolve(reference: str, schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = schema["$defs"][reference.rpartition("/")[2]]
    return found


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main(arguments: list[str]) -> int:
    check = "--check" in arguments
    markdown, schema_file = (Path(a) for a in arguments if a != "--check")
    schema = json_schema()
    wanted = {markdown: reference(schema), schema_file: json.dumps(schema, indent=2, ensure_ascii=False) + "\n"}
    if not check:
        for file, text in wanted.items():
            file.write_text(text)
        return 0
    stale = [file for file, text in wanted.items() if not file.exists() or file.read_text() != text]
    for file in stale:
        print(f"{file} is not what the schema says: run `make generate`", file=sys.stderr)  # noqa: T201
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
