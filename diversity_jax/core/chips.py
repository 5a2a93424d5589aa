"""Accelerator chips: peak rates, memory and bandwidths from data sheets; and the names that clouds give TPU slices.

`python -m diversity_jax.core.chips v6e-16` prints what a launcher needs to know about a slice.
"""

from dataclasses import dataclass
import math
import re
import sys
from typing import NamedTuple

from diversity_jax.core.errors import InputError

SOURCES_READ_ON = "2026-11-21"
_GIB = 1 << 30
_HOPPER = "H100 and H200 data sheets (SXM, dense bfloat16, 900 GB/s NVLink both ways, one 400 Gb/s adapter a GPU)"


@dataclass(frozen=True, kw_only=True)
class Chip:
    """A chip that programs can be compiled for without having it. Figures are per JAX device, rates per second.

    Attributes:
      name: as on the command line, `v5e`.
      platform: "tpu" or "cuda".
      hbm_bytes: what a program can use: for TPUs what libtpu's compiler allows, else the driver's figure.
      peak_flops: dense bfloat16 with float32 accumulation.
      link_bytes_per_second: sent by a device in a ring: both directions of one torus axis, or all of NVLink.
      network_bytes_per_second: sent by a device to another slice or node.
      example: a slice of it, with as many dimensions as the name of every slice must have.
      devices_per_chip: JAX devices of one chip of a slice's shape.
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
    devices_per_chip: int = 1


_COLUMNS = (
    *("platform", "hbm_bytes", "peak_flops", "hbm_bytes_per_second", "link_bytes_per_second"),
    *("network_bytes_per_second", "example"),
)
_TABLE: dict[str, tuple] = {
    "v4": ("tpu", int(30.75 * _GIB), 275e12, 1.2e12, 100e9, 6.25e9, "v4:2x2x4"),
    "v5e": ("tpu", int(15.75 * _GIB), 197e12, 819e9, 100e9, 3.125e9, "v5e:4x4"),
    "v5p": ("tpu", int(95.74 * _GIB), 459e12, 2765e9, 200e9, 6.25e9, "v5p:2x2x4"),
    "v6e": ("tpu", int(31.25 * _GIB), 918e12, 1640e9, 200e9, 12.5e9, "v6e:4x4"),
    "tpu7x": ("tpu", int(94.74 * _GIB), 1153.5e12, 3690e9, 100e9, 6.25e9, "tpu7x:2x2x4"),
    "h100": ("cuda", 84_942_979_072, 989e12, 3.35e12, 450e9, 50e9, "h100:8"),
    "h200": ("cuda", 151_397_597_184, 989e12, 4.8e12, 450e9, 50e9, "h200:1"),
}
_SOURCES = {
    "v4": "cloud.google.com/tpu/docs/v4; 50 GB/s a link and 6.25 GB/s of network a chip from the JAX scaling book",
    "v5e": "cloud.google.com/tpu/docs/v6e (its column v5e): 1600 Gb/s over 4 links, 2 x 100 Gb/s for 8 chips",
    "v5p": "cloud.google.com/tpu/docs/v5p: 1200 GB/s both ways over 6 links, 50 Gb/s of network a chip",
    "v6e": "cloud.google.com/tpu/docs/v6e: 800 GB/s both ways over 4 links, 4 x 200 Gb/s for 8 chips",
    "tpu7x": "docs.cloud.google.com/tpu/docs/tpu7x, of which a JAX device is half a chip: 2307 TFLOP/s, 7380 GB/s of "
    "HBM, 1200 GB/s both ways over 6 links, 100 Gb/s of network a chip; memory by libtpu 0.0.52",
}
_DEVICES_PER_CHIP = {"tpu7x": 2}
CHIPS = {
    name: Chip(
        name=name,
        source=_SOURCES.get(name, _HOPPER),
        devices_per_chip=_DEVICES_PER_CHIP.get(name, 1),
        **dict(zip(_COLUMNS, row, strict=True)),
    )
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
    "tpu7x": CHIPS["tpu7x"].peak_flops,
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


class TpuFamily(NamedTuple):
    """TPU slices of one generation, as clouds name them: `v6e-16`, `v5litepod-256`, `tpu7x-2x2x2`.

    Attributes:
      chip: its name in `CHIPS`.
      cores_per_chip: TensorCores, which the number in a slice's name counts.
      dimensions: of its shapes.
      runtime: version of the TPU VM's image (--runtime-version); None: not offered as TPU VMs by the Cloud TPU API.
      machine: GKE's machine type of slices of several hosts.
      accelerator: GKE's node label cloud.google.com/gke-tpu-accelerator.
    """

    chip: str
    cores_per_chip: int
    dimensions: int
    runtime: str | None
    machine: str
    accelerator: str


# Runtime versions: docs.cloud.google.com/tpu/docs/runtimes, read on 2026-11-30, which also says that TPU7x has none.
# Cores, machines and labels: xpk 1.16.0, core/system_characteristics.py.
TPU_FAMILIES = {
    "v4": TpuFamily("v4", 2, 3, "tpu-ubuntu2204-base", "ct4p-hightpu-4t", "tpu-v4-podslice"),
    "v5litepod": TpuFamily("v5e", 1, 2, "v2-alpha-tpuv5-lite", "ct5lp-hightpu-4t", "tpu-v5-lite-podslice"),
    "v5p": TpuFamily("v5p", 2, 3, "v2-alpha-tpuv5", "ct5p-hightpu-4t", "tpu-v5p-slice"),
    "v6e": TpuFamily("v6e", 1, 2, "v2-alpha-tpuv6e", "ct6e-standard-4t", "tpu-v6e-slice"),
    "tpu7x": TpuFamily("tpu7x", 2, 3, None, "tpu7x-standard-4t", "tpu7x"),
}
_ALIASES = {"v5e": "v5litepod", "v5lite": "v5litepod", "tpu7": "tpu7x"}
# The default shape of a number of chips.
_SHAPES = {
    2: {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    3: {
        **{4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 192: "4x4x12", 256: "4x8x8"},
        **{512: "8x8x8", 768: "8x8x12", 1024: "8x8x16", 2048: "8x16x16", 4096: "16x16x16"},
    },
}
_HOST_CHIPS = 4  # of slices of several hosts; the smaller ones of v5e and v6e may have all eight on one


@dataclass(frozen=True, kw_only=True)
class TpuSlice:
    """One slice: `v5litepod-16` is the family v5litepod with the shape 4x4."""

    family: TpuFamily
    shape: tuple[int, ...]

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def topology(self) -> str:
        """`4x4`, as GKE and the compiler write it."""
        return "x".join(map(str, self.shape))

    @property
    def hosts(self) -> int:
        """Number of hosts on GKE and of queued resources: four chips each, but for the smallest slices."""
        return max(1, self.chips // _HOST_CHIPS)


def parse_slice(name: str) -> TpuSlice | None:
    """Parses a cloud's name of a slice; None where it is no such name.

    Raises:
      InputError: the family is known, and no slice of it has this number or shape.
    """
    match = re.fullmatch(r"(v\d+\w*|tpu\d+x?)-(\d+(?:x\d+)*)", name.strip().lower())
    prefix = _ALIASES.get(match[1], match[1]) if match else ""
    if match is None or prefix not in TPU_FAMILIES:
        return None
    family = TPU_FAMILIES[prefix]
    known = {count * family.cores_per_chip: shape for count, shape in _SHAPES[family.dimensions].items()}
    shape = match[2] if "x" in match[2] else known.get(int(match[2]))
    if shape is None or shape.count("x") != family.dimensions - 1:
        example = known[16 * family.cores_per_chip]
        raise InputError(
            f"{name}: {prefix} has no such slice; known numbers are {', '.join(map(str, known))}; write others by "
            f"their shape, such as {prefix}-{example}"
        )
    return TpuSlice(family=family, shape=tuple(map(int, shape.split("x"))))


def main() -> None:
    """Prints chip, topology, chips, hosts, runtime version (or -), machine type and GKE label of a slice."""
    try:
        slice_ = parse_slice(sys.argv[1])
        if slice_ is None:
            families = ", ".join(TPU_FAMILIES)
            raise InputError(f"{sys.argv[1]}: is no TPU slice; write FAMILY-NUMBER with a family of {families}")
    except InputError as error:
        sys.exit(f"error: {error}")
    family = slice_.family
    words = (family.chip, slice_.topology, slice_.chips, slice_.hosts, family.runtime or "-", family.machine)
    print(*words, family.accelerator)


if __name__ == "__main__":
    main()
