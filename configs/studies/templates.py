"""The paper's prompts experiment: text of four templates over 620,000 topics, two versions of Cosmopedia, and no
synthetic text, with 34 B real tokens.

    python -m diversity_jax.study --config configs/studies/templates.py --config.dry_run=True

Synthetic tokens count as 20 B. Data, keys and hardware: as configs/studies/topics_by_generations.py, and
data/cosmopedia_v0.1 and data/cosmopedia_v0.2 as JSONL; the levels that generate nothing need no
generator.
Expected: the paper ranks Topic < Topic Styles < Multi-Topic Styles Persona < Topic Styles Persona in diversity and,
fine-tuned, in accuracy; the page compares its figures with these. Not run at this size.
"""

from dataclasses import replace

from configs.mixtures.paper_4_to_1 import REAL
from configs.studies.topics_by_generations import recipe, study
from diversity_jax.evaluation.results import PAPER_AVERAGES
from diversity_jax.study.config import Factor, Level, StudyConfig

_STAGES = (
    "350M pre-trained",
    "350M fine-tuned",
    "1.4B pre-trained",
    "1.4B fine-tuned",
)  # as PAPER_AVERAGES orders them
_TEMPLATES = {
    "topic": "Topic",
    "topic_styles": "Topic Styles",
    "topic_styles_persona": "Topic Styles Persona",
    "multi_topic_styles_persona": "Multi-Topic Styles Persona",
}


def _published(name: str) -> dict[str, float]:
    return {
        f"{stage} accuracy": percent / 100
        for stage, percent in zip(_STAGES, PAPER_AVERAGES.get(name, ()), strict=False)
    }


def _template(name: str) -> Level:
    return Level(name=name, set={"generate.grid.templates": (name,)}, published=_published(_TEMPLATES[name]))


def _cosmopedia(version: str) -> Level:
    corpus = f"data/cosmopedia_{version}/*.jsonl.zst"
    fields = {"generate": None, "score.corpus": corpus, f"build.mixture.components[{len(REAL)}].corpus": corpus}
    return Level(name=f"Cosmopedia {version}", set=fields, published=_published(f"Cosmopedia {version}"))


_ALONE = tuple(replace(item, share=item.share / sum(other.share for other in REAL)) for item in REAL)
REAL_ONLY = Level(
    name="real only",
    set={"generate": None, "score": None, "build.mixture.components": _ALONE, "build.mixture.real_to_synthetic": None},
    published=_published("real only"),
)


def get_config() -> StudyConfig:
    levels = (
        REAL_ONLY,
        _cosmopedia("v0.1"),
        _cosmopedia("v0.2"),
        *map(_template, _TEMPLATES),
    )
    return study("templates", (Factor(name="data", levels=levels),), recipe(synthetic_tokens_b=20))
