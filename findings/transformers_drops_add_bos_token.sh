#!/usr/bin/env bash
# transformers 5.24.0 beside 4.57.6, Python 3.11.
#
# Expected: "add_bos_token": true in tokenizer_config.json, with a bos_token that the vocabulary has, begins every text
# with it, as the Llama classes of version 4 do (folders such as DeepSeek's: LlamaTokenizerFast, a byte-level
# tokenizer.json whose own post-processor adds nothing).
# Seen: version 5 loads the folder as TokenizersBackend, whose constructor obeys the entry, but the entry is taken out
# before it is called: the same folder gives ids without begin-of-text, and add_bos_token reads False. Nothing is said of
# it; a model that saw the token before every text is evaluated without. The other way round, "add_bos_token": false is
# dropped too where the file's post-processor adds the token.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cat > "$folder/ids.py" <<'PY'
import json, logging, os, sys

logging.disable(logging.WARNING)
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

begin, folder = "<begin>", sys.argv[1]


def ids(name: str, processor, adds: bool) -> list[int]:
    path = os.path.join(folder, name + transformers.__version__)
    os.makedirs(path)
    vocabulary = {text: number for number, text in enumerate([begin, "<end>", "a", "b"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([begin, "<end>"])
    tokenizer.post_processor = processor
    tokenizer.save(os.path.join(path, "tokenizer.json"))
    config = {"bos_token": begin, "eos_token": "<end>", "add_bos_token": adds, "tokenizer_class": "LlamaTokenizerFast"}
    with open(os.path.join(path, "tokenizer_config.json"), "w") as file:
        json.dump(config, file)
    return transformers.AutoTokenizer.from_pretrained(path)("ab")["input_ids"]


template = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 0)])
found = [ids("asked", processors.ByteLevel(), True), ids("unasked", template, False)]
print(transformers.__version__, "add_bos_token true:", found[0], " false:", found[1])
expected = [[0, 2, 3], [2, 3]] if transformers.__version__.startswith("4.") else [[2, 3], [0, 2, 3]]
assert found == expected, "behaviour changed"
PY
for version in 4.57.6 5.24.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version"
  "$folder/$version/bin/python" "$folder/ids.py" "$folder"
done
