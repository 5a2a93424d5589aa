"""Embedding metrics against their definitions over all pairs, and every embedder on real models."""

import http.server
import json
import threading

import numpy as np
import pytest

from diversity_jax import embedders
from diversity_jax.core.errors import InputError
from diversity_jax.embedders import LlamaEmbedder, OpenAIEmbedder, SentenceTransformer
from diversity_jax.metrics import MetricsConfig, chosen_metrics, measure
from diversity_jax.metrics.embedding import (
    Codebook,
    TfidfSvd,
    default_clusters,
    effective_occupied,
    mean_pairwise_distance,
    vendi_score,
)

TEXTS = [f"the cat number {n % 3} sat on mat {n % 5}" for n in range(30)] + [
    f"quarterly profit rose by {n} per cent" for n in range(30)
]


def slow_vendi(vectors, order):
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
    shares = np.linalg.eigvalsh(unit @ unit.T / len(unit))
    shares = shares[shares > 1e-10]
    return np.exp(-(shares * np.log(shares)).sum()) if order == 1 else (shares**order).sum() ** (1 / (1 - order))


@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (1, 4)])
@pytest.mark.parametrize("order", [1, 2, 0.5, 3])
def test_vendi_from_the_smaller_side_is_the_definition_over_all_pairs(shape, order):
    vectors = np.random.default_rng(0).normal(size=shape)
    assert vendi_score(vectors, order) == pytest.approx(slow_vendi(vectors, order), rel=1e-6)
    assert vendi_score(vectors.astype(np.float32), order) == pytest.approx(slow_vendi(vectors, order), rel=1e-3)


def test_vendi_counts_unlike_documents():
    assert vendi_score(np.eye(7)[np.arange(70) % 7]) == pytest.approx(7)
    assert vendi_score(np.ones((9, 3)), 2) == pytest.approx(1)
    assert vendi_score(np.zeros((0, 3))) is None
    assert vendi_score(np.zeros((2, 3)), 2) is None
    some = np.random.default_rng(1).normal(size=(9, 4))
    assert vendi_score(np.concatenate([some, np.zeros((30, 4))]), 2) == pytest.approx(vendi_score(some, 2))
    with pytest.raises(InputError, match="above 0"):
        vendi_score(np.eye(2), 0)
    with pytest.raises(InputError, match="finite"):
        vendi_score(np.array([[np.nan, 1.0]]))


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    "texts", [["one document of some words"], [""] * 24, ["a b", "c"] * 12, ["the same again"] * 24, ["\ud800 x"] * 20]
)
def test_odd_corpora_are_measured_or_left_out(texts):
    config = MetricsConfig(draws=2, pairs=20, dependence=False)
    figures = measure({"odd": texts}, chosen_metrics("all", config), config)["odd"].metrics
    assert all(np.isfinite(figure.value) and abs(figure.value) < 1000 for figure in figures.values())
    alike = {"vendi_1", "vendi_2", "kmeans_effective_clusters"} & set(figures)
    assert bool(alike) == any(texts)
    assert all(figures[name].value <= len(set(texts)) + 1e-6 for name in alike)


def test_mean_pairwise_distance_visits_no_pair_and_equals_all():
    vectors = np.random.default_rng(1).normal(size=(40, 6))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = (unit @ unit.T)[np.triu_indices(40, 1)]
    assert mean_pairwise_distance(vectors) == pytest.approx(1 - cosines.mean())
    assert mean_pairwise_distance(vectors[:1]) is None


def test_clusters_find_groups_and_occupancy_counts_them():
    draw = np.random.default_rng(2)
    centres = draw.normal(size=(12, 32))
    of = np.arange(3000) % 12
    vectors = centres[of] + 0.05 * draw.normal(size=(3000, 32))
    book = Codebook.fit(vectors, 40, seed=0, batch=512)
    assert effective_occupied(book.occupancy(vectors)) > 11
    assert effective_occupied(book.occupancy(vectors[of < 3])) < effective_occupied(book.occupancy(vectors)) / 2
    assert (Codebook.fit(vectors, 40, seed=0, batch=512).centres == book.centres).all()
    assert effective_occupied(np.array([5, 5, 0, 5])) == pytest.approx(3)
    assert [default_clusters(count) for count in (1_000_000, 3000, 50, 9, 1)] == [10_000, 300, 5, 2, 1]
    with pytest.raises(InputError, match="clusters=9"):
        Codebook.fit(np.eye(4), 9)


def test_tfidf_puts_like_texts_together_and_is_deterministic():
    embedder = TfidfSvd(TEXTS, dimensions=10)
    vectors = embedder.embed([*TEXTS, "", "words never seen before"])
    unit = vectors[:60] / np.linalg.norm(vectors[:60], axis=1, keepdims=True)
    cosines = unit @ unit.T
    assert cosines[:30, :30].mean() > 0.3 > cosines[:30, 30:].mean() + 0.2
    assert not vectors[60].any()
    assert (TfidfSvd(TEXTS, dimensions=10).embed(TEXTS) == vectors[:60]).all()
    assert TfidfSvd([""]).embed(["", "a"]).shape == (2, 1)
    assert TfidfSvd(["one"]).embed(["one"]).shape[0] == 1


