// (first, second) = the sum of the rows of x, each column by itself, in a fixed order.
//
// x [rows, width]; first [split], second [width - split]. A workgroup takes LANES * VECTOR columns; each of its THREADS / LANES slots, a power of
// two, takes every so many rows.
//
// numpy: np.split(x.sum(0), [split])
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "vectors.glsl"

const uint SLOTS = THREADS / LANES;

shared vec4 slot_sums[THREADS];

void main() {
    uint thread = gl_LocalInvocationIndex;
    uint slot = thread / LANES;
    uint column = (gl_WorkGroupID.x * LANES + thread % LANES) * VECTOR;
    vec4 sum = vec4(0.0);
    if (column < width) {
        for (uint row = slot; row < rows; row += SLOTS) {
            sum += load_f32(x, row * width + column);
        }
    }
    slot_sums[thread] = sum;
    for (uint left = SLOTS / 2; left > 0; left /= 2) {
        barrier();
        if (slot < left) {
            slot_sums[thread] += slot_sums[thread + left * LANES];
        }
    }
    if (slot == 0 && column < width) {
        if (column < split) {
            store_f32(first, column, slot_sums[thread]);
        } else {
            store_f32(second, column - split, slot_sums[thread]);
        }
    }
}
