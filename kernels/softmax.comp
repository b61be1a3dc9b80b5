// y = exp(x - max) / sum over each row.
//
// x, y [rows, width]. LANES threads share a row and read it twice: the maximum and the sum of exponentials come from one
// pass, in which the sum is rescaled whenever the maximum grows (Milakov and Gimelshein 2018).
//
// numpy: e = np.exp(x - x.max(-1, keepdims=True)); y = e / e.sum(-1, keepdims=True)
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
        vec2 sum = vec2(LOWEST, 0.0);
        for (uint i = start + thread % LANES; i < end; i += LANES) {
            sum = add_exponentials(sum, vec2(load(x.at[i]), 1.0));
        }
        sum = row_exponentials(sum);
        for (uint i = start + thread % LANES; i < end; i += LANES) {
            y.at[i] = exp(load(x.at[i]) - sum.x) / sum.y;
        }
    }
}