class _Embeddings(http.server.BaseHTTPRequestHandler):
    """An embeddings endpoint: the vector of a text is the counts of its letters."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.asked += len(body["input"])
        if server.failing > 0:
            server.failing -= 1
            return self._answer(429, {"error": {"message": "slow down"}})
        if server.refusing:
            return self._answer(401, {"error": {"message": "wrong key"}})
        vectors = [[float(text.count(letter)) for letter in "abcdefghij"] for text in body["input"]]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        data = data[:-1] if server.short else data[::-1]
        return self._answer(
            200,
            {
                "object": "list",
                "data": data,
                "model": body["model"],
                "usage": {"prompt_tokens": 10, "total_tokens": 10},
            },
        )

    def _answer(self, status, value):
        payload = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    """A real HTTP server on loopback, with switches for its faults."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-test")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Embeddings)
    server.asked = server.failing = 0
    server.refusing = server.short = False
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_embeddings_endpoint_is_asked_once_and_its_order_is_kept(server, tmp_path):
    texts = ["abba", "", "cab", *[f"{'j' * (n % 7)}a" for n in range(150)]]
    server.failing = 1
    embedder = OpenAIEmbedder("letters", base_url=server.url, cache=tmp_path, dollars_per_million_tokens=2.0)
    vectors = embedder.embed(texts)
    assert vectors[0, :3].tolist() == [2, 2, 0]
    assert not vectors[1].any()
    assert vectors[:, 9].tolist() == [text.count("j") for text in texts]
    assert embedder.cost_usd == pytest.approx(3 * 10 * 2e-6)
    asked = server.asked
    again = OpenAIEmbedder("letters", base_url=server.url, cache=tmp_path)
    assert (again.embed(texts) == vectors).all()
    assert server.asked == asked
    assert again.cost_usd == 0


def test_what_an_embeddings_endpoint_does_wrong_is_one_line(server, monkeypatch):
    with pytest.raises(InputError, match="max_dollars"):
        OpenAIEmbedder("letters", base_url=server.url, dollars_per_million_tokens=1e6, max_dollars=1.0).embed(["abc"])
    assert server.asked == 0
    server.short = True
    with pytest.raises(InputError, match="2 vectors, 1 came"):
        OpenAIEmbedder("letters", base_url=server.url).embed(["a", "b"])
    server.refusing = True
    with pytest.raises(InputError, match="401") as caught:
        OpenAIEmbedder("letters", base_url=server.url).embed(["a"])
    assert "sk-of-the-test" not in str(caught.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        OpenAIEmbedder("letters")


def test_hidden_states_of_our_own_llama_are_means_over_its_tokens(tmp_path):
    import jax.numpy as jnp

    from diversity_jax.model import hidden_states
    from diversity_jax.model.checkpoint_io.hugging_face import export_hugging_face
    from diversity_jax.tokenizers.tokenizer import ByteTokenizer
    from tests.small_llama import random_params, small_config

    config = small_config(vocab_size=264)
    params = random_params(config)
    folder = export_hugging_face(config, params, tmp_path / "model")
    embedder = LlamaEmbedder(str(folder), ByteTokenizer().encode_batch, batch_tokens=256)
    texts = ["short", "", "a longer text than the others, of many bytes, cut at the context of 64", "zz"]
    vectors = embedder.embed(texts)
    assert not vectors[1].any()
    for number in (0, 2):
        ids = jnp.asarray(ByteTokenizer().encode_batch([texts[number]])[0][:64].astype(np.int32))[None]
        config_here = embedder._config
        assert vectors[number] == pytest.approx(
            np.asarray(hidden_states(config_here, params, ids)[0].astype(jnp.float32).mean(0)), abs=2e-2
        )


def test_sentence_transformers_by_the_path_of_a_model(tmp_path):
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "mat"]
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "bert" / "vocab.txt")).save_pretrained(tmp_path / "bert")
    shape = {
        "vocab_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    transformers.BertModel(transformers.BertConfig(**shape)).save_pretrained(tmp_path / "bert")
    try:
        from sentence_transformers import models

        model = library.SentenceTransformer(modules=[models.Transformer(str(tmp_path / "bert")), models.Pooling(16)])
    except (ImportError, TypeError) as error:
        pytest.skip(f"this sentence-transformers builds models otherwise: {error}")
    model.save(str(tmp_path / "st"))
    vectors = SentenceTransformer(str(tmp_path / "st")).embed(["cat mat", "dog", "cat mat"])
    assert vectors.shape == (3, 16)
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-5)


def test_a_missing_library_or_model_is_one_line(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match="pip install sentence-transformers"):
        SentenceTransformer("any")


def test_an_embedder_that_is_added_is_accepted_by_the_settings(monkeypatch):
    with pytest.raises(InputError, match="embedder='mine:v1': choose tfidf"):
        MetricsConfig(embedder="mine:v1")
    monkeypatch.setitem(embedders.EMBEDDERS, "mine", embedders.EmbedderKind(open=None))
    assert MetricsConfig(embedder="mine:v1").embedder == "mine:v1"
