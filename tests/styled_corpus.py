"""Labelled texts that also differ in form and length, independently of the label, for judges that group by those."""

import random

from tests.simulated_corpus import LabelledCorpus, LabelledDocument

_WORDS = ("river", "mountain", "committee", "bridge", "town", "water", "music", "light", "garden", "winter", "story")
_LEAST_WORDS, _DOUBLINGS = 8, 4  # lengths are spread evenly on a logarithmic scale
_FORM_SHARES = (0.4, 0.3, 0.2, 0.1)


class StyledCorpus(LabelledCorpus):
    """Texts of `LabelledCorpus` as a sentence, a question, a search query, or a numbered list."""

    def sample(self, size, *, seed):
        """Without replacement, all where there are no more; a document's form and length are its own."""
        return [self._styled(document) for document in super().sample(size, seed=seed)]

    def _styled(self, document):
        generator = random.Random(document.id)
        count = int(_LEAST_WORDS * 2 ** (generator.random() * _DOUBLINGS))
        text = f"topic {self.topics[int(document.id)]} {' '.join(generator.choices(_WORDS, k=count))}"
        form = generator.choices(range(4), _FORM_SHARES)[0]
        lines = "\n".join(f"{number}. {word} {word}" for number, word in enumerate(text.split(), 1))
        styled = (text.capitalize() + ".", f"Why does {text}?", text, lines)[form]
        return LabelledDocument(id=document.id, text=styled)

    @staticmethod
    def label_of(text):
        """The topic of one of its texts, or the text itself where it is none of them."""
        words = text.lower().removeprefix("why does ").split()
        if words[0] == "topic" and words[1].isdigit():
            return words[1]
        return words[4] if text.startswith("1. topic") else text


def style_of(text):
    """The form of a text, of whatever corpus."""
    return "?" in text, "\n" in text, text[:1].isupper()
