"""The paper's ratio experiment: one set of Topic Styles Persona text, read as 1, 5, 10, 20, 34 or 50 B tokens, with 34
B real tokens.

    python -m diversity_jax.study --config configs/studies/ratio.py --config.dry_run=True

Data, keys and hardware: as configs/studies/topics_by_generations.py. The synthetic text is generated and scored once.
Expected: the paper's accuracy rises up to about 20 B and falls beyond 34 B; the page fits a saturation curve. Not run
at this size.
"""

from configs.studies.topics_by_generations import recipe, study
from diversity_jax.study.config import Factor, Level, StudyConfig


def get_config() -> StudyConfig:
    levels = tuple(Level(name=b, set={"build.mixture.real_to_synthetic": (34, b)}) for b in (1, 5, 10, 20, 34, 50))
    return study(
        "ratio", (Factor(name="synthetic tokens (B)", levels=levels),), recipe(templates=("topic_styles_persona",))
    )
