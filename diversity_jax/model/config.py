"""Configurations of a Llama model, its low-rank adapters and its device mesh. Does not import JAX."""

import dataclasses
from dataclasses import dataclass, field
import functools
import math
from typing import Any

from diversity_jax.core.config import ADDED, check_least, check_whole, fields_for_keys
from diversity_jax.core.errors import InputError

ATTENTION = ("auto", "chunked", "cudnn", "splash", "reference")
REMAT = ("none", "full", "save_matmuls", "offload")
COMPUTE_DTYPES = ("bfloat16", "float32")
ROPE_SCALINGS = ("none", "linear", "dynamic", "llama3", "yarn")
QK_NORMS, NORM_ORDERS, ACTIVATIONS = ("none", "head", "full"), ("pre", "post", "both"), ("silu", "gelu_tanh")
ATTENTION_MATRICES, MLP_MATRICES = ("query", "key", "value", "output"), ("gate", "up", "down")
_SIZES = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "loss_chunk_bytes")
_OF_MIXTURE = ("vocab_size", "max_length")
_VOCABULARY_STEP = 128  # a vocabulary of a multiple of it fills the tiles of every accelerator
_POSITIVE = (
    *("rope_theta", "rms_norm_eps", "initializer_range", "head_dim", "partial_rotary_factor", "rope_original_length"),
    *("rope_slow_turns", "rope_fast_turns", "rope_attention_factor", "window_rope_theta", "embedding_multiplier"),
    *("residual_multiplier", "attention_multiplier", "logits_divisor"),
)
_CHOICES = {
    **{"attention": ATTENTION, "remat": REMAT, "compute_dtype": COMPUTE_DTYPES, "rope_scaling": ROPE_SCALINGS},
    **{"qk_norm": QK_NORMS, "norm_order": NORM_ORDERS, "activation": ACTIVATIONS},
}


def _fast_turns(rope_scaling: str) -> float:
    return 32.0 if rope_scaling == "yarn" else 4.0


