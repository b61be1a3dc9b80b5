// Elementwise operations on single numbers: what would be a chain of dispatches with one element.
//
// table, in groups of four words: for each of `slots` slots, the address it is loaded from before the first instruction
// and the address it is stored at after the last one, 0 for none; then `instructions` instructions:
//     operation | integer << 8 | element of a << 12 | of b << 16 | of the result << 20;  slot of a;
//     slot of b | instructions of the round << 16;  slot of the result | slot of the condition << 16
// then `sums` sums: the address of an array of float32, how many elements it has, and the slot that their sum is put in
// before the first instruction. Instructions come in rounds, each of as many as its first one says, which need nothing of
// each other: every subgroup does one at a time, so that different operations do not wait for each other. Operations are
// those of operations.glsl, and WHERE, which takes a where the condition is true and else b. A slot holds 32 bits of any
// element type. SLOTS and INSTRUCTIONS are at least as many as there are.
//
// numpy: add(a, b), where(condition, a, b) ... for arrays of size 1; sum(x)

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "elements.glsl"
#include "operations.glsl"
#include "subgroup_sum.glsl"
layout(local_size_x_id = 0) in;

#define WHERE 255u

shared uint slot_bits[SLOTS];
shared uvec4 program[INSTRUCTIONS];

u32_buffer at_address(uvec2 address) {
    return u32_buffer(packUint2x32(address));
}

uint result_of(uvec4 instruction) {
    uint codes = instruction.x, operation = codes & 0xffu;
    uint a = slot_bits[instruction.y], b = slot_bits[instruction.z & 0xffffu];
    if (operation == WHERE) return slot_bits[instruction.w >> 16] != 0 ? a : b;
    bool integer = (codes >> 8 & 1u) != 0;
    // Of four equal results, the compiler keeps one.
    return operate(operation, integer, uvec4(a), codes >> 12 & 15u, uvec4(b), codes >> 16 & 15u, codes >> 20 & 15u).x;
}

void main() {
    u32x4_buffer groups = u32x4_buffer(uint64_t(table));
    for (uint i = gl_LocalInvocationID.x; i < slots; i += THREADS) {
        uvec2 source = groups.at[i].xy;
        if (source != uvec2(0)) slot_bits[i] = at_address(source).at[0];
    }
    for (uint i = gl_LocalInvocationID.x; i < instructions; i += THREADS) {
        program[i] = groups.at[slots + i];
    }
    for (uint i = gl_SubgroupID; i < sums; i += gl_NumSubgroups) {
        uvec4 array = groups.at[slots + instructions + i];
        float sum = sum_by_subgroup(f32_buffer(packUint2x32(array.xy)), array.z);
        if (subgroupElect()) slot_bits[array.w] = floatBitsToUint(sum);
    }
    barrier();
    uint begin = 0;
    while (begin < instructions) {
        uint end = begin + (program[begin].z >> 16);
        for (uint i = begin + gl_SubgroupID; i < end; i += gl_NumSubgroups) {
            if (subgroupElect()) slot_bits[program[i].w & 0xffffu] = result_of(program[i]);
        }
        barrier();
        begin = end;
    }
    for (uint i = gl_LocalInvocationID.x; i < slots; i += THREADS) {
        uvec2 target = groups.at[i].zw;
        if (target != uvec2(0)) at_address(target).at[0] = slot_bits[i];
    }
}
