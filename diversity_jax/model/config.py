"""The configuration of a Llama: sizes, numerics and how its layers are run. Does not import JAX."""

from dataclasses import dataclass
import functools

from diversity_jax.core.errors import InputError

ATTENTION = ("auto", "chunked", "cudnn", "splash", "reference")
REMAT = ("none", "full", "save_matmuls", "offload")
COMPUTE_DTYPES = ("bfloat16", "float32")
ATTENTION_MATRICES, MLP_MATRICES = ("query", "key", "value", "output"), ("gate", "up", "down")
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "max_length", "loss_chunk_bytes")


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """A decoder-only transformer: RMSNorm, SwiGLU, rotary positions (half-split), grouped-query attention, no biases.

    Parameters are float32; `compute_dtype` is the type of the matrix products. Attention's softmax, the norms'
    statistics and the loss are always float32.
    """

    vocab_size: int  # token ids, 0 <= id < vocab_size
    hidden_size: int  # D
    intermediate_size: int  # F, inner size of the feed-forward part
    num_layers: int
    num_heads: int  # H query heads; hidden_size / num_heads is the size of a head
    num_kv_heads: int | None = None  # K key/value heads, each shared by H / K query heads; None: as many as num_heads
    max_length: int = 2048  # tokens; longest sequence the model is meant for
    rope_theta: float = 10000.0  # base of the rotary wavelengths
    rms_norm_eps: float = 1e-5
    tie_embeddings: bool = True  # the output projection is the embedding, transposed
    sliding_window: int | None = None  # tokens that attention looks back on, the token itself among them; None: all
    # Share of attention probabilities dropped in training (the paper: 0.1); needs attention "chunked" or "reference".
    dropout: float = 0.0
    initializer_range: float = 0.02  # standard deviation of every initial matrix
    # One compiled layer run in a loop; False compiles each layer by itself: slower to compile, faster on CPU.
    scan_layers: bool = True
    # What the backward pass recomputes: "none", "full" (all but layer inputs), "save_matmuls" (all but products with
    # weights and the attention kernel), "offload" (as "full", with the layer inputs in the host's memory).
    remat: str = "none"
    # Kernel: "auto" chooses by device; "chunked" (formerly "xla"), "cudnn", "splash", "reference".
    attention: str = "auto"
    compute_dtype: str = "bfloat16"  # "bfloat16" or "float32"
    # Float32 logits that may exist at once on a device; the loss works through the sequence in chunks of this size.
    loss_chunk_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        if self.attention == "xla":
            object.__setattr__(self, "attention", "chunked")
        for field in _SIZES:
            if getattr(self, field) < 1:
                raise InputError(f"model.{field}={getattr(self, field)}: must be at least 1")
        if self.hidden_size % (2 * self.num_heads):
            raise InputError(
                f"model.hidden_size={self.hidden_size}: must be a multiple of 2 * num_heads={2 * self.num_heads} "
                "(rotary positions turn pairs)"
            )
        if self.num_kv_heads is not None and (self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads):
            raise InputError(f"model.num_kv_heads={self.num_kv_heads}: must divide num_heads={self.num_heads}")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise InputError(f"model.sliding_window={self.sliding_window}: must be at least 1, or None for all tokens")
        if not 0 <= self.dropout < 1:
            raise InputError(f"model.dropout={self.dropout}: must be at least 0 and below 1")
        for field in ("rope_theta", "rms_norm_eps", "initializer_range"):
            if not getattr(self, field) > 0:
                raise InputError(f"model.{field}={getattr(self, field)}: must be above 0")
        for field, choices in (("attention", ATTENTION), ("remat", REMAT), ("compute_dtype", COMPUTE_DTYPES)):
            if getattr(self, field) not in choices:
                raise InputError(f"model.{field}={getattr(self, field)!r}: must be one of {', '.join(choices)}")
        if self.dropout and self.attention in ("cudnn", "splash"):
            raise InputError(
                f"model.attention={self.attention!r}: this kernel cannot drop attention probabilities; set "
                f"model.dropout=0 (now {self.dropout}) or model.attention='chunked'"
            )

    @property
    def head_size(self) -> int:
        """Dh, the size of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def kv_heads(self) -> int:
        """K, the number of key/value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def layer_matrix_parameters(self) -> int:
        """Parameters in the matrices of one layer."""
        attention = 2 * self.hidden_size * self.head_size * (self.num_heads + self.kv_heads)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def parameter_count(self) -> int:
        """All trained numbers; tied embeddings count once."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        return embeddings + self.num_layers * (self.layer_matrix_parameters + 2 * self.hidden_size) + self.hidden_size


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021): beside a matrix W stands a product A B; A and B alone are trained."""

    rank: int = 0  # R, columns of A and rows of B; 0: no adapters, all parameters are trained
    alpha: float = 16.0  # A B counts alpha / rank times, so that the learning rate need not change with the rank
    matrices: tuple[str, ...] = ATTENTION_MATRICES + MLP_MATRICES  # names of projections in every layer

    def __post_init__(self) -> None:
        if self.rank < 0 or not self.alpha > 0:
            settings = f"lora.rank={self.rank}, lora.alpha={self.alpha}"
            raise InputError(f"{settings}: give a rank of at least 0 and an alpha above 0")
        object.__setattr__(self, "matrices", tuple(self.matrices))
        known = ATTENTION_MATRICES + MLP_MATRICES
        if not self.matrices or not set(self.matrices) <= set(known):
            raise InputError(f"lora.matrices={self.matrices}: name one or more of {', '.join(known)}")


# The paper's table of model sizes, with CodeGen's vocabulary; each entry takes any field of LlamaConfig as an override.
LLAMA = {
    "llama_tiny": functools.partial(
        LlamaConfig,
        vocab_size=512,
        hidden_size=128,
        intermediate_size=384,
        num_layers=4,
        num_heads=4,
        max_length=256,
        scan_layers=False,
        compute_dtype="float32",
    ),
    "llama_350m": functools.partial(
        LlamaConfig, vocab_size=50304, hidden_size=960, intermediate_size=2560, num_layers=28, num_heads=15
    ),
    "llama_1p4b": functools.partial(
        LlamaConfig, vocab_size=50304, hidden_size=2048, intermediate_size=8192, num_layers=16, num_heads=32
    ),
    "llama_7b": functools.partial(
        LlamaConfig,
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_layers=32,
        num_heads=32,
        tie_embeddings=False,
        remat="full",
    ),
}
