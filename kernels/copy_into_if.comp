// target = source where `condition` is true; elsewhere no bit changes.
//
// target, source [count], of any 32-bit element type; condition [1].
//
// numpy: np.where(condition, source, target)
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;

void main() {
    if (condition.at[0] == 0) {
        return;
    }
    for (uint i = gl_GlobalInvocationID.x; i < count; i += GRID_THREADS) {
        target.at[i] = source.at[i];
    }
}
