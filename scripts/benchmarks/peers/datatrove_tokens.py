"""datatrove's tokenizer pipeline as its examples write it: JSON Lines to shuffled files of tokens on this machine.

python scripts/benchmarks/peers/datatrove_tokens.py FOLDER 'GLOB' TOKENIZER_JSON END_OF_TEXT OUTPUT TASKS
"""

import json
from pathlib import Path
import sys

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer


def main() -> None:
    """Runs one task a file and prints the number of tokens.

    The tasks run one after the other in this process, since datatrove does not wait for its workers, whose CPU seconds
    would not be counted.
    """
    folder, pattern, tokenizer, end_of_text, output, tasks = sys.argv[1:]
    pipeline = [
        JsonlReader(folder, glob_pattern=pattern),
        DocumentTokenizer(f"{output}/tokens", tokenizer_name_or_path=tokenizer, eos_token=end_of_text),
    ]
    LocalPipelineExecutor(pipeline, tasks=int(tasks), workers=1, logging_dir=f"{output}/logs").run()
    sizes = [path.stat().st_size for path in Path(output, "tokens").glob("*.ds")]
    print(json.dumps({"tokens": sum(sizes) // 2}))


if __name__ == "__main__":
    main()
