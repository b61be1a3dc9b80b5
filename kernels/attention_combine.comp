// The result of attention from the parts that attention_cached made of each row's keys; see attention_parts.glsl.
//
// partial [rows, splits, WIDTH], statistics [rows, splits, 2], attended [rows, WIDTH]; a row to a workgroup of a grid of
// (rows / B, B).

#version 460
#include "common.glsl"
#include "kernel.glsl"
const uint RELAY = 0;  // it is in none
#include "fresh.glsl"
#include "attention_parts.glsl"
layout(local_size_x_id = 0) in;

void main() {
    const uint row = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x;
    if (WIDTH % 4 == 0) {
        for (uint i = gl_LocalInvocationIndex * 4; i < WIDTH; i += THREADS * 4) {
            const vec4 value = attention_of_parts(partial, statistics, row * splits, splits, WIDTH, i, false);
            store(JOIN(T, x4_buffer)(attended).at[(row * WIDTH + i) / 4], value);
        }
        return;
    }
    for (uint i = gl_LocalInvocationIndex; i < WIDTH; i += THREADS)
        store(attended.at[row * WIDTH + i], attention_of_parts(partial, statistics, row * splits, splits, WIDTH, i, true).x);
}
