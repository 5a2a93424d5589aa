"""The paper's prompts experiment: four templates over 620,000 topics, weighted to 20 B synthetic tokens beside 34 B real.

    python -m diversity_jax.study --config configs/studies/templates.py --config.dry_run=True

Data, keys and hardware: as configs/studies/topics_by_generations.py.
Expected: the paper ranks Topic < Topic Styles < Multi-Topic Styles Persona < Topic Styles Persona in diversity and, fine-tuned, in
accuracy. Not run here at this size.
"""

from configs.studies.topics_by_generations import recipe, study
from diversity_jax.study.recipe import Factor, Level, StudyConfig

TEMPLATES = ("topic", "topic_styles", "topic_styles_persona", "multi_topic_styles_persona")


def get_config() -> StudyConfig:
    levels = tuple(Level(name=name, set={"generate.grid.templates": (name,)}) for name in TEMPLATES)
    return study("templates", (Factor(name="template", levels=levels),), recipe(synthetic_tokens_b=20))
