// The result of attention from the parts that attention_cached made of each row's keys; see attention_parts.glsl.
//
// partial [rows, splits, WIDTH], statistics [rows, splits, 2], attended [rows, WIDTH]; an invocation has four neighbours of
// the result, or one where WIDTH is no multiple of four, `count` of them in all.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "fresh.glsl"
#include "attention_parts.glsl"
layout(local_size_x_id = 0) in;

const uint UNIT = WIDTH % 4 == 0 ? 4 : 1;

void main() {
    for (uint index = gl_GlobalInvocationID.x; index < count; index += gl_NumWorkGroups.x * THREADS) {
        const uint row = index / (WIDTH / UNIT), place = index % (WIDTH / UNIT) * UNIT;
        const vec4 value = attention_of_parts(partial, statistics, row * splits, splits, WIDTH, place, UNIT == 1);
        if (UNIT == 4) store(JOIN(T, x4_buffer)(attended).at[index], value);
        else store(attended.at[index], value.x);
    }
}
