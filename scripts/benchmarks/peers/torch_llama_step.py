"""A Llama train step in PyTorch as its users write it for speed: compiled, bfloat16 autocast, torch's own attention.

    python scripts/benchmarks/peers/torch_llama_step.py --tied --compile

`scaled_dot_product_attention` takes its flash or cuDNN kernel on CUDA. AdamW is the fused one. On a CPU all is float32.
"""

import common
import torch
from torch import nn
from torch.nn import functional


class Layer(nn.Module):
    """Attention and SwiGLU, each behind an RMSNorm; query, key and value are one product, gate and up another."""

    def __init__(self, c):
        super().__init__()
        self.heads, self.kv_heads, self.size = c.heads, c.kv_heads or c.heads, c.hidden // c.heads
        self.before_attention = nn.RMSNorm(c.hidden, eps=1e-5)
        self.before_mlp = nn.RMSNorm(c.hidden, eps=1e-5)
        self.query_key_value = nn.Linear(c.hidden, (self.heads + 2 * self.kv_heads) * self.size, bias=False)
        self.out = nn.Linear(self.heads * self.size, c.hidden, bias=False)
        self.gate_up = nn.Linear(c.hidden, 2 * c.intermediate, bias=False)
        self.down = nn.Linear(c.intermediate, c.hidden, bias=False)

    def rotate(self, x, cos, sin):
        """Half-split rotary embedding of (batch, heads, length, size)."""
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)

    def forward(self, x, cos, sin):
        """(batch, length, hidden) to the same."""
        batch, length, _ = x.shape
        heads = self.query_key_value(self.before_attention(x)).view(batch, length, -1, self.size).transpose(1, 2)
        query, key, value = heads.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        attended = functional.scaled_dot_product_attention(
            self.rotate(query, cos, sin),
            self.rotate(key, cos, sin),
            value,
            is_causal=True,
            enable_gqa=self.kv_heads != self.heads,
        )
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, -1))
        gate, up = self.gate_up(self.before_mlp(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)


class TorchLlama(nn.Module):
    """The whole model; `forward` gives the loss."""

    def __init__(self, c):
        super().__init__()
        self.embedding = nn.Embedding(c.vocab, c.hidden)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.hidden, eps=1e-5)
        self.head = nn.Linear(c.hidden, c.vocab, bias=False)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
        if c.tied:
            self.head.weight = self.embedding.weight
        size = c.hidden // c.heads
        angles = torch.outer(torch.arange(c.length).float(), 10000.0 ** (-torch.arange(0, size, 2).float() / size))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens, targets):
        """Mean loss in nats per token."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin)
        return functional.cross_entropy(self.head(self.norm(x)).float().flatten(0, 1), targets.flatten())


def main() -> None:
    """Measures the step."""
    flags = common.parser(__doc__)
    flags.add_argument("--compile", action="store_true")
    c = flags.parse_args()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    torch.manual_seed(c.seed)
    torch.set_float32_matmul_precision("high")
    model = TorchLlama(c).to(device)
    loss_of = torch.compile(model) if c.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    data = torch.randint(0, c.vocab, (c.batch, c.length + 1), generator=torch.Generator().manual_seed(c.seed + 1))
    tokens, targets = data[:, :-1].contiguous().to(device), data[:, 1:].contiguous().to(device)

    def step() -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            loss = loss_of(tokens, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()  # waits for the loss; the next line for the rest

    def synchronised() -> float:
        loss = step()
        if cuda:
            torch.cuda.synchronize()
        return loss

    peak = torch.cuda.max_memory_allocated if cuda else lambda: None
    count = sum(parameter.numel() for parameter in model.parameters())
    name = torch.cuda.get_device_name() if cuda else "cpu"
    common.measure(synchronised, c, peak, parameters=count, framework=f"torch {torch.__version__}", device=name)


if __name__ == "__main__":
    main()
