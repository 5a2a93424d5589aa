"""How many shards arrays have along each axis of the mesh. Does not import JAX."""

from dataclasses import dataclass
import math

from diversity_jax.core.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor", "sequence")


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """The number of shards along each axis; at most one may be -1: all devices that the others leave.

    On several slices (TPU) or nodes joined by a slower network, `network_data * network_fsdp` is their number, and only
    those shards of data and fsdp lie across the network; tensor and sequence never do, since they talk in every layer.
    """

    data: int = 1  # copies of the model, each on its own rows
    fsdp: int = -1  # shards of the parameters and optimizer state, each on its own rows
    tensor: int = 1  # shards of heads, feed-forward and vocabulary
    sequence: int = 1  # shards of the sequence length
    network_data: int = 1  # how many of the data shards lie on different slices
    network_fsdp: int = 1  # how many of the fsdp shards do

    def __post_init__(self) -> None:
        sizes = self.sizes
        for axis, size in sizes.items():
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
        """`sizes` with -1 filled in for this many devices.

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
