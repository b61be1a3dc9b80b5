"""A small compute kernel as SPIR-V, put together here so that tests of the sidecar need no compiler.

layout(local_size_x_id = 0) in;                            // constant 0, default 64
layout(constant_id = 1) const float ADDEND = 0;
push constants: 64-bit addresses x and y, uint count, float factor
if (i < count) y[i] = factor * x[i] + ADDEND               // i = gl_GlobalInvocationID.x
"""

import struct

PUSH = struct.Struct("=QQIf")
_OPCODES = {
    **{
        "Capability": 17,
        "MemoryModel": 14,
        "EntryPoint": 15,
        "ExecutionModeId": 331,
        "Decorate": 71,
        "MemberDecorate": 72,
    },
    **{"TypeVoid": 19, "TypeBool": 20, "TypeInt": 21, "TypeFloat": 22, "TypeVector": 23, "TypeRuntimeArray": 29},
    **{"TypeStruct": 30, "TypePointer": 32, "TypeFunction": 33, "Constant": 43, "SpecConstant": 50, "Function": 54},
    **{
        "FunctionEnd": 56,
        "Variable": 59,
        "Load": 61,
        "Store": 62,
        "AccessChain": 65,
        "CompositeExtract": 81,
        "FAdd": 129,
    },
    **{"FMul": 133, "ULessThan": 176, "SelectionMerge": 247, "Label": 248, "Branch": 249, "BranchConditional": 250},
    **{"Return": 253},
}
KERNEL = """\
Capability 1
Capability 11
Capability 5347
MemoryModel 5348 1
EntryPoint 5 %main "main" %invocation %push
ExecutionModeId %main 38 %threads %one %one
Decorate %invocation 11 28
Decorate %threads 1 0
Decorate %addend 1 1
Decorate %floats 6 4
MemberDecorate %block 0 35 0
Decorate %block 2
MemberDecorate %arguments 0 35 0
MemberDecorate %arguments 1 35 8
MemberDecorate %arguments 2 35 16
MemberDecorate %arguments 3 35 20
Decorate %arguments 2
TypeVoid %void
TypeBool %bool
TypeInt %uint 32 0
TypeFloat %float 32
TypeVector %uint3 %uint 3
TypeFunction %function %void
TypeRuntimeArray %floats %float
TypeStruct %block %floats
TypePointer %address 5349 %block
TypeStruct %arguments %address %address %uint %float
TypePointer %to_arguments 9 %arguments
TypePointer %to_address 9 %address
TypePointer %to_count 9 %uint
TypePointer %to_factor 9 %float
TypePointer %to_invocation 1 %uint3
TypePointer %to_float 5349 %float
SpecConstant %uint %threads 64
SpecConstant %float %addend 0
Constant %uint %zero 0
Constant %uint %one 1
Constant %uint %two 2
Constant %uint %three 3
Variable %to_arguments %push 9
Variable %to_invocation %invocation 1
Function %void %main 0 %function
Label %entry
Load %uint3 %invocation_now %invocation
CompositeExtract %uint %i %invocation_now 0
AccessChain %to_count %count_at %push %two
Load %uint %count %count_at
ULessThan %bool %inside %i %count
SelectionMerge %end 0
BranchConditional %inside %work %end
Label %work
AccessChain %to_address %x_at %push %zero
Load %address %x %x_at
AccessChain %to_float %element_at %x %zero %i
Load %float %element %element_at 2 4
AccessChain %to_factor %factor_at %push %three
Load %float %factor %factor_at
FMul %float %product %element %factor
FAdd %float %sum %product %addend
AccessChain %to_address %y_at %push %one
Load %address %y %y_at
AccessChain %to_float %result_at %y %zero %i
Store %result_at %sum 2 4
Branch %end
Label %end
Return
FunctionEnd
"""


def assemble(text: str = KERNEL) -> bytes:
    """The module of an assembly text: an instruction a line, names after %, numbers, and strings in quotes."""
    names: dict[str, int] = {}
    words: list[int] = []
    for line in text.strip().splitlines():
        operation, *operands = line.split()
        encoded: list[int] = []
        for operand in operands:
            if operand.startswith("%"):
                encoded.append(names.setdefault(operand, len(names) + 1))
            elif operand.startswith('"'):
                characters = operand.strip('"').encode() + b"\0"
                characters += b"\0" * (-len(characters) % 4)
                encoded.extend(struct.unpack(f"={len(characters) // 4}I", characters))
            else:
                encoded.append(int(operand))
        words += [(len(encoded) + 1) << 16 | _OPCODES[operation], *encoded]
    return struct.pack(f"={len(words) + 5}I", 0x07230203, 0x00010600, 0, len(names) + 1, 0, *words)
