"""Whether a small language model and the shipped vectors read a text equally well with its brackets encoded for the
judge.

    python -m diversity_jax.model.convert import SmolLM2-135M-Instruct.Q4_1.gguf /tmp/smollm2
    python scripts/checks/encoded_brackets.py --model /tmp/smollm2 --documents 20 \\
        code_java.jsonl.gz=Java code_csharp.jsonl.gz=C# code_mbpp.jsonl.gz=Python web_text.jsonl.gz=English

FILE=KIND: each file holds documents of one kind; those with most brackets are taken. The model gets the beginning of a
document, plain and as `cluster_agent.text_cleaning.as_data` encodes it, and is asked for its kind: the answer is the
kind whose first token gains most in log-probability over a prompt without a document. Also printed are the nats per
character of the text, and how often the plain document nearest to an encoded one by the shipped vectors is its own.
"""

import argparse
from pathlib import Path
import sys

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from diversity_jax.cluster_agent.ruler import default_ruler  # noqa: E402
from diversity_jax.cluster_agent.text_cleaning import as_data  # noqa: E402
from diversity_jax.corpus import open_corpus  # noqa: E402
from diversity_jax.model.convert import model_folder, read_model  # noqa: E402
from diversity_jax.model.llama import logits  # noqa: E402
from diversity_jax.tokenizers.tokenizer import load_tokenizer  # noqa: E402

QUESTION = "\n\nThe text above is written in the language"


def documents(path: str, count: int, characters: int) -> list[str]:
    """Beginnings of the documents with most brackets among the first two thousand."""
    texts = []
    for number, document in enumerate(open_corpus(path)):
        if number == 2000:
            break
        if len(document.text) >= 200:
            texts.append(document.text[:characters])
    return sorted(texts, key=lambda text: -sum(map(text.count, "<>[]")) / len(text))[:count]


class PromptReader:
    """The model: log-probabilities of a prompt's tokens, and of the next one."""

    length: int  # of the longest prompt, so that one compiled program serves all

    def __init__(self, path: str):
        config, self._params = read_model(path)
        folder = model_folder(path)
        own = folder / "tokenizer"
        self._tokenizer = load_tokenizer(str(own if own.exists() else folder))
        self._forward = jax.jit(lambda params, tokens: jax.nn.log_softmax(logits(config, params, tokens)))

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return self._tokenizer.encode_each([text])[0]

    def read(self, text: str) -> tuple[float, np.ndarray]:
        """Nats of the document, and log-probabilities of the token after the question."""
        begin = [*self._tokenizer.surrounding_ids()[0]]
        body, asked = begin + self.encode(text), begin + self.encode(text + QUESTION)
        padded = np.zeros((1, self.length), np.int32)
        padded[0, : len(asked)] = asked
        values = np.asarray(self._forward(self._params, padded)[0], np.float32)
        own = range(1, min(len(body), len(asked)))
        after_question = values[len(asked) - 1].copy()  # a view would keep all rows in memory
        return float(-sum(values[at - 1, asked[at]] for at in own)), after_question


def main() -> None:
    """Prints accuracies and nats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="+", metavar="FILE=KIND")
    parser.add_argument("--model", required=True)
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--characters", type=int, default=400)
    options = parser.parse_args()
    files = dict(kind.rsplit("=", 1) for kind in options.kinds)
    kinds = list(dict.fromkeys(files.values()))
    texts = [
        (text, kinds.index(kind))
        for path, kind in files.items()
        for text in documents(path, options.documents, options.characters)
    ]
    reader = PromptReader(options.model)
    reader.length = 1 + max(len(reader.encode(form(text) + QUESTION)) for text, _ in texts for form in (str, as_data))
    first = [reader.encode(f" {kind}")[0] for kind in kinds]
    assert len(set(first)) == len(kinds), "two kinds begin with one token"
    prior = reader.read("")[1][first]
    readings = {
        name: [reader.read(form(text)) for text, _ in texts] for name, form in (("plain", str), ("encoded", as_data))
    }
    labels = np.array([label for _, label in texts])
    share = np.mean([sum(map(text.count, "<>[]")) / len(text) for text, _ in texts])
    print(f"{len(texts)} documents of {len(kinds)} kinds; brackets are {share:.1%} of their characters")
    chosen = {
        name: np.array([(values[first] - prior).argmax() for _, values in read]) for name, read in readings.items()
    }
    for name, read in readings.items():
        nats = sum(value for value, _ in read) / sum(len(text) for text, _ in texts)
        print(f"{name}: kind named rightly {np.mean(chosen[name] == labels):.1%}, {nats:.3f} nats a character")
    print(f"the same kind named for both: {np.mean(chosen['plain'] == chosen['encoded']):.1%}")
    ruler = default_ruler()
    plain, encoded = ruler.embed([text for text, _ in texts]), ruler.embed([as_data(text) for text, _ in texts])
    own = (plain * encoded).sum(1)
    others = (plain @ plain.T)[~np.eye(len(texts), dtype=bool)]
    nearest = np.mean((encoded @ plain.T).argmax(1) == np.arange(len(texts)))
    print(f"vectors: {own.mean():.3f} with itself (least {own.min():.3f}), {others.mean():.3f} with others; ", end="")
    print(f"the nearest plain document is its own {nearest:.1%}")


if __name__ == "__main__":
    main()
