// Reads arrays and does nothing with them, so that who reads them next finds them in the device's cache.
//
// first, second, third, fourth: so many words each, one array a row of workgroups; never: nothing is written there. A
// thread asks for EACH words at once, one of each SECTOR, which is what caches fetch at least.

#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;

const uint EACH = 8, SECTOR = 8;

void main() {
    uint64_t array = uint64_t(first);
    uint words = first_words;
#define TAKE(ROW, NAME)                                                                                                \
    if (gl_WorkGroupID.y == ROW) {                                                                                     \
        array = uint64_t(NAME);                                                                                        \
        words = NAME##_words;                                                                                          \
    }
    TAKE(1, second)
    TAKE(2, third)
    TAKE(3, fourth)
    uint found[EACH];
    [[unroll]] for (uint e = 0; e < EACH; e++) {
        const uint sector = (e * gl_NumWorkGroups.x + gl_WorkGroupID.x) * THREADS + gl_LocalInvocationIndex;
        found[e] = u32_buffer(array).at[min(sector * SECTOR, words - 1)];
    }
    uint all = 0;
    [[unroll]] for (uint e = 0; e < EACH; e++) all |= found[e];
    if (all == 0x5bd1e995 && first_words == 0) never.at[0] = all;  // never, but no compiler knows
}
