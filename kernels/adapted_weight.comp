// The weight of a linear layer with an adapter: y = weight + factor * down @ up (LoRA, Hu et al. 2021).
//
// weight, y [height, width]; down [height, rank]; up [rank, width]; all contiguous. Of a sum of few terms what takes time
// is memory, so a thread has ROWS neighbours of one column (VECTOR columns), and their weights on the way first.
//
// numpy: weight + factor * (down @ up)
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "vectors.glsl"

const uint ROWS = 4;

void main() {
    uint units = width / VECTOR;
    for (uint i = gl_GlobalInvocationID.x; i < (height + ROWS - 1) / ROWS * units; i += GRID_THREADS) {
        uint column = i % units * VECTOR, first = i / units * ROWS;
        vec4 weights[ROWS], sums[ROWS];
        uint lines[ROWS];  // below the last row the last one, which is not stored again
        [[unroll]] for (uint row = 0; row < ROWS; ++row) {
            lines[row] = min(first + row, height - 1);
            weights[row] = load_T(weight, lines[row] * width + column);
            sums[row] = vec4(0.0);
        }
        for (uint term = 0; term < rank; ++term) {
            vec4 other = load_f32(up, term * width + column);
            [[unroll]] for (uint row = 0; row < ROWS; ++row) sums[row] += down.at[lines[row] * rank + term] * other;
        }
        [[unroll]] for (uint row = 0; row < ROWS; ++row)
            if (first + row < height) store_R(y, (first + row) * width + column, weights[row] + factor * sums[row]);
    }
}
