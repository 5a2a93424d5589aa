"""What a component is made from: text to be prepared, or a mixture that was built before and is taken as it is."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
import importlib
from pathlib import Path

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json
from diversity_jax.corpus import Corpus, open_corpus
from diversity_jax.mixtures.config import Component
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.mixtures.prepared_corpus import PreparedCorpus
from diversity_jax.prepare.manifest import Manifest

_PREFIX = "mixture:"


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """A component's text.

    Attributes:
      corpus: the text, for judging and preparing.
      parts: rows that are prepared already, by name, each with its share of the component; empty for text.
      mixture: name, folder and content hash of the built mixture that they come from.
    """

    corpus: Corpus
    parts: Mapping[str, tuple[Fraction, Manifest]]
    mixture: Mapping[str, str] | None = None


def open_ingredient(component: Component, name: str, folder: Path) -> Ingredient:
    """Opens what a component is made from.

    Args:
      name: of the mixture that is being built; folder: where.

    Raises:
      InputError: it cannot be opened or is empty, or the mixture would contain itself.
    """
    source = component.corpus.source
    try:
        if source.startswith(_PREFIX):
            return _of_mixture(Mixture.load(source.removeprefix(_PREFIX)), name, folder)
        if source.startswith("seqio:"):
            prepared = _prepared_by_us(source, name, folder)
            if prepared is not None:
                return prepared
        return Ingredient(corpus=open_corpus(component.corpus), parts={})
    except InputError as error:
        raise InputError(f"component {component.name!r}: {error}") from error


def _of_mixture(mixture: Mixture, name: str, folder: Path) -> Ingredient:
    _refuse_cycle(mixture.folder, mixture.name, mixture.ingredients, name, folder, (name, mixture.name))
    parts = {part.name: (part.share_granted, part.manifest) for part in mixture.taken}
    corpus = PreparedCorpus(
        f"mixture:{mixture.name}", [one for _, one in parts.values()], [share for share, _ in parts.values()]
    )
    made_of = {"name": mixture.name, "folder": str(mixture.folder.resolve()), "content_hash": mixture.content_hash}
    return Ingredient(corpus=corpus, parts=parts, mixture=made_of)


def _refuse_cycle(found: Path, found_name: str, ingredients, name: str, folder: Path, trail: tuple[str, ...]) -> None:
    """Raises where the mixture in `found`, or one that it is made of, is the one being built."""
    if found_name == name or found.resolve() == folder.resolve():
        raise InputError(
            f"a cycle of mixtures: {' -> '.join(trail)}; a mixture cannot hold itself: take its components instead"
        )
    for one in ingredients:
        path = Path(one["folder"]) / "mixture.json"
        inner = read_json(path)["ingredients"] if path.exists() else ()
        _refuse_cycle(Path(one["folder"]), one["name"], inner, name, folder, (*trail, one["name"]))


def _prepared_by_us(source: str, name: str, folder: Path) -> Ingredient | None:
    """The rows behind a registered task or mixture, where they were prepared by this project: taken as they are, not as
    text.
    """
    wanted, _, module = source.removeprefix("seqio:").partition("@")
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise InputError(f"{source}: cannot import {module} ({error}); check the name and PYTHONPATH") from None
    from diversity_jax.core.tensorflow import seqio
    from diversity_jax.mixtures.registry import PreparedTask, registered_folder

    if wanted in seqio.MixtureRegistry.names() and registered_folder(wanted) is not None:
        return _of_mixture(Mixture.load(registered_folder(wanted)), name, folder)
    if wanted not in {*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()}:
        return None
    provider = seqio.get_mixture_or_task(wanted)
    tasks = [provider] if isinstance(provider, seqio.Task) else provider.tasks
    ours = [task for task in tasks if isinstance(task, PreparedTask)]
    if any(task.name.split(".")[0] == name for task in ours):
        raise InputError(
            f"a cycle of mixtures: {name} -> {wanted} -> {name}; a mixture cannot hold itself: take its components "
            "instead"
        )
    if not ours:
        return None
    if len(tasks) > 1:
        raise InputError(
            f"{source}: mixes prepared rows ({ours[0].name}) in shares of examples; name its parts as components of "
            "their own"
        )
    manifest = ours[0].manifest
    return Ingredient(
        corpus=PreparedCorpus(wanted, [manifest], [Fraction(1)]), parts={manifest.name: (Fraction(1), manifest)}
    )


def sampled_texts(
    components: Sequence[Component], shares: Sequence[Fraction], *, characters: int, seed: int
) -> Iterator[str]:
    """Random documents' texts, from each component its share of `characters`, or all it has."""
    for component, share in zip(components, shares, strict=True):
        budget = float(share) * characters
        if budget < 1:
            continue
        for document in open_corpus(component.corpus).sample(max(1, int(budget // 200)), seed=seed):
            if budget <= 0:
                break
            text = document.text[: int(budget) + 1]
            budget -= len(text)
            yield text
