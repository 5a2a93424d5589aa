"""Answers of a simulated language model, as functions of the stage, the samples and the payload of a request."""

from collections import Counter
from collections.abc import Callable, Mapping
import contextlib
import json
import re
from typing import Any

# stage, samples as [{"sample_id": ..., "text": ...}], payload with `system`, `user`, `schema`, `body`, `model`
Answer = Callable[[str, list[dict[str, str]], dict[str, Any]], dict[str, Any] | str]

STAGES = {
    "clusters": "cluster_samples",
    "validation": "verify_clusters",
}
STAGE_NAMES = (
    "propose_criteria",
    "summarize_metadata",
    "summarize_metrics",
    "define_criteria",
    "cluster_samples",
    "verify_clusters",
)


def samples_in(user: str) -> list[dict[str, str]]:
    """The samples of a user message: its lines that are JSON objects with a `sample_id`."""
    samples = []
    for line in user.splitlines():
        if line.startswith("{") and '"sample_id"' in line:
            with contextlib.suppress(json.JSONDecodeError):
                samples.append(json.loads(line))
    return samples


def stage_of(system: str, user: str, schema: Mapping | None, name: str | None) -> str:
    """Which stage is asked: by the schema's name, by its properties, or by a stage named in the prompt."""
    if name:
        return name
    for property_name in (schema or {}).get("properties", {}):
        if property_name in STAGES:
            return STAGES[property_name]
    named = re.search("|".join(STAGE_NAMES), system + "\n" + user)
    return named.group() if named else "unknown"


# google-generativeai sends the numbers of its enumeration, google-genai the names.
_GEMINI_TYPES = {1: "string", 2: "number", 3: "integer", 4: "boolean", 5: "array", 6: "object"}


def json_schema(gemini: Any) -> Any:
    """Gemini's form of a schema as JSON schema."""
    if not isinstance(gemini, dict):
        return gemini
    converted = dict(gemini)
    if "type" in converted:
        kind = converted["type"]
        converted["type"] = _GEMINI_TYPES[kind] if isinstance(kind, int) else kind.lower()
    if "items" in converted:
        converted["items"] = json_schema(converted["items"])
    if "properties" in converted:
        converted["properties"] = {name: json_schema(value) for name, value in converted["properties"].items()}
    return converted


def tokens_of(text: str) -> int:
    """Tokens as this server counts them: four characters each."""
    return len(text) // 4 + 1


def label_oracle(labels: Mapping[str, Any]) -> Answer:
    """Answers all six stages; clusters samples by the label of their text, and checks clusters by it.

    Args:
      labels: label by sample text. A text that is missing is looked up by its first 200 characters, so that cut samples
        are found.
    """
    short = {text[:200]: label for text, label in labels.items()}

    def label_of(text: str) -> Any:
        return labels.get(text, short.get(text[:200], text))

    def answer(stage: str, samples: list[dict[str, str]], payload: dict[str, Any]) -> dict[str, Any] | str:
        if stage == "cluster_samples":
            return partition_answer(_clusters(samples, label_of), payload["schema"])
        if stage == "verify_clusters":
            return {"validation": _checks(samples, payload["user"], label_of)}
        return fill(payload["schema"] or {"type": "object"})

    return answer


def clusters_in(user: str) -> list[dict[str, Any]]:
    """The clusters of a message to verify: its lines that are JSON objects with a `cluster`."""
    return [json.loads(line) for line in user.splitlines() if line.startswith('{"cluster"')]


def _checks(samples: list[dict[str, str]], user: str, label_of: Callable[[str], Any]) -> list[dict[str, Any]]:
    label = {sample["sample_id"]: label_of(sample["text"]) for sample in samples}
    checked = []
    for cluster in clusters_in(user):
        usual, _ = Counter(label[i] for i in cluster["sample_ids"]).most_common(1)[0]
        misplaced = [i for i in cluster["sample_ids"] if label[i] != usual]
        verdict = {"cluster": cluster["cluster"], "valid": int(not misplaced), "misplaced": misplaced}
        checked.append({**verdict, "reasoning": "alike" if not misplaced else "unlike"})
    return checked


def partition_answer(clusters: list[dict[str, Any]], schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """A partition in the form that the schema asks for: `assignment`, or the list."""
    properties = (schema or {}).get("properties", {})
    if "assignment" not in properties:
        return {"clusters": clusters}
    number = {i: cluster["cluster"] for cluster in clusters for i in cluster["sample_ids"]}
    assignment = {sample_id: number[sample_id] for sample_id in properties["assignment"]["properties"]}
    described = [{name: part for name, part in cluster.items() if name != "sample_ids"} for cluster in clusters]
    return {"assignment": assignment} | ({"clusters": described} if "clusters" in properties else {})


def _clusters(samples: list[dict[str, str]], label_of: Callable[[str], Any]) -> list[dict[str, Any]]:
    groups: dict[Any, list[str]] = {}
    for sample in samples:
        groups.setdefault(label_of(sample["text"]), []).append(sample["sample_id"])
    return [
        {
            "cluster": n,
            "sample_ids": ids,
            "uniqueness_reasoning": "one label",
            "cluster_metadata": [],
            "cluster_metrics": [],
        }
        for n, ids in enumerate(groups.values(), start=1)
    ]


def fill(schema: Mapping[str, Any]) -> Any:
    """Some value that a JSON schema allows."""
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: fill(value) for name, value in schema.get("properties", {}).items()}
    if kind == "array":
        return [fill(schema.get("items", {"type": "string"})) for _ in range(max(int(schema.get("minItems", 0)), 3))]
    return {"integer": 1, "number": 1.0, "boolean": True, "null": None}.get(kind, "topic")


def by_schema(stage: str, samples: list[dict[str, str]], payload: dict[str, Any]) -> dict[str, Any] | str:
    """Answers with any value of the schema, and clusters by the sample's first word."""
    if stage == "cluster_samples":
        return partition_answer(_clusters(samples, lambda text: text.split(" ", 1)[0]), payload["schema"])
    return fill(payload["schema"]) if payload["schema"] else "plain text"
