"""Judge answers as long as the instructions allow, to compare token forecasts with."""

import json
import random

from tests.llm_answers import label_oracle

PHRASE = [
    "passages",
    "about",
    "this",
    "subject",
    "that",
    "share",
    "a",
    "method",
    "and",
    "the",
    "same",
    "intended",
    "readers",
    "in",
    "most",
]


def by_first_word(stage, samples, payload):
    """Answers all six stages in a few words; clusters by the first word of a text."""
    return label_oracle({sample["text"]: sample["text"].split(" ", 1)[0] for sample in samples})(
        stage, samples, payload
    )


def follows_instructions(oracle, reasoning_words, criteria_count=4):
    """An oracle for `tests.llm_server` that groups as another does and writes reasons, values and definitions of usual
    length.
    """
    generator = random.Random(0)

    def words(most):
        return " ".join(generator.choice(PHRASE) for _ in range(max(1, int(most * generator.uniform(0.6, 1.0)))))

    def shortest(value):
        return {
            what: [
                {name: cluster[name] for name in cluster if name in ("cluster", "sample_ids", "valid", "misplaced")}
                for cluster in value[what]
            ]
            for what in value
        }

    def criteria():
        levels = [words(7) for _ in range(5)]
        metadata = [{"name": f"{words(3)} {n}", "definition": words(25)} for n in range(4)]
        return metadata, [{**item, "levels": levels} for item in metadata]

    def answer(stage, samples, payload):
        if stage in ("cluster_samples", "verify_clusters"):
            value = oracle(stage, samples, payload)
            if not reasoning_words:
                return shortest(value)
            few = max(1, reasoning_words // 3)
            for cluster in value.get("clusters", ()):
                alone = len(cluster["sample_ids"]) == 1
                described = range(0 if alone else criteria_count)
                cluster["uniqueness_reasoning"] = words(few if alone else reasoning_words)
                cluster["cluster_metadata"] = [{"name": words(3), "value": words(4)} for _ in described]
                cluster["cluster_metrics"] = [
                    {"name": words(3), "reasoning": words(few), "score": 3} for _ in described
                ]
            shown = [json.loads(line) for line in payload["user"].splitlines() if line.startswith('{"cluster"')]
            for verdict, cluster in zip(value.get("validation", ()), shown, strict=False):
                verdict["reasoning"] = words(reasoning_words) if len(cluster["sample_ids"]) > 1 else ""
            return value
        metadata, metrics = criteria()
        if stage == "define_criteria":
            asked = [json.loads(line) for line in payload["user"].splitlines()]
            guided = {
                kind: [{"name": criteria[kind], "guidance": words(18)} for criteria in asked if kind in criteria]
                for kind in ("metadata", "metric")
            }
            return {"metadata": guided["metadata"], "metrics": guided["metric"]}
        if stage.startswith("summarize"):
            metadata, metrics = metadata[:criteria_count], metrics[:criteria_count]
        return {
            "propose_criteria": {"metadata": metadata, "metrics": metrics},
            "summarize_metadata": {"metadata": metadata},
        }.get(stage, {"metrics": metrics})

    return answer


def answers_briefly(oracle):
    """An oracle that writes short criteria, and one item in every list of every cluster, whatever the instructions."""
    generator = random.Random(0)

    def words(count):
        return " ".join(generator.choice(PHRASE) for _ in range(count))

    def answer(stage, samples, payload):
        if stage in ("cluster_samples", "verify_clusters"):
            value = oracle(stage, samples, payload)
            for cluster in value.get("clusters", ()):
                cluster["uniqueness_reasoning"] = words(5)
                cluster["cluster_metadata"] = [{"name": "topic", "value": words(1)}]
                cluster["cluster_metrics"] = [{"name": "clarity", "reasoning": words(2), "score": 3}]
            for verdict in value.get("validation", ()):
                verdict["reasoning"] = words(3)
            return value
        if stage == "define_criteria":
            guided = [{"name": f"topic {n}", "guidance": words(8)} for n in range(3)]
            return {"metadata": guided, "metrics": guided}
        metadata = [{"name": f"topic {n}", "definition": words(6)} for n in range(3)]
        metrics = [{**item, "levels": [words(2) for _ in range(5)]} for item in metadata]
        return {"summarize_metadata": {"metadata": metadata}, "summarize_metrics": {"metrics": metrics}}.get(
            stage, {"metadata": metadata, "metrics": metrics}
        )

    return answer
