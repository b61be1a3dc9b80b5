// Every element of a contiguous array becomes one value: target[i] = value.
//
// target: any 32-bit element type, `count` elements; value: its bits. numpy: target.fill(value)

#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;

void main() {
    for (uint i = gl_GlobalInvocationID.x; i < count; i += GRID_THREADS) target.at[i] = value;
}
