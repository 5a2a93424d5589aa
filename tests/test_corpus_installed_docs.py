"""The corpus of installed packages' documentation: clean, distinct, reproducible, without this project's own text."""

import ast
import os
import subprocess
import sys
import textwrap
import time

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.corpus.readers.installed_packages import (
    docstrings,
    functions,
    installed_files,
    join_paragraphs,
    prose,
)

KINDS = ["prose", "code"]


def first(kind, count, **settings):
    return open_corpus(CorpusConfig(source=f"installed_docs:{kind}", max_documents=count, **settings))


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_distinct_spread_over_packages_and_not_our_own(kind):
    documents = list(first(kind, 1000))
    assert len(documents) == 1000
    assert len({document.id for document in documents}) == 1000
    assert len({"".join(filter(str.isalnum, document.text.lower())) for document in documents}) == 1000
    packages = [document.meta["package"] for document in documents]
    assert len(set(packages)) >= 20
    assert max(packages.count(package) for package in set(packages)) <= 100
    assert not any(
        "diversity_jax" in document.meta["file"] or "diversity-jax" in document.meta["package"]
        for document in documents
    )


def test_prose_reads_as_english_sentences():
    for document in first("prose", 1000):
        assert 100 <= len(document.text) < 20_000
        for paragraph in document.text.split("\n\n"):
            assert "\n" not in paragraph
            assert len(paragraph.split()) >= 8
            assert paragraph.rstrip("\"')]")[-1] in ".!?"
            assert not any(sign in paragraph for sign in (">>>", "```", "http://", "Copyright", "{", "<"))


def test_code_is_whole_python():
    for document in first("code", 300):
        (node,) = ast.parse(document.text).body
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        assert 5 <= node.end_lineno <= 130


@pytest.mark.parametrize("kind", KINDS)
def test_every_process_sees_the_same_documents(kind):
    script = (
        "from diversity_jax.corpus import *;"
        f"print(open_corpus(CorpusConfig(source='installed_docs:{kind}', max_documents=150)).fingerprint())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert other.stdout.strip() == first(kind, 150).fingerprint()


def test_a_smaller_part_begins_a_larger_one():
    assert list(first("prose", 50)) == list(first("prose", 200))[:50]


def test_samples_are_seeded_and_stay_in_the_part():
    corpus = first("prose", 300)
    drawn = corpus.sample(30, seed=1)
    assert drawn == corpus.sample(30, seed=1)
    assert {document.id for document in drawn} <= {document.id for document in corpus}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_four_thousand_documents_take_seconds(kind):
    started = time.process_time()
    assert len(list(first(kind, 4000))) == 4000
    assert time.process_time() - started < 10


def test_unknown_parts_are_refused():
    with pytest.raises(InputError, match="expected installed_docs:prose or installed_docs:code"):
        open_corpus("installed_docs:poems")


def test_files_of_packages_alternate_and_shared_files_appear_once():
    files = installed_files((".py",))
    names = [file.name for file in files]
    assert len(names) == len(set(names))
    packages = [file.package for file in files]
    turn = packages[: packages.index(packages[0], 1)]
    assert len(turn) == len(set(packages))
    assert os.path.exists(files[0].path)


SOURCE = textwrap.dedent('''
    # a comment with """ in it
    r"""Module text."""
    quoted = "not # a comment \\" nor an end"
    assigned = """not a docstring"""
    call(
        """nor this""")
    class A:
        \'\'\'Class text, with "quotes" and a # sign.\'\'\'
        def method(self): return """inline"""
        async def other(self):
            """Method
            text."""
''')


def test_docstrings_are_those_that_parsing_finds():
    extracted = list(docstrings(SOURCE))
    tree = ast.parse(SOURCE)
    owners = [
        tree,
        *(node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)),
    ]
    parsed = [(node.body[0].lineno, ast.get_docstring(node, clean=False)) for node in owners if ast.get_docstring(node)]
    assert extracted == parsed
    assert len(extracted) == 3


def test_docstrings_of_real_modules_agree_with_parsing():
    compared = 0
    for module in (ast, textwrap, subprocess, os):
        with open(module.__file__, encoding="utf-8") as file:
            source = file.read()
        tree = ast.parse(source)
        owners = [
            tree,
            *(
                node
                for node in ast.walk(tree)
                if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            ),
        ]
        lines = source.splitlines()
        parsed = {node.body[0].lineno for node in owners if ast.get_docstring(node)}
        parsed = {line for line in parsed if '"""' in lines[line - 1]}
        extracted = {line for line, _ in docstrings(source)}
        assert len(extracted & parsed) >= 0.95 * len(parsed)
        assert len(extracted - parsed) <= 0.02 * len(parsed) + 1
        compared += len(parsed)
    assert compared > 100


def test_only_prose_is_kept_of_a_docstring():
    text = """Computes the mean of the values along one axis of the array.

    The result has one dimension less than ``values``, unless :func:`~a.b.keep` says
    otherwise; see `the guide <https://example.org>`_ for what that means.

    Args:
      values: An array of at least one dimension, which is not changed by this.
      axis: The axis along which the mean of the values is taken.

    Parameters
    ----------
    axis : int
        The axis along which the mean of the values is taken, as in other places.

    Notes
    -----
    Values that are missing count as zero, which is not what most people expect.

    >>> mean([1, 2, 3]) is one of the things that this can do for you.

    | a | table of | the things that | are in it. |

    Copyright 2020 by the authors of the thing, with all the rights that they have.

    ```
    This is in a fence and is not to be taken as a part of the text.
    ```
    """
    assert prose(text) == [
        "Computes the mean of the values along one axis of the array.",
        (
            "The result has one dimension less than values, unless a.b.keep says otherwise; see the guide for what "
            "that "
            "means."
        ),
        "Values that are missing count as zero, which is not what most people expect.",
    ]


def test_pieces_are_bounded_and_lose_no_long_paragraph():
    paragraphs = [f"Paragraph {n} " + "of words that go on and on " * 20 for n in range(20)]
    made = list(join_paragraphs(paragraphs))
    assert "\n\n".join(made) == "\n\n".join(paragraphs)
    assert max(map(len, made)) <= 2400
    assert list(join_paragraphs(["Too short to stand."])) == []


def test_functions_are_dedented_and_of_reasonable_size():
    body = "\n".join(f"        total = total + self.values[{n}]  # one more" for n in range(8))
    small = f"    @property\n    def total(self):\n{body}\n        return total\n"
    source = (
        "class Large:\n"
        + "".join(small.replace("total(self)", f"total_{n}(self)") for n in range(12))
        + "\ndef tiny(): pass\n"
    )
    extracted = list(functions(source))
    assert len(extracted) == 12
    assert extracted[0][0] == 2
    assert extracted[0][1].startswith("@property\ndef total_0(self):\n    total")
    assert list(functions("def broken(:")) == []
