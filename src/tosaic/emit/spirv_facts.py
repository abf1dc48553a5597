"""Numbers of the SPIR-V registry that reading and writing graph modules share (spirv.core.grammar, extinst.tosa.001000.1)."""

from __future__ import annotations

from tosaic.tosa.types import DType

MAGIC = 0x07230203
TOSA = "TOSA.001000.1"
DEBUG_INFO = "NonSemantic.Graph.DebugInfo."  # then the version; model-converter writes it on request
DEBUG_OPERATION = 2  # operands: graph, name, instructions
PLACE_BEHIND = "  # "  # in names that this project writes: between the name of a value and the location of its operator

# fmt: off
# by instruction number in the TOSA set
TOSA_OPS = (
    "ARGMAX", "AVG_POOL2D", "CONV2D", "CONV3D", "DEPTHWISE_CONV2D", "FFT2D", "MATMUL", "MAX_POOL2D", "RFFT2D",
    "TRANSPOSE_CONV2D", "CLAMP", "ERF", "SIGMOID", "TANH", "ADD", "ARITHMETIC_RIGHT_SHIFT", "BITWISE_AND", "BITWISE_OR",
    "BITWISE_XOR", "INTDIV", "LOGICAL_AND", "LOGICAL_LEFT_SHIFT", "LOGICAL_RIGHT_SHIFT", "LOGICAL_OR", "LOGICAL_XOR",
    "MAXIMUM", "MINIMUM", "MUL", "POW", "SUB", "TABLE", "ABS", "BITWISE_NOT", "CEIL", "CLZ", "COS", "EXP", "FLOOR", "LOG",
    "LOGICAL_NOT", "NEGATE", "RECIPROCAL", "RSQRT", "SIN", "SELECT", "EQUAL", "GREATER", "GREATER_EQUAL", "REDUCE_ALL",
    "REDUCE_ANY", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PRODUCT", "REDUCE_SUM", "CONCAT", "PAD", "RESHAPE", "REVERSE",
    "SLICE", "TILE", "TRANSPOSE", "GATHER", "SCATTER", "RESIZE", "CAST", "RESCALE",
)
# fmt: on


class Code:
    """Instructions."""

    NAME = 5
    STRING = 7
    EXTENSION = 10
    IMPORT = 11
    EXT_INST = 12
    MEMORY_MODEL = 14
    CAPABILITY = 17
    TYPE_BOOL = 20
    TYPE_INT = 21
    TYPE_FLOAT = 22
    TYPE_ARRAY = 28
    TYPE_STRUCT = 30
    TYPE_POINTER = 32
    TRUE = 41
    FALSE = 42
    CONSTANT = 43
    COMPOSITE = 44
    NULL = 46
    VARIABLE = 59
    DECORATE = 71
    EXTRACT = 81
    TYPE_TENSOR = 4163
    GRAPH_CONSTANT = 4181
    ENTRY_POINT = 4182
    GRAPH = 4183
    GRAPH_INPUT = 4184
    GRAPH_OUTPUT = 4185
    GRAPH_END = 4186
    TYPE_GRAPH = 4190
    REPLICATE = 4461


BINDING, DESCRIPTOR_SET = 33, 34  # decorations
UNIFORM_CONSTANT = 0  # storage class of what is bound
LOGICAL, VULKAN = 0, 3  # addressing and memory model
SHADER, VULKAN_MEMORY_MODEL, TENSORS, GRAPHS = 1, 5345, 4174, 4191  # capabilities

# Element types: integers by width (typed without a sign, read as two's complement; int48 computes in 64 bits, int4 in 8),
# floats by width and the encoding operand of OpTypeFloat
INTEGERS = {4: DType.INT4, 8: DType.INT8, 16: DType.INT16, 32: DType.INT32, 48: DType.INT48, 64: DType.INT48}
FLOATS: dict[tuple[int, int | None], DType] = {
    (8, 4214): DType.FP8E4M3,
    (8, 4215): DType.FP8E5M2,
    (16, None): DType.FP16,
    (16, 0): DType.BF16,
    (32, None): DType.FP32,
}
# what a module must declare to use a type: capability, extension
NEEDS: dict[DType, tuple[int, str | None]] = {
    DType.INT8: (39, None),
    DType.INT16: (22, None),
    DType.INT48: (11, None),
    DType.FP16: (9, None),
    DType.BF16: (5116, "SPV_KHR_bfloat16"),
    DType.FP8E4M3: (4212, "SPV_EXT_float8"),
    DType.FP8E5M2: (4212, "SPV_EXT_float8"),
}
