"""Which GPU MLX can use here, and why not where it cannot. Nothing is allocated on it yet."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from specdec.errors import RuntimeUnavailableError
from specdec.interrupts import unless_signalled

# The oldest MLX with `mx.fast.cuda_kernel`, `mx.fast.metal_kernel` and `mx.depends` as this runtime uses them.
_OLDEST = (0, 31)
HANDLE_BYTES = 64  # CU_IPC_HANDLE_SIZE


class _Handle(ctypes.Structure):
    """Handle with which another process opens memory of this one."""

    _fields_ = (("held", ctypes.c_ubyte * HANDLE_BYTES),)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU and the MLX that drives it.

    Attributes:
        mx: MLX.
        backend: "metal" or "cuda".
        name: of the device.
        version: of MLX.
        driver: CUDA: the driver itself; None where it cannot be used, and on Metal.
    """

    mx: Any
    backend: str
    name: str
    version: str
    driver: CudaDriver | None = None


def find_gpu() -> Gpu:
    """The GPU, Metal before CUDA.

    Raises:
        RuntimeUnavailableError: there is none, or MLX has no backend for it or is too old.
    """
    try:
        import mlx.core as mx
    except ImportError as error:
        raise RuntimeUnavailableError(f"MLX cannot be loaded here ({error})") from None
    version = str(getattr(mx, "__version__", "0"))
    backend = _backend(mx)
    if backend is None:
        raise RuntimeUnavailableError(
            f"MLX {version} has no GPU here: on a Mac install mlx, on Linux with an NVIDIA GPU specdec-mlx[cuda13]"
        )
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < _OLDEST or not hasattr(mx.fast, f"{backend}_kernel"):
        oldest = ".".join(map(str, _OLDEST))
        raise RuntimeUnavailableError(f"MLX {version} is too old for the mlx runtime: install mlx>={oldest}")
    return Gpu(mx, backend, _name(mx), version, _driver() if backend == "cuda" else None)


def _backend(mx: Any) -> str | None:
    for backend in ("metal", "cuda"):
        part = getattr(mx, backend, None)
        if part is not None and part.is_available():
            return backend
    return None


def _name(mx: Any) -> str:
    """Name of the device as MLX gives it."""
    for source in (getattr(mx, "device_info", None), getattr(getattr(mx, "metal", None), "device_info", None)):
        try:
            found = source() if source is not None else {}
        except unless_signalled(RuntimeError, TypeError, ValueError):
            continue
        if "device_name" in found:
            return str(found["device_name"])
    return "GPU"


def _driver() -> CudaDriver | None:
    """The driver, or None where it cannot be used: then everything goes through MLX."""
    try:
        return CudaDriver()
    except unless_signalled(OSError):
        return None


