"""Accelerator chips by their makers' data sheets: peak rates, memory and bandwidths. The only such table."""

from dataclasses import dataclass

SOURCES_READ_ON = "2026-11-21"
_GIB = 1 << 30
_HOPPER = "H100 and H200 data sheets (SXM, dense bfloat16, 900 GB/s NVLink both ways, one 400 Gb/s adapter a GPU)"


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A chip that a program can be compiled for without having it; per JAX device, rates are per second.

    Attributes:
      name: as on the command line, `v5e`.
      platform: "tpu" or "cuda".
      hbm_bytes: what a program can use: for TPUs what libtpu's compiler allows, else the driver's figure.
      peak_flops: dense bfloat16 with float32 accumulation.
      link_bytes_per_second: sent by a device in a ring: both directions of one torus axis, or all of NVLink.
      network_bytes_per_second: sent by a device to another slice or node.
      example: a slice of it; the number of its sizes is the number that every slice's name has.
    """

    name: str
    platform: str
    hbm_bytes: int
    peak_flops: float
    hbm_bytes_per_second: float
    link_bytes_per_second: float
    network_bytes_per_second: float
    example: str
    source: str


_COLUMNS = (
    "platform",
    "hbm_bytes",
    "peak_flops",
    "hbm_bytes_per_second",
    "link_bytes_per_second",
    "network_bytes_per_second",
    "example",
)
_TABLE: dict[str, tuple] = {
    "v4": ("tpu", int(30.75 * _GIB), 275e12, 1.2e12, 100e9, 6.25e9, "v4:2x2x4"),
    "v5e": ("tpu", int(15.75 * _GIB), 197e12, 819e9, 100e9, 3.125e9, "v5e:4x4"),
    "v5p": ("tpu", int(95.74 * _GIB), 459e12, 2765e9, 200e9, 6.25e9, "v5p:2x2x4"),
    "v6e": ("tpu", int(31.25 * _GIB), 918e12, 1640e9, 200e9, 12.5e9, "v6e:4x4"),
    "h100": ("cuda", 84_942_979_072, 989e12, 3.35e12, 450e9, 50e9, "h100:8"),
    "h200": ("cuda", 151_397_597_184, 989e12, 4.8e12, 450e9, 50e9, "h200:1"),
}
_SOURCES = {
    "v4": "cloud.google.com/tpu/docs/v4; 50 GB/s a link and 6.25 GB/s of network a chip from the JAX scaling book",
    "v5e": "cloud.google.com/tpu/docs/v6e (its column v5e): 1600 Gb/s over 4 links, 2 x 100 Gb/s for 8 chips",
    "v5p": "cloud.google.com/tpu/docs/v5p: 1200 GB/s both ways over 6 links, 50 Gb/s of network a chip",
    "v6e": "cloud.google.com/tpu/docs/v6e: 800 GB/s both ways over 4 links, 4 x 200 Gb/s for 8 chips",
}
CHIPS = {
    name: Chip(name=name, source=_SOURCES.get(name, _HOPPER), **dict(zip(_COLUMNS, row, strict=True)))
    for name, row in _TABLE.items()
}

# Peak FLOP/s by a part of JAX's `device_kind`, lower case; longer names stand before those they contain.
_PEAK_FLOPS_BY_KIND = {
    "tpu v2": 22.5e12,
    "tpu v3": 61.5e12,
    "tpu v4": CHIPS["v4"].peak_flops,
    "tpu v5 lite": CHIPS["v5e"].peak_flops,
    "tpu v5e": CHIPS["v5e"].peak_flops,
    "tpu v5": CHIPS["v5p"].peak_flops,
    "tpu v6": CHIPS["v6e"].peak_flops,
    "h100 pcie": 756e12,
    "h100": CHIPS["h100"].peak_flops,
    "h200": CHIPS["h200"].peak_flops,
    "h800": CHIPS["h100"].peak_flops,
    "a100": 312e12,
    "a10g": 70e12,
    "l40s": 362e12,
    "l4": 121e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one JAX device of this kind; None where the kind is not known, as for CPUs."""
    kind = device_kind.lower()
    return next((peak for name, peak in _PEAK_FLOPS_BY_KIND.items() if name in kind), None)
