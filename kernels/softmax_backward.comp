// dx = y * (dy - sum(dy * y)) over each row, for y = softmax(x).
//
// dy, y, dx [rows, width]. LANES threads share a row.
//
// numpy: dx = y * (dy - (dy * y).sum(-1, keepdims=True))
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "lanes.glsl"

void main() {
    uint thread = thread_index();
    for (uint first = gl_WorkGroupID.x * (THREADS / LANES); first < rows; first += gl_NumWorkGroups.x * (THREADS / LANES)) {
        uint row = first + thread / LANES;
        uint start = row * width;
        uint end = row < rows ? start + width : start;
        float sum = 0.0;
        for (uint i = start + thread % LANES; i < end; i += LANES) {
            sum += dy.at[i] * y.at[i];
        }
        sum = row_sum(sum);
        for (uint i = start + thread % LANES; i < end; i += LANES) {
            dx.at[i] = y.at[i] * (dy.at[i] - sum);
        }
    }
}
