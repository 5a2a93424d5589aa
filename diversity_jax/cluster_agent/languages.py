"""Which texts a reader of English cannot read, and what they are written in: by their letters' script, and for texts in
Latin letters by the small words of other languages.
"""

from collections import Counter
import functools
import re
import unicodedata

from diversity_jax.core.words import words

_LETTERS_READ = 400  # characters of a text that are looked at
_WORDS_READ = 60
_FOREIGN_LETTERS = 0.2  # share of the letters from which a text is in their script
_FEWEST_LETTERS = 0.2  # share of what is not white space, below which a text is numbers and signs
_FEWEST_SMALL_WORDS, _SMALL_WORDS_SHARE = 2, 0.1
_LETTER = re.compile(r"[^\W\d_]")
_SCRIPTS = {
    "CJK": "Chinese or Japanese",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HANGUL": "Korean",
    "MYANMAR": "Burmese",
    "DEVANAGARI": "Hindi or another language in Devanagari",
}
_ENGLISH = """the of and to in is that it for was with as on are this be at by not or from have an which what how you i
my do can a we he she they will would if but all there when who your has had were been their its about into than
so no one out up me his her our us them please show tell get go"""
_SMALL_WORDS = {  # of two letters and more: code is full of single ones
    "German": "der und das nicht ist eine einen mit sich auf auch dem von wird oder aber wir ich sie bei nach sind ein",
    "French": "le les des une est dans pour que qui avec sur pas du et au il nous vous cette ne la aux par ce sont",
    "Spanish": "el los las que una por con del se su como pero lo es al la mi para sus hay este un en cuál cómo",
    "Italian": "il che di della per una con non sono del gli si nel alla anche le dei dal come un da delle ma",
    "Portuguese": "que não uma com os da em dos por mais ao foi são na um para se no ou pelo seu qual",
    "Catalan": "els les una amb per que és del dels aquest aquesta com més són també al pel",
    "Dutch": "de het een van en niet dat zijn met voor op ook aan wordt hij maar als naar bij deze er",
    "Swedish": "och att det som en på är av för den med inte till har ett jag om från kan",
    "Danish or Norwegian": "og det er på som til af av ikke har den jeg et med en om ved",
    "Finnish": "ja on ei että se oli hän mutta kun myös joka ovat tai sen niin",
    "Polish": "się nie na jest że jak oraz przez ale po dla od są jego",
    "Czech or Slovak": "se na že je ve jako pro ale jsem který které při nebo sa aj",
    "Romanian": "și în de cu pe nu este din care pentru sau mai că la sunt",
    "Hungarian": "és az hogy nem egy meg ez csak mint volt vagy is de",
    "Turkish": "ve bir bu için ile olarak da çok daha gibi olan kadar ne",
    "Indonesian or Malay": "yang dan di dari dengan untuk pada ini itu tidak dalam adalah akan juga",
    "Vietnamese": "và của là có không được cho các một trong những với người",
    "Tagalog": "ang ng sa mga na ay ito siya hindi para",
    "Swahili": "ya na wa kwa ni katika kuwa hii za la cha watu",
}


@functools.cache
def _small_words() -> tuple[frozenset[str], dict[str, list[str]]]:
    """English small words, and the languages of every other small word."""
    english = frozenset(_ENGLISH.split())
    languages: dict[str, list[str]] = {}
    for language, listed in _SMALL_WORDS.items():
        for word in listed.split():
            if word not in english:
                languages.setdefault(word, []).append(language)
    return english, languages


def is_small_word(word: str) -> bool:
    """Whether a word says nothing of the subject of an English text."""
    return word in _small_words()[0]


@functools.lru_cache(10_000)
def not_english(text: str) -> str:
    """What a text is written in; empty for English, and for what is of no language, such as code and formulas.

    Texts without letters are "numbers and signs". A text in another script with a few English words in it is in that
    script, since most of its letters are.
    """
    beginning = text[:_LETTERS_READ]
    letters = _LETTER.findall(beginning)
    if len(letters) < _FEWEST_LETTERS * len("".join(beginning.split())):
        return "numbers and signs"
    if not beginning.isascii():
        scripts = Counter(unicodedata.name(letter, "UNKNOWN").split()[0] for letter in letters if letter > "\u024f")
        foreign = Counter({name: n for name, n in scripts.items() if name not in ("LATIN", "MODIFIER", "MATHEMATICAL")})
        if foreign.total() > _FOREIGN_LETTERS * len(letters):
            name = "HIRAGANA" if foreign["HIRAGANA"] + foreign["KATAKANA"] else foreign.most_common(1)[0][0]
            return _SCRIPTS.get(name, name.title())
    english, languages = _small_words()
    read = words(beginning)[:_WORDS_READ]
    counts = Counter(language for word in read for language in languages.get(word, ()))
    if not counts:
        return ""
    language, most = counts.most_common(1)[0]
    ours = sum(word in english for word in read)
    foreign_text = most >= max(_FEWEST_SMALL_WORDS, _SMALL_WORDS_SHARE * len(read)) and most > 2 * ours
    return language if foreign_text else ""
