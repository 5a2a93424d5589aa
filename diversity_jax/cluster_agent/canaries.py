"""Planted samples whose right grouping is known: a copy of a shown sample, and a text that is foreign to it.

The copy belongs with its original and the foreign text does not, whatever the criteria. A grouping that gets either wrong was not
made by reading (a judge out of its depth, or a document that told it to split or to merge everything) and is discarded. Over all
groupings the two rates measure the judge. Planted samples never enter a figure: the partition is counted without them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
import random
import re

from diversity_jax.cluster_agent.judge import Cluster, Sample
from diversity_jax.cluster_agent.texts import child_seed

_WORD = re.compile(r"[^\W\d_]{4,}")
_LOOKED_AT_CHARACTERS = 600  # of a text, to choose what is foreign to it

FOREIGN = "canary"  # the document that planted foreign texts are said to be from
# Subjects far apart, so that whatever a corpus is about at least one of them is foreign to it.
FOREIGN_TEXTS = (
    "The bellows of the old accordion had cracked along two folds, and the leather gaskets under the treble pallets leaked air. She "
    "warmed the reed wax over a spirit lamp, lifted out the plates one by one, and filed the tongues until the chord rang true again.",
    "Low tide uncovers the mussel beds for about three hours. Limpets seal themselves to the granite, beadlet anemones fold into red "
    "buttons, and in the deepest pool a blenny waits beneath bladder wrack for the water to come back.",
    "Warp threads are wound onto the back beam under even tension, then threaded through the heddles from the centre outwards. For a "
    "herringbone, lift the shafts one, two, three, four and turn; beat the weft lightly or the wool will felt.",
    "The goalkeeper punched the corner clear, the winger carried it forty metres down the touchline, and the late substitute headed "
    "in at the near post. Two minutes of stoppage time later the cup was theirs, on away supporters' loudest night in years.",
    "Soak the chickpeas overnight. Fry cumin seeds in oil until they crackle, add sliced onion and a pinch of turmeric, then tomatoes "
    "and ginger. Simmer with the drained chickpeas for an hour and finish with lemon juice and torn coriander.",
    "The glacier's snout retreated by eleven metres this year. Stakes drilled into the ablation zone showed a mass loss of nearly two "
    "metres of water equivalent, and a new meltwater lake has formed behind the terminal moraine.",
    "Tenancy shall continue from month to month unless either party gives written notice of thirty days. The deposit is refundable "
    "less the cost of damage beyond fair wear, and subletting without the landlord's consent ends this agreement.",
    "Check the forged pitons before the traverse: the limestone flakes under load. Above the second belay an overhang forces you "
    "left onto slabs, where friction climbing in dry weather is easy and in rain is not advisable.",
    "In the third act the soprano sings alone beneath the painted balcony while muted violas shadow her line. The producer moved the "
    "duet to a railway platform, which suits the libretto's farewell better than the palace ever did.",
    "Queen cells hang like peanuts from the bottom bars of the frame. Split the hive before the swarm leaves: move five frames of "
    "brood and nurse bees to a new box, shake in extra workers, and leave the old queen behind.",
    "The kiln climbs a hundred degrees an hour to quartz inversion, then faster to cone ten. Celadon glazes want reduction: close the "
    "damper until a soft flame licks from the spy hole, and the iron turns from amber to jade.",
    "Passengers for the night ferry board through gate four. Cabins on deck seven have a washbasin; bicycles are lashed in the bow "
    "beside the lorries, and the galley serves herring and black coffee until the pilot leaves us.",
)
_FOREIGN_WORDS = tuple(frozenset(_WORD.findall(text.casefold())) for text in FOREIGN_TEXTS)


@dataclass(frozen=True, kw_only=True)
class Canary:
    """Ids of one grouping's planted pair: `copy` repeats `original`, `foreign` belongs with neither."""

    original: str
    copy: str
    foreign: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a grouping made of its canary; `split` also where verification denied that a text is like its own copy."""

    merged: bool
    split: bool

    @property
    def passed(self) -> bool:
        """Whether both pairs were grouped rightly."""
        return not (self.merged or self.split)


def plant(samples: Sequence[Sample], ids: Sequence[str], generator: random.Random) -> tuple[tuple[Sample, ...], Canary]:
    """`samples` with a copy of one of them and a foreign text put in at random places, under the two new `ids`.

    The foreign text is the one that shares the fewest longer words with the copied sample, first such after a random start.
    """
    original = samples[int(generator.random() * len(samples))]
    start = int(generator.random() * len(FOREIGN_TEXTS))
    words = set(_WORD.findall(original.text[:_LOOKED_AT_CHARACTERS].casefold()))
    turned = [(start + turn) % len(FOREIGN_TEXTS) for turn in range(len(FOREIGN_TEXTS))]
    foreign = FOREIGN_TEXTS[min(turned, key=lambda number: len(words & _FOREIGN_WORDS[number]))]
    canary = Canary(original=original.sample_id, copy=ids[0], foreign=ids[1])
    shown = list(samples)
    for planted in (
        Sample(sample_id=canary.copy, text=original.text, document=original.document),
        Sample(sample_id=canary.foreign, text=foreign, document=FOREIGN),
    ):
        shown.insert(int(generator.random() * (len(shown) + 1)), planted)
    return tuple(shown), canary


def judge_canary(clusters: Sequence[Cluster], canary: Canary) -> Verdict:
    """Whether a partition split the duplicate pair or merged the unrelated one."""
    place = {sample_id: number for number, cluster in enumerate(clusters) for sample_id in cluster.sample_ids}
    home = place[canary.original]
    return Verdict(merged=home == place[canary.foreign], split=home != place[canary.copy])


def without_planted(clusters: Sequence[Cluster], canary: Canary | None) -> tuple[Cluster, ...]:
    """The partition of the drawn samples alone."""
    if canary is None:
        return tuple(clusters)
    planted = {canary.copy, canary.foreign}
    left = (_without(cluster, planted) if planted.intersection(cluster.sample_ids) else cluster for cluster in clusters)
    return tuple(cluster for cluster in left if cluster.sample_ids)


def _without(cluster: Cluster, planted: Collection[str]) -> Cluster:
    return replace(cluster, sample_ids=tuple(i for i in cluster.sample_ids if i not in planted))


def with_control(clusters: Sequence[Cluster], canary: Canary | None) -> tuple[tuple[Cluster, ...], int | None]:
    """Clusters for verification, with one among them that is valid for certain: a text and its copy. And where it stands.

    A document that has every cluster called invalid is caught by it, which the partition alone would not show.
    """
    if canary is None:
        return tuple(clusters), None
    place = child_seed(canary.copy, canary.foreign) % (len(clusters) + 1)
    control = Cluster(sample_ids=(canary.original, canary.copy), reasoning="these two say the same")
    return (*clusters[:place], control, *clusters[place:]), place
