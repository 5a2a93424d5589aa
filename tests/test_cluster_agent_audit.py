"""The audit with planted injections: canaries keep the score nearly unchanged."""

import pytest

from diversity_jax.cluster_agent import AgentConfig, audit
from diversity_jax.cluster_agent.injection_audit import INJECTIONS, HostileCorpus
from diversity_jax.cluster_agent.text_cleaning import clean_text
from diversity_jax.core.errors import InputError
from tests.faulty_judges import FaultyJudge
from tests.simulated_corpus import LabelJudge, even_corpus

SPLIT = {"split": INJECTIONS["split"]}


def orders_split(text):
    """What a text of these tests orders."""
    return "split" if "into its own cluster" in text else None


def test_a_share_of_the_documents_is_hostile_and_always_the_same_ones():
    corpus = even_corpus(5, 20_000)
    hostile = HostileCorpus(corpus, share=0.01, injections=INJECTIONS, seed=0)
    clean, planted = corpus.sample(10_000, seed=1), hostile.sample(10_000, seed=1)
    changed = {a.id for a, b in zip(clean, planted, strict=True) if a.text != b.text}
    assert 60 < len(changed) < 140
    assert changed == {d.id for d in clean if hostile.injection(d.id)}
    assert {hostile.injection(i) for i in changed} == set(INJECTIONS)
    assert hostile.fingerprint() != corpus.fingerprint()


@pytest.mark.parametrize("name", sorted(INJECTIONS))
def test_injections_lose_their_marks_and_keep_their_words(name):
    shown = clean_text(INJECTIONS[name], 2000)
    assert "<|" not in shown
    assert "[INST]" not in shown
    assert "\u200b" not in shown
    assert len(shown) > 40


@pytest.mark.parametrize("k", [10, 20])
def test_with_canaries_the_score_stays_where_it_was(k):
    corpus = even_corpus(5, 50_000)
    config = AgentConfig(groupings=500, proposals=2, samples_per_grouping=k)
    report = audit(corpus, LabelJudge(corpus.label_of, obeys=orders_split), config, share=0.01, injections=SPLIT)
    assert abs(report.moved) <= 0.02
    assert report.moved_undefended > 0.03
    assert report.shown["split"] == report.touched
    assert 0.3 < report.caught["split"] / report.touched < 0.7
    assert "effective clusters" in str(report)


def test_a_judge_that_does_not_obey_is_not_moved():
    corpus = even_corpus(5, 50_000)
    report = audit(corpus, LabelJudge(corpus.label_of), AgentConfig(groupings=200, proposals=2), share=0.05)
    assert report.moved == report.moved_undefended == 0
    assert not report.caught
    assert set(report.to_json()) >= {"moved", "clean", "hostile", "undefended"}


def test_a_judge_that_merges_what_its_own_verification_takes_out_is_audited_too():
    class Terse(FaultyJudge):
        def _check(self, number, cluster, text_of):  # all of an invalid cluster is then misplaced, planted or not
            return {"cluster": number, "valid": super()._check(number, cluster, text_of)["valid"]}

    corpus = even_corpus(20, 5000)
    judge = Terse("other", corpus.label_of, rate=0.5)
    report = audit(corpus, judge, AgentConfig(groupings=60, proposals=2), share=0.05)
    assert report.undefended.value > 0


@pytest.mark.parametrize("bad", [{"share": 0.0}, {"share": 1.5}, {"injections": {}}])
def test_nonsense_is_refused(bad):
    corpus = even_corpus(5, 1000)
    with pytest.raises(InputError, match="audit"):
        audit(corpus, LabelJudge(corpus.label_of), AgentConfig(groupings=5), **bad)
