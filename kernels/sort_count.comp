// The first half of a pass of a stable radix sort of ids: how often each digit occurs in each block of BLOCK ids.
//
// ids: `count`; order: which id stands where after the passes before this one (not read in the FIRST); counts:
// [DIGITS, blocks]. The digit of an id is its bits `shift` to `shift` + 7. A workgroup counts one block.
// numpy: counts[:, block] = bincount((ids[order] >> shift & 255)[block * BLOCK : (block + 1) * BLOCK], minlength=256)

#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;

#define DIGITS 256

shared uint found[DIGITS];

void main() {
    for (uint digit = gl_LocalInvocationID.x; digit < DIGITS; digit += THREADS) found[digit] = 0;
    barrier();
    uint begin = gl_WorkGroupID.x * BLOCK;
    uint end = min(begin + BLOCK, count);
    for (uint place = begin + gl_LocalInvocationID.x; place < end; place += THREADS) {
        uint i = FIRST == 1 ? place : order.at[place];
        uint id = uint(clamp(ids.at[i], 0, int(rows) - 1));
        atomicAdd(found[(id >> shift) & 255u], 1);  // of integers, so in whatever order
    }
    barrier();
    for (uint digit = gl_LocalInvocationID.x; digit < DIGITS; digit += THREADS) {
        counts.at[digit * gl_NumWorkGroups.x + gl_WorkGroupID.x] = found[digit];
    }
}
