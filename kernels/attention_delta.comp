// The sums that the gradient of softmax needs: delta[b, h, t] = gradient[b, t, h] . attended[b, t, h].
//
// gradient and attended [batch, query_length, QUERY_HEADS, WIDTH], contiguous; delta [batch, QUERY_HEADS, query_length].
// ROW_THREADS threads to a row. numpy: (gradient * attended).sum(-1).transpose(0, 2, 1)

#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;

const uint ROWS = THREADS / ROW_THREADS;

shared float parts[THREADS];

void main() {
    const uint rows = batch * query_length * QUERY_HEADS, part = gl_LocalInvocationIndex % ROW_THREADS;
    for (uint first = gl_WorkGroupID.x * ROWS; first < rows; first += gl_NumWorkGroups.x * ROWS) {
        uint row = first + gl_LocalInvocationIndex / ROW_THREADS;
        float sum = 0.0;
        if (row < rows) {
            if (ALIGNED == 1) {
                for (uint i = part; i < WIDTH / 4; i += ROW_THREADS)
                    sum += dot(load(JOIN(T, x4_buffer)(gradient).at[row * (WIDTH / 4) + i]),
                               load(JOIN(T, x4_buffer)(attended).at[row * (WIDTH / 4) + i]));
            } else {
                for (uint i = part; i < WIDTH; i += ROW_THREADS) 
                    sum += load(gradient.at[row * WIDTH + i]) * load(attended.at[row * WIDTH + i]);
            }
        }
        parts[gl_LocalInvocationIndex] = sum;
        barrier();
        if (part == 0 && row < rows) {
            for (uint i = 1; i < ROW_THREADS; ++i) sum += parts[gl_LocalInvocationIndex + i];
            uint token = row / QUERY_HEADS, head = row % QUERY_HEADS;
            delta.at[(token / query_length * QUERY_HEADS + head) * query_length + token % query_length] = sum;
        }
        barrier();
    }
}
