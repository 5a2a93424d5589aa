r"""The paper's main mixture: 34 B real tokens of web, code and mathematics (4:1:1), with synthetic text at 4:1, in
tokens.

    python -m diversity_jax.mixtures.build --config configs/mixtures/paper_4_to_1.py \
        --config.output_dir=/data/paper_4_to_1
    # without a language model, by the offline judge
    python -m diversity_jax.mixtures.build --config configs/mixtures/paper_4_to_1.py --config.judge=offline

Data: TFDS `wikipedia/20230601.en` and `c4/en` under TFDS_DATA_DIR; code, mathematics and synthetic text as JSONL under
data/; the tokenizer's folder (CodeGen-mono, 50,304 ids in the model) under tokenizers/codegen. The judge is an LLM
(GEMINI_API_KEY).
Hardware: a machine with many cores for some hours, disk for about 100 GB of rows; memory does not grow with the text.
Expected: shares 26.7 % Wikipedia, 26.7 % C4, 13.3 % code, 13.3 % mathematics, 20 % synthetic, within one row in every
1,000. Not run at this size, since neither C4 nor the paper's synthetic text was available.
"""

from diversity_jax.cluster_agent import AgentConfig
from diversity_jax.corpus import CorpusConfig
from diversity_jax.mixtures.config import BuildConfig, Component, GatePolicy, MixtureConfig

REAL = (
    Component(name="wikipedia", kind="real", corpus=CorpusConfig(source="tfds:wikipedia/20230601.en"), share=2),
    Component(name="c4", kind="real", corpus=CorpusConfig(source="tfds:c4/en"), share=2),
    Component(name="code", kind="real", corpus="data/code/*.jsonl.zst", share=1),
    Component(name="math", kind="real", corpus="data/math/*.jsonl.zst", share=1),
)
GATE = GatePolicy(min_ratio_to={"real": 0.25}, on_fail="reject")


def mixture(
    name: str = "paper_4_to_1",
    real_to_synthetic: tuple[float, float] = (4, 1),
    policy: GatePolicy = GATE,
    train_tokens: int | None = None,
    components_dir: str | None = None,
) -> MixtureConfig:
    """Real web (Wikipedia and C4), code and mathematics at 4:1:1, and Topic Styles Persona text behind the gate."""
    synthetic = Component(
        name="topic_styles_persona", kind="synthetic", corpus="data/topic_styles_persona/*.jsonl.zst", policy=policy
    )
    return MixtureConfig(
        name=name,
        components=(*REAL, synthetic),
        real_to_synthetic=real_to_synthetic,
        vocabulary="tokenizers/codegen",
        sequence_length=2048,
        train_tokens=train_tokens,
        components_dir=components_dir,
    )


def get_config() -> BuildConfig:
    return BuildConfig(
        output_dir="runs/mixtures/paper_4_to_1",
        mixture=mixture(),
        judge="gemini:gemini-2.5-flash",
        agent=AgentConfig(groupings=5000, samples_per_grouping=10),
    )
