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


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            platform="tpu",
            hbm_bytes=int(30.75 * _GIB),
            peak_flops=275e12,
            hbm_bytes_per_second=1.2e12,
            link_bytes_per_second=100e9,
            network_bytes_per_second=6.25e9,
            example="v4:2x2x4",
            source="cloud.google.com/tpu/docs/v4; 50 GB/s a link and 6.25 GB/s of network a chip from the JAX "
            "scaling book",
        ),
        Chip(
            name="v5e",
            platform="tpu",
            hbm_bytes=int(15.75 * _GIB),
            peak_flops=197e12,
            hbm_bytes_per_second=819e9,
            link_bytes_per_second=100e9,
            network_bytes_per_second=3.125e9,
            example="v5e:4x4",
            source="cloud.google.com/tpu/docs/v6e (its column v5e): 1600 Gb/s over 4 links, 2 x 100 Gb/s for 8 chips",
        ),
        Chip(
            name="v5p",
            platform="tpu",
            hbm_bytes=int(95.74 * _GIB),
            peak_flops=459e12,
            hbm_bytes_per_second=2765e9,
            link_bytes_per_second=200e9,
            network_bytes_per_second=6.25e9,
            example="v5p:2x2x4",
            source="cloud.google.com/tpu/docs/v5p: 1200 GB/s both ways over 6 links, 50 Gb/s of network a chip",
        ),
        Chip(
            name="v6e",
            platform="tpu",
            hbm_bytes=int(31.25 * _GIB),
            peak_flops=918e12,
            hbm_bytes_per_second=1640e9,
            link_bytes_per_second=200e9,
            network_bytes_per_second=12.5e9,
            example="v6e:4x4",
            source="cloud.google.com/tpu/docs/v6e: 800 GB/s both ways over 4 links, 4 x 200 Gb/s for 8 chips",
        ),
        Chip(
            name="h100",
            platform="cuda",
            hbm_bytes=84_942_979_072,
            peak_flops=989e12,
            hbm_bytes_per_second=3.35e12,
            link_bytes_per_second=450e9,
            network_bytes_per_second=50e9,
            example="h100:8",
            source=_HOPPER,
        ),
        Chip(
            name="h200",
            platform="cuda",
            hbm_bytes=151_397_597_184,
            peak_flops=989e12,
            hbm_bytes_per_second=4.8e12,
            link_bytes_per_second=450e9,
            network_bytes_per_second=50e9,
            example="h200:1",
            source=_HOPPER,
        ),
    )
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
