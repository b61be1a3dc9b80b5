// The second stage of a product whose sum over k was split: adds the parts in order and finishes the results.
//
//   c[i] = activation(sum over s of sums[s, i] + bias[i mod columns]) + residual[i]
//
// sums     float32 [splits, elements], elements = batches * rows * columns, from matmul_tiled or matmul_matrix
// c, slope as in those, contiguous
// numpy    c = activation(sums.sum(0) + bias) + residual
//
// A thread has four neighbours of one row, so C_VECTOR = 0 is for columns that are no multiple of 4, and then one each.
#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "matmul.glsl"

layout(local_size_x_id = 0) in;

void main() {
    const uint WIDTH = C_VECTOR != 0 ? 4 : 1;
    for (uint unit = gl_GlobalInvocationID.x; unit < elements / WIDTH; unit += GRID_THREADS) {
        vec4 sum = vec4(0.0);
        uint64_t address = uint64_t(sums) + 4 * uint64_t(unit) * WIDTH;
        // Eight parts are on their way at a time.
        for (uint split = 0; split < splits; split += 8) {
            vec4 parts[8];
            [[unroll]] for (uint i = 0; i < 8; i++) {
                parts[i] = vec4(0.0);
                if (split + i < splits) {
                    if (C_VECTOR != 0) parts[i] = floats4(address).at[0];
                    else parts[i].x = floats1(address).at[0];
                }
                address += 4 * uint64_t(elements);
            }
            [[unroll]] for (uint i = 0; i < 8; i++) sum += parts[i];
        }
        uint column = unit * WIDTH % columns;
        if (C_VECTOR != 0) store_results(uint64_t(unit) * WIDTH, column, sum);
        else store_one(unit, column, sum.x);
    }
}
