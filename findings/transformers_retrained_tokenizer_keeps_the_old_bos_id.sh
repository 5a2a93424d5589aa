#!/usr/bin/env bash
# transformers 5.24.0 and 4.57.6, Python 3.11.
#
# Expected: train_new_from_iterator gives a tokenizer of the new vocabulary, and its post-processor puts the new number
# of begin-of-text before each text (the method has code that renumbers it).
# Seen: that code looks at the outermost post-processor alone. Where the template is one of a Sequence (Llama 3's
# tokenizer.json: ByteLevel, then TemplateProcessing) it keeps the number of the OLD vocabulary: bos_token_id says 0,
# and every text begins with 2000 in a vocabulary of 500, which decode leaves out, so that a round trip shows nothing.
# In a larger new vocabulary the number is some other word's ("bin"). The same template by itself is renumbered.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cat > "$folder/retrain.py" <<'PY'
from pydoc_data.topics import topics

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BEGIN, TEXTS, OLD = "<|begin_of_text|>", list(topics.values()), 2000
old = Tokenizer(models.BPE())
old.pre_tokenizer, old.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
old.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=OLD, initial_alphabet=alphabet, show_progress=False))
old.add_special_tokens([BEGIN])
template = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, OLD)])


def retrained(processor, size):
    """The retrained tokenizer's begin-of-text, the ids of a text, the token before the text, and the text read back."""
    old.post_processor = processor
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=old, bos_token=BEGIN)
    new = wrapped.train_new_from_iterator(TEXTS, size, show_progress=False)
    ids = new("value")["input_ids"]
    return new.bos_token_id, ids, new.convert_ids_to_tokens(ids[0]), new.decode(ids, skip_special_tokens=True)


sequence = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
alone, small, large = retrained(template, 500), retrained(sequence, 500), retrained(sequence, 3000)
print(f"transformers {transformers.__version__}: template alone {alone}; in a sequence {small}; of 3000 tokens {large}")
assert alone[0] == alone[1][0] and alone[2] == BEGIN, "the control is off"
assert small[0] == 0 and small[1][0] == OLD and small[3] == "value", "behaviour changed"
assert large[0] == 0 and large[1][0] == OLD and large[2] != BEGIN, "behaviour changed"
PY
for version in 4.57.6 5.24.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "transformers==$version"
  "$folder/$version/bin/python" "$folder/retrain.py" 2>/dev/null
done