def yarn_attention_factor(rope_factor: float) -> float:
    """Yarn's default factor of rotated queries and keys (Peng et al. 2023, eq. 22); 1 for factors below 1."""
    return 0.1 * math.log(max(rope_factor, 1.0)) + 1


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """A decoder-only transformer: RMSNorm, gated feed-forward, rotary positions (half-split), grouped-query attention.

    The defaults are the original Llama; the fields from `head_dim` on are what later models changed. Parameters are
    float32; `compute_dtype` is the type of the matrix products. Attention's softmax, the norms' statistics and the loss
    are always float32.
    """

    # Token ids, 0 <= id < vocab_size; 0: in training, what the mixture's tokenizer needs, up to a multiple of 128.
    vocab_size: int
    hidden_size: int  # D
    intermediate_size: int  # F, inner size of the feed-forward part
    num_layers: int  # of attention and feed-forward
    num_heads: int  # H query heads
    num_kv_heads: int | None = None  # K key/value heads, each shared by H / K query heads; None: as many as num_heads
    max_length: int = 2048  # tokens; longest sequence the model is meant for; 0: in training, the mixture's
    rope_theta: float = 10000.0  # base of the rotary wavelengths
    rms_norm_eps: float = 1e-5  # added to the mean square in every norm
    tie_embeddings: bool = True  # the output projection is the embedding, transposed
    sliding_window: int | None = None  # tokens that a token attends to, itself included; None: all before it
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
    # Dh, the size of a head; None: hidden_size / num_heads.
    head_dim: int | None = field(default=None, metadata=ADDED)
    qkv_bias: bool = field(default=False, metadata=ADDED)  # queries, keys and values have biases (Qwen2)
    output_bias: bool = field(default=False, metadata=ADDED)  # attention's output has one
    mlp_bias: bool = field(default=False, metadata=ADDED)  # gate, up and down have biases
    # RMSNorm of queries and keys before rotation: "none", "head" (each head by itself: Qwen3), "full" (OLMo 2).
    qk_norm: str = field(default="none", metadata=ADDED)
    # What is normalised: inputs of attention and feed-forward ("pre"), their outputs ("post": OLMo 2) or "both".
    norm_order: str = field(default="pre", metadata=ADDED)
    norm_offset: float = field(default=0.0, metadata=ADDED)  # added to the weights of all norms (Gemma: 1)
    activation: str = field(default="silu", metadata=ADDED)  # of the gate: "silu" or "gelu_tanh"
    # Layers, counted from 0, that attend to all tokens in spite of `sliding_window`.
    layers_without_window: tuple[int, ...] = field(default=(), metadata=ADDED)
    # Layers, counted from 0, without rotary positions (SmolLM3).
    layers_without_rotary: tuple[int, ...] = field(default=(), metadata=ADDED)
    # Share of a head's elements, from the first on, that are rotated (Phi-4-mini: 0.75).
    partial_rotary_factor: float = field(default=1.0, metadata=ADDED)
    # How wavelengths are stretched for long texts: "none", "linear" (all alike), "llama3" and "yarn" (long ones only),
    # "dynamic" (with the length of the sequence, once it exceeds rope_original_length).
    rope_scaling: str = field(default="none", metadata=ADDED)
    rope_factor: float = field(default=1.0, metadata=ADDED)  # how many times longer a stretched wavelength is
    # Longest sequence, in tokens, before wavelengths were stretched; llama3, yarn and dynamic need it.
    rope_original_length: int | None = field(default=None, metadata=ADDED)
    # Of llama3 and yarn: pairs that rotate fewer times than this within the original length are stretched in full ...
    rope_slow_turns: float = field(default=1.0, metadata=ADDED)
    # ... and pairs that rotate more times than this not at all; None: 4 for llama3, 32 for yarn.
    rope_fast_turns: float | None = field(default=None, metadata=ADDED)
    # Of yarn: factor of rotated queries and keys; None: 0.1 ln(rope_factor) + 1.
    rope_attention_factor: float | None = field(default=None, metadata=ADDED)
    # Base of the unstretched wavelengths in layers with a window (Gemma 3, OLMo 3); None: as in other layers.
    window_rope_theta: float | None = field(default=None, metadata=ADDED)
    embedding_multiplier: float = field(default=1.0, metadata=ADDED)  # of the embeddings (Granite, Gemma)
    # Of the outputs of attention and feed-forward before they are added to the residual stream (Granite).
    residual_multiplier: float = field(default=1.0, metadata=ADDED)
    # Of the scores before the softmax (Granite, Gemma 3); None: head_size ** -0.5.
    attention_multiplier: float | None = field(default=None, metadata=ADDED)
    logits_divisor: float = field(default=1.0, metadata=ADDED)  # the logits are divided by it (Granite)

    def __post_init__(self) -> None:
        if self.attention == "xla":
            object.__setattr__(self, "attention", "chunked")
        check_whole(self, "model.")
        check_least(self, "model.", sliding_window=1, **dict.fromkeys(_SIZES, 1), **dict.fromkeys(_OF_MIXTURE, 0))
        self._unify()
        if self.head_dim is None and self.hidden_size % (2 * self.num_heads):
            raise InputError(
                f"model.hidden_size={self.hidden_size}: must be a multiple of 2 * num_heads={2 * self.num_heads} "
                "(rotary positions turn pairs), unless model.head_dim is set"
            )
        if self.num_kv_heads is not None and (self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads):
            raise InputError(f"model.num_kv_heads={self.num_kv_heads}: must divide num_heads={self.num_heads}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"model.dropout={self.dropout}: must be at least 0 and below 1")
        for name in _POSITIVE:
            if (value := getattr(self, name)) is not None and not value > 0:
                raise InputError(f"model.{name}={value}: must be above 0")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"model.{name}={getattr(self, name)!r}: must be one of {', '.join(choices)}")
        if self.dropout and self.attention in ("cudnn", "splash"):
            raise InputError(
                f"model.attention={self.attention!r}: this kernel cannot drop attention probabilities; set "
                f"model.dropout=0 (now {self.dropout}) or model.attention='chunked'"
            )
        self._check_layers()
        self._check_rotary()

    def _unify(self) -> None:
        """Sets each field that only repeats another or its default to one form, so that equal models compare equal."""
        if self.hidden_size == (self.head_dim or 0) * self.num_heads:
            object.__setattr__(self, "head_dim", None)
        for name in ("layers_without_window", "layers_without_rotary"):
            object.__setattr__(self, name, tuple(sorted(set(getattr(self, name)))))
        if self.sliding_window is None:
            object.__setattr__(self, "layers_without_window", ())
        unscaled_theta = self.rope_theta if self.rope_scaling == "none" else None
        for name, same in (
            ("rope_fast_turns", _fast_turns(self.rope_scaling)),
            ("rope_attention_factor", yarn_attention_factor(self.rope_factor)),
            ("window_rope_theta", unscaled_theta),
            ("attention_multiplier", max(self.head_size, 1) ** -0.5),
        ):
            if getattr(self, name) == same:
                object.__setattr__(self, name, None)

    def _check_layers(self) -> None:
        for name in ("layers_without_window", "layers_without_rotary"):
            if wrong := [number for number in getattr(self, name) if not 0 <= number < self.num_layers]:
                raise InputError(f"model.{name}: there is no layer {wrong[0]}; they count from 0 to num_layers - 1")
        if self.window_rope_theta is not None and self.sliding_window is None:
            raise InputError("model.window_rope_theta: no layer has a window; set model.sliding_window too")

    def _check_rotary(self) -> None:
        if self.partial_rotary_factor > 1 or self.rotary_size < 2 or self.rotary_size % 2:
            raise InputError(
                f"model.head_dim={self.head_size}, model.partial_rotary_factor={self.partial_rotary_factor}: "
                f"{self.head_size * self.partial_rotary_factor:g} elements would turn; rotary positions turn pairs"
            )
        if self.rope_scaling == "none":
            if (self.rope_factor, self.rope_original_length, self.rope_attention_factor) != (1.0, None, None):
                raise InputError("model.rope_factor: has no effect with model.rope_scaling='none'; set that too")
            return
        if self.rope_factor < 1:
            raise InputError(f"model.rope_factor={self.rope_factor}: must be at least 1: wavelengths are stretched")
        if self.rope_original_length is None and self.rope_scaling != "linear":
            raise InputError(
                f"model.rope_original_length=None: model.rope_scaling={self.rope_scaling!r} needs the length that the "
                "model was trained on before wavelengths were stretched"
            )
        if self.rope_scaling != "yarn" and self.rope_attention_factor is not None:
            raise InputError(
                f"model.rope_attention_factor={self.rope_attention_factor}: has no effect with "
                f"model.rope_scaling={self.rope_scaling!r}; it is yarn's"
            )
        if self.fast_turns <= self.rope_slow_turns:
            raise InputError(
                f"model.rope_fast_turns={self.fast_turns}: must be above rope_slow_turns={self.rope_slow_turns}"
            )

    @property
    def head_size(self) -> int:
        """Dh, the size of one attention head."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def rotary_size(self) -> int:
        """Elements of a head that are rotated, from the first on."""
        return int(self.head_size * self.partial_rotary_factor)

    @property
    def fast_turns(self) -> float:
        """`rope_fast_turns`, or its default for this `rope_scaling`."""
        return self.rope_fast_turns or _fast_turns(self.rope_scaling)

    def layer_window(self, layer: int) -> int | None:
        """Tokens that a token attends to in a layer, itself included; None: all before it."""
        return None if layer in self.layers_without_window else self.sliding_window

    def for_rows(self, token_ids: int, sequence_length: int) -> "LlamaConfig":
        """A copy with `vocab_size` and `max_length` set where they are left to the mixture.

        Args:
          token_ids: number of ids of the tokenizer.
          sequence_length: tokens that a row predicts.
        """
        vocab_size = self.vocab_size or -(-token_ids // _VOCABULARY_STEP) * _VOCABULARY_STEP
        return dataclasses.replace(self, vocab_size=vocab_size, max_length=self.max_length or sequence_length)

    def check_described(self) -> None:
        """Raises `InputError` where a size is left to the mixture."""
        if self.follows_mixture:
            raise InputError("model.vocab_size and model.max_length: one is left to the mixture (0); give both here")

    @property
    def follows_mixture(self) -> bool:
        """Whether a size is left to the mixture, so that the model is not fully described yet."""
        return not all(getattr(self, name) for name in _OF_MIXTURE)

    @property
    def layer_period(self) -> int:
        """The smallest divisor of `num_layers` after which windows and rotary positions of layers repeat."""
        if not self.layers_without_window and not self.layers_without_rotary:
            return 1
        kinds = [(self.layer_window(n), n in self.layers_without_rotary) for n in range(self.num_layers)]
        periods = (n for n in range(1, self.num_layers + 1) if self.num_layers % n == 0)
        return next(n for n in periods if kinds == kinds[:n] * (self.num_layers // n))

    @property
    def attention_factor(self) -> float:
        """Factor of rotated queries and keys: `rope_attention_factor` or its default."""
        if self.rope_scaling != "yarn":
            return 1.0
        return self.rope_attention_factor or yarn_attention_factor(self.rope_factor)

    @property
    def changed_switches(self) -> dict[str, Any]:
        """Values of the fields from `head_dim` on that differ from their defaults, by name."""
        added = {field.name for field in dataclasses.fields(self) if "added" in field.metadata}
        return {name: value for name, value in fields_for_keys(self).items() if name in added}

    @property
    def kv_heads(self) -> int:
        """K, the number of key/value heads."""
        return self.num_kv_heads or self.num_heads

    @property
    def matrix_sides(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each projection of a layer, by name."""
        queries, keys = self.num_heads * self.head_size, self.kv_heads * self.head_size
        width, inner = self.hidden_size, self.intermediate_size
        sides = [(width, queries), *2 * [(width, keys)], (queries, width), *2 * [(width, inner)], (inner, width)]
        return dict(zip(ATTENTION_MATRICES + MLP_MATRICES, sides, strict=True))

    @property
    def layer_matrix_parameters(self) -> int:
        return sum(math.prod(sides) for sides in self.matrix_sides.values())

    @property
    def layer_vector_parameters(self) -> int:
        """Parameters in the norms and biases of one layer."""
        queries, keys = (self.matrix_sides[name][1] for name in ("query", "key"))
        norms = self.hidden_size * (4 if self.norm_order == "both" else 2)
        norms += {"none": 0, "head": 2 * self.head_size, "full": queries + keys}[self.qk_norm]
        attention = (queries + 2 * keys) * self.qkv_bias + self.hidden_size * self.output_bias
        return norms + attention + (2 * self.intermediate_size + self.hidden_size) * self.mlp_bias

    @property
    def parameter_count(self) -> int:
        """All trained numbers; tied embeddings count once."""
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        layers = self.num_layers * (self.layer_matrix_parameters + self.layer_vector_parameters)
        return embeddings + layers + self.hidden_size


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021): a product A B is added to a matrix W; only A and B are trained."""

    rank: int = 0  # R, columns of A and rows of B; 0: no adapters, all parameters are trained
    alpha: float = 16.0  # A B is scaled by alpha / rank, so that the learning rate need not change with the rank
    matrices: tuple[str, ...] = ATTENTION_MATRICES + MLP_MATRICES  # names of projections in every layer

    def __post_init__(self) -> None:
        check_whole(self, "lora.")
        if self.rank < 0 or not 0 < self.alpha < math.inf:
            raise InputError(f"lora.rank={self.rank}, alpha={self.alpha}: rank of at least 0 and finite alpha above 0")
        object.__setattr__(self, "matrices", tuple(self.matrices))
        known = ATTENTION_MATRICES + MLP_MATRICES
        if not self.matrices or not set(self.matrices) <= set(known) or len(set(self.matrices)) < len(self.matrices):
            raise InputError(f"lora.matrices={self.matrices}: name one or more of {', '.join(known)}, each once")

    def parameter_count(self, model: LlamaConfig) -> int:
        """The numbers in all adapters to a model; 0 at rank 0."""
        return self.rank * model.num_layers * sum(sum(model.matrix_sides[name]) for name in self.matrices)


LLAMA = {  # the paper's sizes, with CodeGen's vocabulary, and a tiny one; each takes further fields as overrides
    "llama_tiny": functools.partial(
        LlamaConfig,
        vocab_size=0,
        hidden_size=128,
        intermediate_size=384,
        num_layers=4,
        num_heads=4,
        max_length=0,
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


MESH_AXES = ("data", "fsdp", "tensor", "sequence")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The number of shards along each axis; at most one may be -1: all remaining devices.

    `network_data * network_fsdp` is the number of slices (TPU) or nodes joined by a slower network. Only data and fsdp
    are sharded across the network; tensor and sequence are not, since they communicate in every layer.
    """

    data: int = 1  # copies of the model, each on its own rows
    fsdp: int = -1  # shards of the parameters and optimizer state, each on its own rows
    tensor: int = 1  # shards of heads, feed-forward and vocabulary
    sequence: int = 1  # shards of the sequence length
    network_data: int = 1  # number of slices or nodes that data is sharded over
    network_fsdp: int = 1  # number of slices or nodes that fsdp is sharded over

    def __post_init__(self) -> None:
        check_whole(self, "mesh.")
        for axis, size in (sizes := self.sizes).items():
            if size < 1 and size != -1:
                raise InputError(f"mesh.{axis}={size}: must be at least 1, or -1 for all devices that are left")
        if list(sizes.values()).count(-1) > 1:
            raise InputError(f"mesh={sizes}: only one axis may be -1; give the others a number")
        for axis in ("data", "fsdp"):
            crossing = getattr(self, f"network_{axis}")
            if crossing < 1 or (sizes[axis] != -1 and sizes[axis] % crossing):
                raise InputError(f"mesh.network_{axis}={crossing}: must divide mesh.{axis}={sizes[axis]}")

    @property
    def sizes(self) -> dict[str, int]:
        """Axis name -> number of shards, in mesh order."""
        return {axis: getattr(self, axis) for axis in MESH_AXES}

    @property
    def slices(self) -> int:
        """Slices or nodes the mesh spans."""
        return self.network_data * self.network_fsdp

    def resolved(self, devices: int) -> dict[str, int]:
        """`sizes` with -1 replaced for this number of devices.

        Raises:
          InputError: the axes do not multiply to the number of devices.
        """
        sizes = self.sizes
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if fixed != devices and -1 not in sizes.values():
            raise InputError(f"mesh={sizes}: needs {fixed} devices but there are {devices}; set one axis to -1")
        if devices % fixed:
            raise InputError(f"mesh={sizes}: {fixed} does not divide the {devices} devices; choose axes that do")
        sizes = {axis: devices // fixed if size == -1 else size for axis, size in sizes.items()}
        for axis in ("data", "fsdp"):
            if sizes[axis] % (crossing := getattr(self, f"network_{axis}")):
                raise InputError(
                    f"mesh.network_{axis}={crossing}: must divide mesh.{axis}={sizes[axis]} on {devices} devices"
                )
        return sizes