class PlainLaunch:
    """A kernel with its arguments, to be begun any number of times.

    Args:
        function: as `CudaDriver.function` gives it.
        grid: blocks.
        threads: of a block.
        shared_bytes: dynamic shared memory of a block.
        arguments: of 64 bits each; a parameter may be a structure of several.
    """

    __slots__ = ("_values", "function", "given", "grid", "places", "shared_bytes", "sizes")

    def __init__(
        self, function: ctypes.c_void_p, grid: Sequence[int], threads: int, shared_bytes: int, arguments: Sequence[int]
    ) -> None:
        count = len(arguments)
        self._values = (ctypes.c_int64 * count)(*arguments)
        first = ctypes.addressof(self._values)
        self.function, self.grid, self.shared_bytes = function, tuple(grid), shared_bytes
        self.sizes = (*self.grid, threads, 1, 1)
        self.places = (ctypes.c_void_p * count)(*range(first, first + 8 * count, 8))
        self.given = (function, *self.sizes, shared_bytes, None, self.places, None)


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: a number and a value of 64 bytes."""

    _fields_ = (("number", ctypes.c_int), ("pad", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_int * 15))


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("sizes", ctypes.c_uint * 6), ("shared_bytes", ctypes.c_uint), ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)), ("count", ctypes.c_uint),
    )  # fmt: skip


_OVERLAPS = _Attribute(6, 0, 1)  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class CudaDriver:
    """What the runtime asks of the CUDA driver beside MLX: the size of the GPU, and small copies.

    MLX hands arrays to the host and back through managed memory: 0.3 ms for 20 numbers, 0.3 to 0.9 ms for logits. Plain
    copies take a tenth. They do not wait for MLX's work: callers do.

    Raises:
        OSError: the driver is not there or refuses.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self._device, self._context = ctypes.c_int(), ctypes.c_void_p()
        self._stream: ctypes.c_void_p | None = None
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)  # the context that MLX uses

    @property
    def multiprocessors(self) -> int:
        """How many multiprocessors the GPU has."""
        return self._attribute(16)  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT

    @property
    def generation(self) -> int:
        """Major number of the compute capability: 8 for Ampere, 9 for Hopper."""
        return self._attribute(75)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR

    @property
    def architecture(self) -> str:
        """What machine code for this GPU is called, "sm_90a": since Hopper, code that runs on no other generation."""
        minor = self._attribute(76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
        return f"sm_{self.generation}{minor}{'a' if self.generation >= 9 else ''}"

    @property
    def shared_bytes(self) -> int:
        """Shared memory that one block may have at most."""
        return self._attribute(97)  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN

    @property
    def bytes_per_s(self) -> float:
        """What the GPU's memory gives at most."""
        clock_khz, bits = (
            self._attribute(36),
            self._attribute(37),
        )  # CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, .._BUS_WIDTH
        return 2e3 * clock_khz * bits / 8

    def neighbours(self) -> tuple[int, int]:
        """Other GPUs that this process sees, and those whose memory this one's GPU reaches."""
        count, reached = ctypes.c_int(), 0
        self._call("cuDeviceGetCount", ctypes.byref(count))
        for number in range(count.value):
            other, can = ctypes.c_int(), ctypes.c_int()
            self._call("cuDeviceGet", ctypes.byref(other), number)
            if other.value != self._device.value:
                self._call("cuDeviceCanAccessPeer", ctypes.byref(can), self._device, other)
                reached += can.value
        return count.value - 1, reached

    def pinned(self, nbytes: int) -> np.ndarray:
        """Host memory that the GPU copies to directly, uint8 (nbytes,); never given back."""
        self._call("cuCtxSetCurrent", self._context)
        place = ctypes.c_void_p()
        self._call("cuMemAllocHost_v2", ctypes.byref(place), ctypes.c_size_t(nbytes))
        assert place.value is not None  # the call above would have failed
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(place.value))

    def shared_memory(self, nbytes: int) -> int:
        """Allocate zeroed device memory that other processes may open; never freed. Returns its address."""
        self._call("cuCtxSetCurrent", self._context)
        place = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(nbytes))
        self._call("cuMemsetD8_v2", place, ctypes.c_ubyte(0), ctypes.c_size_t(nbytes))
        self._call("cuStreamSynchronize", None)
        return place.value

    def handle_of(self, address: int) -> bytes:
        """The handle with which another process of this host opens `shared_memory`."""
        handle = _Handle()
        self._call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(address))
        return bytes(handle.held)

    def open_handle(self, handle: bytes) -> int:
        """Address of another process's memory, from its handle."""
        self._call("cuCtxSetCurrent", self._context)
        place, lazily = ctypes.c_uint64(), 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
        self._call("cuIpcOpenMemHandle_v2", ctypes.byref(place), _Handle.from_buffer_copy(handle), lazily)
        return place.value

    def function(self, code: bytes, name: str, *, shared_bytes: int) -> ctypes.c_void_p:
        """A kernel of machine code, loaded for as long as the process runs; blocks may have that much shared memory."""
        self._call("cuCtxSetCurrent", self._context)
        module, found = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), code)
        self._call("cuModuleGetFunction", ctypes.byref(found), module, name.encode())
        # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._call("cuFuncSetAttribute", found, 8, shared_bytes)
        return found

    def launch(self, function: ctypes.c_void_p, shape: Sequence[int], parameters: Any) -> None:
        """Begin a kernel whose blocks all run at the same time: grid (3), block (3) and bytes of shared memory."""
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuLaunchCooperativeKernel", function, *(ctypes.c_uint(size) for size in shape), None, parameters)

    def wait(self) -> None:
        """Wait for what was begun here."""
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuStreamSynchronize", None)

    def write(self, address: int, array: np.ndarray) -> None:
        """Copy `array` to a place on the device."""
        self._call("cuCtxSetCurrent", self._context)
        place, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), place, size)
        # The call returns when the numbers are on their way: MLX's stream would not wait for them to arrive.
        self._call("cuStreamSynchronize", None)

    def send(self, address: int, array: np.ndarray) -> None:
        """Begin to copy `array`, of `pinned` memory, to a place on the device: what `launch` begins after it waits."""
        self._call("cuCtxSetCurrent", self._context)
        place, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), place, size, None)

    def read(self, address: int, array: np.ndarray) -> None:
        """Fill `array` from a place on the device, once what was begun here has ended."""
        self._call("cuCtxSetCurrent", self._context)
        place, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoH_v2", place, ctypes.c_uint64(address), size)

    def begin(self, launch: PlainLaunch) -> None:
        """Begin a kernel after what was begun before, on the thread of the last `write`; `wait` waits for it."""
        code = self._library.cuLaunchKernel(*launch.given)
        if code:
            raise OSError(f"the CUDA driver's cuLaunchKernel failed with code {code}")

    def graph(self, launches: Sequence[PlainLaunch], *, overlaps: bool = True) -> ctypes.c_void_p:
        """Capture kernels, one after the other, as a graph that `replay` begins in one call and `forget` frees.

        Args:
            launches: the kernels.
            overlaps: a kernel may begin before the one before it ends, and waits by itself for what it reads.
        """
        self._call("cuCtxSetCurrent", self._context)
        stream, graph, made = self._captured(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", stream, 2)  # CU_STREAM_CAPTURE_MODE_RELAXED
        try:
            for launch in launches:
                shape, attributes = (ctypes.c_uint * 6)(*launch.sizes), ctypes.pointer(_OVERLAPS)
                config = _Config(shape, launch.shared_bytes, stream.value, attributes, int(overlaps))
                self._call("cuLaunchKernelEx", ctypes.byref(config), launch.function, launch.places, None)
        finally:
            self._call("cuStreamEndCapture", stream, ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, ctypes.c_uint64(0))
        self._call("cuGraphDestroy", graph)
        return made

    def replay(self, graph: ctypes.c_void_p) -> None:
        """Begin a graph after what was begun before; `wait` waits for it."""
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuGraphLaunch", graph, None)

    def forget(self, graph: ctypes.c_void_p) -> None:
        """Free a graph that is not running."""
        self._call("cuGraphExecDestroy", graph)

    def event(self) -> ctypes.c_void_p:
        """An event for `mark` and `reach`; never freed."""
        self._call("cuCtxSetCurrent", self._context)
        made = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(made), 2)  # CU_EVENT_DISABLE_TIMING
        return made

    def mark(self, event: ctypes.c_void_p) -> None:
        """Let `reach` wait for what was begun until now."""
        self._call("cuEventRecord", event, None)

    def reach(self, event: ctypes.c_void_p) -> None:
        """Wait for what was begun before the event was marked last."""
        self._call("cuEventSynchronize", event)

    def _captured(self) -> ctypes.c_void_p:
        """A stream whose launches can be captured, which the usual one's cannot."""
        if self._stream is None:
            self._stream = ctypes.c_void_p()
            self._call("cuStreamCreate", ctypes.byref(self._stream), 1)  # CU_STREAM_NON_BLOCKING
        return self._stream

    def _attribute(self, which: int) -> int:
        found = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(found), which, self._device)
        return found.value

    def _call(self, name: str, *given: Any) -> None:
        code = getattr(self._library, name)(*given)
        if code:
            raise OSError(f"the CUDA driver's {name} failed with code {code}")
