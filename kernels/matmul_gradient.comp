// What the backward pass of a linear layer does before its products, where they are not to read dy itself.
//
//   dh[i] = dy[i] slope[i]                  (without HAS_SLOPE the slope is 1, and dh is dy, rounded)
//
// dy, slope, dh   contiguous, `elements` each; a thread has four neighbours with VECTOR, else one
// numpy           dh = dy * slope
#version 460
#include "common.glsl"
#include "kernel.glsl"

layout(local_size_x_id = 0) in;

void main() {
    for (uint unit = gl_GlobalInvocationID.x; unit < elements / (VECTOR != 0 ? 4 : 1); unit += GRID_THREADS) {
        if (VECTOR != 0) {
            vec4 value = load(JOIN(DYTYPE, x4_buffer)(dy).at[unit]);
            if (HAS_SLOPE != 0) value *= load(JOIN(STYPE, x4_buffer)(slope).at[unit]);
            store(JOIN(DHTYPE, x4_buffer)(dh).at[unit], value);
        } else {
            float value = load(dy.at[unit]);
            if (HAS_SLOPE != 0) value *= load(slope.at[unit]);
            store(dh.at[unit], value);
        }
    }
}
