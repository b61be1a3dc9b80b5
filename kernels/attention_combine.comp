// The result of attention from the parts that attention_cached made of each row's keys.
//
//     attended = sum_s exp2(maximum_s - maximum) partial_s / sum_s exp2(maximum_s - maximum) sum_s
//
// partial [rows, splits, WIDTH], statistics [rows, splits, 2] (maximum and sum), attended [rows, WIDTH]; a row to a
// workgroup of a grid of (rows / B, B).

#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;

void main() {
    const uint row = gl_WorkGroupID.y * gl_NumWorkGroups.x + gl_WorkGroupID.x, first = row * splits;
    float maximum = statistics.at[first * 2];
    for (uint s = 1; s < splits; ++s) maximum = max(maximum, statistics.at[(first + s) * 2]);
    for (uint i = gl_LocalInvocationIndex; i < WIDTH; i += THREADS) {
        float result = 0.0, sum = 0.0;
        for (uint s = 0; s < splits; ++s) {
            float factor = exp2(statistics.at[(first + s) * 2] - maximum);
            result = fma(factor, partial.at[(first + s) * WIDTH + i], result);
            sum = fma(factor, statistics.at[(first + s) * 2 + 1], sum);
        }
        attended.at[row * WIDTH + i] = result / sum;
    }
}
