"""The paper's models experiment: text by four models, and by all of them, as 5 B synthetic tokens with 34 B real ones.

    python -m diversity_jax.study --config configs/studies/generators.py --config.dry_run=True

Data, keys and hardware: as configs/studies/topics_by_generations.py; the two open models run on an
OpenAI-compatible server (vLLM) at 127.0.0.1:8000.
Expected: in the paper text by stronger generators and by all of them is more diverse, and better. Not run at this size.
"""

from configs.studies.topics_by_generations import recipe, study
from diversity_jax.study.config import Factor, Level, StudyConfig
from diversity_jax.synthesis.config import GeneratorConfig

SERVER = "http://127.0.0.1:8000/v1"
GENERATORS = {
    "GPT-4o": (GeneratorConfig(model="openai:gpt-4o"),),
    "GPT-3.5": (GeneratorConfig(model="openai:gpt-3.5-turbo"),),
    "Llama-3.1-8B": (GeneratorConfig(model="openai:meta-llama/Llama-3.1-8B-Instruct", base_url=SERVER),),
    "Mistral-7B": (GeneratorConfig(model="openai:mistralai/Mistral-7B-Instruct-v0.3", base_url=SERVER),),
}


def get_config() -> StudyConfig:
    everyone = {**GENERATORS, "mixed": tuple(item for group in GENERATORS.values() for item in group)}
    levels = tuple(Level(name=name, set={"generate.generators": group}) for name, group in everyone.items())
    return study(
        "generators",
        (Factor(name="generator", levels=levels),),
        recipe(synthetic_tokens_b=5, templates=("topic_styles",)),
    )
