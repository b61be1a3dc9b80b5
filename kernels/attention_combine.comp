// The result of attention from the parts that a kernel of attention to the cache made of each row's keys, as far as the row
// sees keys; see attention_parts.glsl.
//
// partial [rows, HEADS, splits, WIDTH], statistics [rows, HEADS, splits, 2], of PART positions each; positions [rows];
// attended [rows, HEADS, WIDTH], `count` times VECTOR numbers.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "fresh.glsl"
#include "relay.glsl"
#include "attention_parts.glsl"
#include "attention_parts_read.glsl"
layout(local_size_x_id = 0) in;

void main() {
    relay_wait();
    for (uint i = gl_GlobalInvocationID.x; i < count; i += GRID_THREADS) {
        const uint head = i * VECTOR / WIDTH, place = i * VECTOR % WIDTH;
        const uint parts = min(splits, uint(positions.at[head / HEADS]) / PART + 1);
        const vec4 value = attention_of_parts(partial, statistics, head * splits, parts, WIDTH, place, VECTOR)[0];
        if (VECTOR == 1) store(attended.at[i], value.x);
        else store(JOIN(T, x4_buffer)(attended).at[i], value);
    }
    relay_end();
}
