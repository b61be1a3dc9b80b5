// y[i] = element i of rng.random_uint16(count, seed, stream, step): eight elements from each block of Philox.
//
// step: one integer; y: `count` integers.

#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;

void main() {
    uint blocks = (count + 7) / 8;
    for (uint block = gl_GlobalInvocationID.x; block < blocks; block += GRID_THREADS) {
        uvec4 words = random_block(block, stream, uint(step.at[0]), uvec2(seed_low, seed_high));
        uint first = 8 * block;
        for (uint i = 0; i < 8 && first + i < count; ++i) {
            y.at[first + i] = (words[i / 2] >> (16 * (i % 2))) & 0xffffu;
        }
    }
}
