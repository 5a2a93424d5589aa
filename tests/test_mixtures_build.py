"""Building mixtures: token shares for any document lengths, repeatable decisions, and bad input."""

import dataclasses
from fractions import Fraction
import json
from pathlib import Path
import shutil

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from diversity_jax.api.mixtures import load_mixture
from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.mixtures.builder import build
from diversity_jax.mixtures.config import Component, GatePolicy, MixtureConfig
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.mixtures.replay import replay
from tests.example_run import make_scorecard
from tests.mixture_folders import build_mixture
from tests.shared_data import shared_file

WORDS_OF = {"web": 400, "code": 60, "math": 9, "made": 25}
KIND_OF = {"web": "real", "code": "real", "math": "real", "made": "synthetic", "more": "synthetic"}
UNGATED = GatePolicy(ungated=True)


def unscored(corpora):
    assert not corpora
    return {}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Files of very different document lengths, and a folder in which they are prepared once for all tests."""
    folder = tmp_path_factory.mktemp("texts")
    for name, words in {**WORDS_OF, "more": 25}.items():
        lines = [
            json.dumps({"text": " ".join(f"{name}{(i * 7 + j * j) % 97}" for j in range(words))})
            for i in range(6000 // words + 5)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def component(texts, name, share=1.0, policy=UNGATED, **options):
    return Component(
        name=name, kind=KIND_OF[name], corpus=str(texts / f"{name}.jsonl"), share=share, policy=policy, **options
    )


def config(texts, components, **options):
    fields = {
        "name": "mix",
        "sequence_length": 32,
        "components_dir": str(texts / "prepared"),
        "processes": 1,
        "validation_share": 0.05,
    }
    return MixtureConfig(components=tuple(components), **{**fields, **options})


def check_dealt(mixture: Mixture, rows: int = 1000) -> None:
    """In windows of `rows` rows every component is within one row of its share, and its rows are its own."""
    loader = mixture.loader(batch_size=1)
    shares = np.array([float(part.share_granted) for part in mixture.taken])
    for start in (0, 337, 5 * rows + 11):
        counts = np.bincount(loader.rows(np.arange(start, start + rows)).component, minlength=len(shares))
        assert np.abs(counts - rows * shares).max() < 1 + 1e-9


RATIOS = [(4, 1), (1, 1), *((34, synthetic) for synthetic in (1, 5, 10, 20, 34, 50))]


@pytest.mark.parametrize("ratio", RATIOS, ids=lambda ratio: f"{ratio[0]}:{ratio[1]}")
def test_the_papers_ratios_are_realised_within_one_row(texts, tmp_path, ratio):
    parts = [component(texts, name, share) for name, share in {"web": 4, "code": 1, "math": 1, "made": 1}.items()]
    mixture = build(config(texts, parts, real_to_synthetic=ratio), tmp_path, unscored)
    total = sum(ratio)
    expected = [*(Fraction(ratio[0] * weight, 6 * total) for weight in (4, 1, 1)), Fraction(ratio[1], total)]
    assert [part.share_granted for part in mixture.taken] == expected
    check_dealt(mixture)


REAL_TEXT = {
    "web": "corpora_real/web_c4_200_full_pages.jsonl.gz",
    "code": "corpora_real/code_java.jsonl.gz",
    "math": "corpora_real/gsm8k_train.jsonl.gz",
    "made": "corpora_synthetic/tinystories.jsonl.gz",
}


def test_ratios_hold_over_real_text_of_very_different_lengths(tmp_path):
    weights = {"web": 4, "code": 1, "math": 1, "made": 1}
    parts = [
        Component(
            name=name,
            kind=KIND_OF[name],
            share=weights[name],
            policy=UNGATED,
            corpus=CorpusConfig(source=str(shared_file(file)), max_documents=200),
        )
        for name, file in REAL_TEXT.items()
    ]
    fields = {"name": "real_text", "sequence_length": 128, "components_dir": str(tmp_path / "prepared"), "processes": 1}
    for ratio in ((4, 1), (1, 1), (34, 50)):
        asked = MixtureConfig(components=tuple(parts), real_to_synthetic=ratio, validation_share=0.0, **fields)
        mixture = build(asked, tmp_path / f"{ratio[1]}", unscored)
        check_dealt(mixture)
    lengths = [part.manifest.splits["train"].tokens / part.manifest.splits["train"].documents for part in mixture.taken]
    assert max(lengths) > 10 * min(lengths)


def test_a_vocabulary_over_65535_is_stored_in_four_bytes(texts, tmp_path):
    import tokenizers

    vocabulary = {"<unk>": 0, "</s>": 1} | {f"word{i}": i + 2 for i in range(70_000)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    wanted = [f"word{65_000 + i}" for i in range(1000)]
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": " ".join(wanted)}) + "\n")
    parts = (Component(name="a", kind="real", corpus=str(tmp_path / "text.jsonl")),)
    asked = MixtureConfig(
        name="wide",
        components=parts,
        sequence_length=99,
        vocabulary=str(tmp_path / "tokenizer.json"),
        validation_share=0.0,
        processes=1,
    )
    mixture = build(asked, tmp_path / "out", unscored)
    assert mixture.taken[0].manifest.dtype == "uint32"
    rows = mixture.loader(batch_size=1).rows(np.arange(10)).tokens
    assert set(rows.ravel().tolist()) == {65_002 + i for i in range(1000)}


def cards_for(clusters, texts, seed=0):
    """Scorecards with the fingerprints of the very files."""
    scorecards = {}
    for name, count in clusters.items():
        scorecard = make_scorecard(name, count, groupings=200, seed=seed)
        path = texts / f"{name}.jsonl"
        fingerprint = open_corpus(str(path)).fingerprint() if path.exists() else "pooled"
        scorecards[name] = dataclasses.replace(scorecard, corpus={"name": name, "fingerprint": fingerprint})
    return scorecards


policies = st.builds(
    GatePolicy,
    min_effective_clusters=st.none() | st.floats(1, 80),
    min_ratio_to=st.sampled_from([{}, {"real": 0.25}, {"real": 1.0}, {"web": 0.5, "real": 0.1}]),
    on_fail=st.sampled_from(["reject", "downweight", "warn"]),
    downweight_power=st.sampled_from([0.5, 1.0, 2.0]),
    freed_share=st.sampled_from(["kind_then_all", "kind", "all", "web", "error"]),
    repeat_limit=st.none() | st.floats(0.5, 8),
    auto=st.booleans(),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(policies, policies),
    st.tuples(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(1, 90)),
    st.sampled_from(RATIOS),
    st.integers(0, 3),
)
def test_every_decision_recomputed_from_its_scorecards_gives_the_same_rates(
    texts, tmp_path, chosen, clusters, ratio, seed
):
    shutil.rmtree(tmp_path)
    parts = [component(texts, "web", 2, GatePolicy()), component(texts, "code", 1, GatePolicy())]
    parts += [component(texts, name, 1, policy) for name, policy in zip(("made", "more"), chosen, strict=True)]
    asked = config(texts, parts, real_to_synthetic=ratio, train_tokens=20_000)
    scorecards = cards_for(dict(zip(("made", "more", "real", "web"), clusters, strict=True)), texts, seed)
    try:
        mixture = build(asked, tmp_path, lambda wanted: {name: scorecards[name] for name in wanted})
    except InputError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert "nowhere to go" in refused
        return
    expected = {part.name: part.share_granted for part in mixture.components}
    assert sum(expected.values()) == 1
    again = replay(tmp_path)
    assert {component.name: component.share_granted for component in again} == expected
    assert all(component.from_scorecards for component in again if component.name in ("made", "more"))
    shutil.move(tmp_path / "mixture.json", tmp_path / "alone.json")
    assert {
        component.name: component.share_granted for component in replay(tmp_path / "alone.json", scorecards=False)
    } == expected
    for taken in mixture.taken:
        limit = dict(zip(("made", "more"), chosen, strict=True)).get(taken.name, GatePolicy()).epochs
        steps = -(-20_000 // 32)
        if limit is not None:
            assert mixture.loader(batch_size=1).epochs(steps)[mixture.taken.index(taken)] <= limit


@pytest.fixture
def built(texts, tmp_path):
    """A mixture of three with one down-weighted, and its scorecards."""
    policy = GatePolicy(min_ratio_to={"real": 0.5}, on_fail="downweight", freed_share="all")
    parts = [
        component(texts, "web", 1, GatePolicy()),
        component(texts, "made", 1, policy),
        component(texts, "more", 1, policy),
    ]
    scorecards = cards_for({"made": 5, "more": 60, "real": 40}, texts)
    build(
        config(texts, parts, real_to_synthetic=(1, 1)),
        tmp_path / "built",
        lambda wanted: {name: scorecards[name] for name in wanted},
    )
    return tmp_path / "built"


def edit(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_mixture_file_says_what_its_shares_rest_on(built):
    value = json.loads((built / "mixture.json").read_text())
    assert value["code"]["version"]
    assert len(value["code"]["source_sha256"]) == 64
    made = next(component for component in value["components"] if component["name"] == "made")
    assert made["share_asked_exact"] == "1/4"
    assert 0 < made["share_granted"] < 0.25
    assert made["decision"]["action"] == "downweight"
    assert len(made["decision"]["scorecard_hash"]) == len(made["manifest_hash"]) == 64
    assert made["decision"]["findings"][0]["low"] > 0
    assert value["asked"]["components"][1]["policy"]["on_fail"] == "downweight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda value: value["gate"][1]["decision"].update(action="register", factor=1.0),
            "'made' was decided as register",
        ),
        (
            lambda value: value["gate"][1]["measured"]["ratios"]["real"].update(low=0.9, value=1.0, high=1.1),
            "figures of 'made' are not those",
        ),
        (
            lambda value: value["asked"]["components"][1]["policy"].update(downweight_power=3.0),
            "'made' was decided as downweight",
        ),
        (lambda value: value["components"][0].update(share_granted_exact="1/7"), "grants 'web' 0.142857"),
        (lambda value: value["gate"][0]["rows"][0].__setitem__(1, 0), "rows or contents are no counts"),
        (lambda value: value.pop("gate"), "records no decisions"),
        (lambda value: value["gate"].reverse(), "not of the components that were asked for"),
    ],
)
def test_a_decision_that_was_edited_does_not_replay(built, change, says):
    edit(built / "mixture.json", change)
    with pytest.raises(InputError, match=says) as caught:
        replay(built)
    assert "\n" not in str(caught.value)


def test_another_scorecard_than_the_decisions_is_noticed(built):
    scorecards = {path.stem: path for path in (built / "scorecards").glob("*.json")}
    make_scorecard("made", 5, groupings=150).save(scorecards["made"])
    with pytest.raises(InputError, match=r"scorecards/made.json: is a scorecard of other data than component 'made'"):
        replay(built)


def test_a_manifest_edited_by_hand_is_refused(built, texts):
    mixture = Mixture.load(built)
    copy = built / "copy"
    shutil.copytree(mixture.taken[0].manifest.folder, copy)
    edit(built / "mixture.json", lambda value: value["components"][0].update(manifest="copy/manifest.json"))
    assert Mixture.load(built).content_hash == mixture.content_hash
    edit(copy / "manifest.json", lambda value: value["splits"]["train"].update(documents=1))
    with pytest.raises(InputError, match=r"copy/manifest.json: was changed after the mixture was built"):
        Mixture.load(built)


def test_a_given_scorecard_is_used_and_one_of_other_data_refused(texts, tmp_path):
    policy = GatePolicy(min_effective_clusters=20)
    scorecards = cards_for({"made": 40, "more": 40}, texts)
    for name, scorecard in scorecards.items():
        scorecard.save(tmp_path / f"{name}.json")
    parts = [
        component(texts, "web", 1, GatePolicy()),
        component(texts, "made", 1, policy, scorecard=str(tmp_path / "made.json")),
    ]
    mixture = build(config(texts, parts, real_to_synthetic=(1, 1)), tmp_path / "out", unscored)
    assert mixture.components[1].decision["scorecard_hash"] == scorecards["made"].content_hash
    parts[1] = component(texts, "made", 1, policy, scorecard=str(tmp_path / "more.json"))
    before = scorecards["more"].corpus | {"name": parts[1].corpus.source}
    dataclasses.replace(scorecards["more"], corpus=before).save(tmp_path / "old.json")
    old = dataclasses.replace(parts[1], scorecard=str(tmp_path / "old.json"))
    with pytest.raises(InputError, match=r"has changed since .*old.json was made; score it again"):
        build(config(texts, [parts[0], old], real_to_synthetic=(1, 1)), tmp_path / "other", unscored)
    with pytest.raises(InputError, match=r"component 'made': .*more.json is a scorecard of other data"):
        build(config(texts, parts, real_to_synthetic=(1, 1)), tmp_path / "other", unscored)


def test_an_empty_component_is_named(texts, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    parts = [Component(name="hollow", kind="real", corpus=str(tmp_path / "empty.jsonl"))]
    with pytest.raises(InputError, match=r"component 'hollow': .*empty.jsonl") as caught:
        build(config(texts, parts), tmp_path / "out", unscored)
    assert "\n" not in str(caught.value)


def test_a_share_that_no_schedule_keeps_is_refused(texts, tmp_path):
    parts = [component(texts, "web", 1 - 1e-7), component(texts, "made", 1e-7)]
    with pytest.raises(InputError, match="component 'made': its share rounds to 0"):
        build(config(texts, parts), tmp_path / "out", unscored)


def test_a_split_that_a_component_lacks_is_named_when_the_mixture_is_loaded(texts, tmp_path):
    (tmp_path / "one.jsonl").write_text(json.dumps({"text": "one document " * 50}))
    lone = Component(name="lone", kind="synthetic", corpus=str(tmp_path / "one.jsonl"), share=0.5, policy=UNGATED)
    settings = config(texts, [component(texts, "web", 0.5), lone], components_dir=None)
    build(settings, tmp_path / "out", unscored)
    with pytest.raises(InputError, match="holds no validation rows of lone; build"):
        load_mixture(tmp_path / "out", split="validation")


def test_a_mixture_is_a_component_in_its_own_shares(texts, tmp_path):
    inner = config(
        texts, [component(texts, "web", 2), component(texts, "code", 1)], real_to_synthetic=(1, 0), name="inner"
    )
    build(inner, tmp_path / "inner", unscored)
    parts = [Component(name="real_text", kind="real", corpus=f"mixture:{tmp_path / 'inner'}"), component(texts, "made")]
    mixture = build(config(texts, parts, real_to_synthetic=(4, 1), name="outer"), tmp_path / "outer", unscored)
    shares = {part.name: part.share_granted for part in mixture.taken}
    assert shares == {"real_text_web": Fraction(8, 15), "real_text_code": Fraction(4, 15), "made": Fraction(1, 5)}
    check_dealt(Mixture.load(tmp_path / "outer"))
    assert [component.share_granted for component in replay(tmp_path / "outer")] == [Fraction(4, 5), Fraction(1, 5)]


def test_a_cycle_of_mixtures_is_refused(texts, tmp_path):
    build(config(texts, [component(texts, "web")], name="a"), tmp_path / "a", unscored)
    build(
        config(texts, [Component(name="x", kind="real", corpus=f"mixture:{tmp_path / 'a'}")], name="b"),
        tmp_path / "b",
        unscored,
    )
    with pytest.raises(InputError, match=r"component 'y': a cycle of mixtures: a -> b -> a") as caught:
        build(
            config(texts, [Component(name="y", kind="real", corpus=f"mixture:{tmp_path / 'b'}")], name="a"),
            tmp_path / "a",
            unscored,
        )
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"a cycle of mixtures: a -> a"):
        build(
            config(texts, [Component(name="z", kind="real", corpus=f"mixture:{tmp_path / 'a'}")], name="a"),
            tmp_path / "a",
            unscored,
        )


def test_a_mixture_of_two_tokenizers_or_lengths_is_refused(texts, tmp_path):
    build(config(texts, [component(texts, "web")], name="inner"), tmp_path / "inner", unscored)
    parts = [Component(name="x", kind="real", corpus=f"mixture:{tmp_path / 'inner'}")]
    with pytest.raises(
        InputError, match=r"component 'x': its part 'web' has rows that predict 32 tokens, the mixture's 16"
    ):
        build(config(texts, parts, sequence_length=16), tmp_path / "out", unscored)
    other = build_mixture(
        tmp_path / "other", {"a": Fraction(1)}, sequence_length=32, vocabulary=str(_word_tokenizer(tmp_path))
    )
    parts = [component(texts, "web"), Component(name="x", kind="real", corpus=f"mixture:{other}")]
    with pytest.raises(
        InputError, match=r"component 'x': its part 'a' was prepared with another tokenizer \(huggingface"
    ):
        build(config(texts, parts, real_to_synthetic=(1, 0)), tmp_path / "out", unscored)
    inner = Mixture.load(tmp_path / "inner")
    shutil.copytree(Mixture.load(other).taken[0].manifest.folder, tmp_path / "inner" / "foreign")
    foreign = json.loads((other / "mixture.json").read_text())["components"][0]["manifest_hash"]
    edit(
        inner.folder / "mixture.json",
        lambda value: value["components"][0].update(manifest="foreign/manifest.json", manifest_hash=foreign),
    )
    with pytest.raises(
        InputError, match=r"component 'web' was prepared with another tokenizer \(huggingface, 1,002 ids"
    ):
        Mixture.load(inner.folder)


def _word_tokenizer(folder: Path) -> Path:
    import tokenizers

    vocabulary = {"<unk>": 0, "</s>": 1} | {f"a{i}": i + 2 for i in range(1000)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"
