"""The configuration for a user's own text, with a tokenizer trained on it and a model that fits both."""

import json
from pathlib import Path
import random
import re

import pytest

from diversity_jax.core.config import load_file
from diversity_jax.core.errors import InputError
from diversity_jax.mixtures.config import Component, MixtureConfig
from diversity_jax.mixtures.sources import open_vocabulary
from diversity_jax.model import LLAMA
from diversity_jax.training.run import Config, check, with_model

ROOT = Path(__file__).resolve().parents[1]
OWN = ROOT / "configs" / "my_text.py"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("texts.jsonl", "texts"),
        ("/data/web-pages.v2.jsonl.zst", "web_pages"),
        ("notes/*.md", "notes"),
        ("gs://bucket/corpus/", "corpus"),
        ("hf:roneneldan/TinyStories:validation", "TinyStories_validation"),
        ("-", "my_text"),
    ],
)
def test_names_and_folders_follow_the_text(source, name):
    config = load_file(f"{OWN}:{source}", Config)
    assert config.mixture.components[0].corpus.source == source
    assert (config.mixture.name, config.mixture.components[0].name, config.output_dir) == (name, name, f"runs/{name}")


def test_a_word_behind_a_configuration_that_takes_none_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"quickstart.py: get_config\(\) takes no word such as 'a.jsonl'"):
        load_file(f"{ROOT}/configs/quickstart.py:a.jsonl", Config)
    (tmp_path / "wants.py").write_text("def get_config(text):\n    return text\n")
    with pytest.raises(InputError, match="needs a word behind it"):
        load_file(str(tmp_path / "wants.py"), Config)
    assert load_file(f"{tmp_path}/wants.py:a:b", str) == "a:b"


def written(path, characters, alphabet="abcdefghijklmnopqrstuvwxyz"):
    """A file of random words."""
    draw = random.Random(0)
    words = ["".join(draw.choices(alphabet, k=draw.randint(2, 7))) for _ in range(400)]
    texts = [" ".join(draw.choices(words, k=200)) for _ in range(characters // 1000)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return texts


def mixture(path, **settings):
    parts = (Component(name="text", kind="real", corpus=str(path)),)
    return MixtureConfig(name="own", components=parts, vocabulary="trained", **settings)


def test_a_tokenizer_is_made_from_the_text_once(tmp_path):
    texts = written(tmp_path / "a.jsonl", 160_000)
    config = mixture(tmp_path / "a.jsonl")
    tokenizer = open_vocabulary(config, tmp_path / "run")
    assert tokenizer.size % 128 == 0
    assert tokenizer.decode(ids := tokenizer.encode_each(texts[:1])[0]) == texts[0]
    assert len(ids) < len(texts[0]) / 2
    before = (tmp_path / "run" / "tokenizer.model").stat().st_mtime_ns
    assert open_vocabulary(config, tmp_path / "run").hash == tokenizer.hash
    assert (tmp_path / "run" / "tokenizer.model").stat().st_mtime_ns == before
    written(tmp_path / "b.jsonl", 3_000)
    assert open_vocabulary(mixture(tmp_path / "b.jsonl"), tmp_path / "run").hash != tokenizer.hash, "another text's"
    assert open_vocabulary(mixture(tmp_path / "b.jsonl"), tmp_path / "run").size < 384, "too little text: bytes"
    with pytest.raises(InputError, match="needs a folder on a disk, not gs://bucket/run"):
        open_vocabulary(config, "gs://bucket/run")


def test_a_text_of_many_characters_gets_pieces_for_them(tmp_path):
    kana = "".join(map(chr, range(0x4E00, 0x4E00 + 900)))
    written(tmp_path / "a.jsonl", 300_000, kana)
    assert open_vocabulary(mixture(tmp_path / "a.jsonl"), tmp_path).size >= 900 + 256


def test_vocabulary_and_length_of_a_model_follow_the_mixture_where_they_are_not_given(tmp_path):
    written(tmp_path / "a.jsonl", 3_000)
    config = mixture(tmp_path / "a.jsonl", sequence_length=640)
    run = Config(output_dir=str(tmp_path / "run"), mixture=config, model=LLAMA["llama_tiny"]())
    with_sizes, model = with_model(run)
    assert (model.vocab_size, model.max_length) == (384, 640)
    check(with_sizes, model)
    given = Config(
        output_dir=str(tmp_path / "run"), mixture=config, model=LLAMA["llama_tiny"](vocab_size=100, max_length=640)
    )
    with pytest.raises(InputError, match=r"model.vocab_size=100: the mixture's tokenizer has \d+ ids"):
        check(*with_model(given))


def test_the_recipe_of_the_page_fits_into_the_quickstart_as_it_is_written(tmp_path):
    """Copies `configs/quickstart.py` and changes the components, as docs/training.md says, but for where text lies."""
    section = (ROOT / "docs" / "training.md").read_text().split("## Train on your own text\n")[1].split("\n## ")[0]
    recipe = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    components, settings = re.split(r"\n\.\.\.\n", recipe)
    for name in ("web", "made"):
        written(tmp_path / f"{name}.jsonl", 3_000)
    own = (ROOT / "configs" / "quickstart.py").read_text()
    own = re.sub(r"components=\(.*?\n            \),\n", f"components=(\n{components}\n),\n", own, flags=re.DOTALL)
    for line in re.findall(r"(\w+)=(?:\(.*?\)|[^,]+),", settings):
        own = re.sub(rf"\n            {line}=.*", "", own)
    own = own.replace("            validation_share", f"            {settings.strip()}\n            validation_share")
    own = own.replace("gs://bucket/web/*.jsonl.zst", f"{tmp_path}/web.jsonl").replace(
        '"made.jsonl', f'"{tmp_path}/made.jsonl'
    )
    (tmp_path / "mine.py").write_text(own.replace('"tokenizer.json"', '"bytes"'))
    config, model = with_model(load_file(str(tmp_path / "mine.py"), Config))
    check(config, model)
    assert [component.name for component in config.mixture.components] == ["web", "made"]
    assert model.max_length == config.mixture.sequence_length == 2048
