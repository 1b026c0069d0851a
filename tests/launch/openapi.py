"""What a Kubernetes server checks of a manifest: structural schemas, and no field that they do not know."""

from typing import Any

KINDS: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "boolean": bool,
    "number": (int, float),
}


def violations(schema: dict[str, Any], value: Any, path: str = "") -> list[str]:
    """One line for each thing that does not fit."""
    if schema.get("x-kubernetes-int-or-string"):
        return [] if isinstance(value, int | str) else [f"{path}: {value!r} is neither a number nor text"]
    kind = KINDS[schema["type"]]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return [f"{path}: {value!r} is not of type {schema['type']}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{path}: {value!r} is none of {schema['enum']}"]
    found = []
    if isinstance(value, list):
        for number, item in enumerate(value):
            found += violations(schema["items"], item, f"{path}[{number}]")
    if isinstance(value, dict):
        found += [f"{path}.{name} is missing" for name in schema.get("required", ()) if name not in value]
        free = schema.get("additionalProperties")
        for name, item in value.items():
            inner = schema.get("properties", {}).get(name, free)
            if inner is not None:
                found += violations(inner, item, f"{path}.{name}")
            elif schema.get("properties") is not None or not schema.get("x-kubernetes-preserve-unknown-fields"):
                found.append(f"{path}.{name} is unknown")
    return found
