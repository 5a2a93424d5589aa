"""The paper's prompts experiment: four templates over 620,000 topics, two Cosmopedias and no synthetic text at all, beside 34 B real.

    python -m diversity_jax.study --config configs/studies/templates.py --config.dry_run=True

Synthetic tokens count as 20 B. Data, keys and hardware: as configs/studies/topics_by_generations.py, and data/cosmopedia_v0.1 and
data/cosmopedia_v0.2 as JSONL; the levels that write nothing need no generator.
Expected: the paper ranks Topic < Topic Styles < Multi-Topic Styles Persona < Topic Styles Persona in diversity and, fine-tuned, in
accuracy; its figures stand beside ours on the page. Not run here at this size.
"""

from dataclasses import replace

from configs.mixtures.paper_4_to_1 import REAL
from configs.studies.topics_by_generations import recipe, study
from diversity_jax.study.recipe import Factor, Level, StudyConfig

_STAGES = ("350M pre-trained", "350M fine-tuned", "1.4B pre-trained", "1.4B fine-tuned")
_PERCENT = {
    "real only": (48.94, 50.00, 54.76, 57.16),
    "Cosmopedia v0.1": (51.61, 52.64, 56.25, 59.46),
    "topic": (51.40, 53.03, 56.15, 59.88),
    "topic_styles": (51.81, 53.37, 56.74, 60.97),
    "topic_styles_persona": (51.92, 54.29, 57.82, 61.32),
    "multi_topic_styles_persona": (51.74, 54.06, 56.99, 60.59),
}


def _published(name: str) -> dict[str, float]:
    return {f"{stage} accuracy": percent / 100 for stage, percent in zip(_STAGES, _PERCENT.get(name, ()), strict=False)}


def _template(name: str) -> Level:
    return Level(name=name, set={"generate.grid.templates": (name,)}, published=_published(name))


def _cosmopedia(version: str) -> Level:
    corpus = f"data/cosmopedia_{version}/*.jsonl.zst"
    fields = {"generate": None, "score.corpus": corpus, f"build.mixture.components[{len(REAL)}].corpus": corpus}
    return Level(name=f"Cosmopedia {version}", set=fields, published=_published(f"Cosmopedia {version}"))


_ALONE = tuple(replace(one, share=one.share / sum(other.share for other in REAL)) for one in REAL)
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
        *(_template(name) for name in ("topic", "topic_styles", "topic_styles_persona", "multi_topic_styles_persona")),
    )
    return study("templates", (Factor(name="data", levels=levels),), recipe(synthetic_tokens_b=20))
