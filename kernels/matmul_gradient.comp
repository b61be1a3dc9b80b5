// What the backward pass of a linear layer does before its products, where they are not to read dy itself.
//
//   dh[i] = dy[i] slope(preactivation[i])
//
// where slope is the derivative of number ACTIVATION - 1, see activation.glsl; with ACTIVATION = 0 dh is dy, rounded. Of
// one by the activation's result, `preactivation` is that.
//
// dy, preactivation, dh   contiguous, `elements` each; a thread has four neighbours with VECTOR, else one
// numpy                   dh = dy * slope(preactivation)
#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "accurate.glsl"
#include "activation.glsl"

layout(local_size_x_id = 0) in;

void main() {
    for (uint unit = gl_GlobalInvocationID.x; unit < elements / (VECTOR != 0 ? 4 : 1); unit += GRID_THREADS) {
        if (VECTOR != 0) {
            vec4 value = load(JOIN(DYTYPE, x4_buffer)(dy).at[unit]);
            if (ACTIVATION != 0)
                value *= activation_slope(ACTIVATION - 1, load(JOIN(STYPE, x4_buffer)(preactivation).at[unit]));
            store(JOIN(DHTYPE, x4_buffer)(dh).at[unit], value);
        } else {
            float value = load(dy.at[unit]);
            if (ACTIVATION != 0) value *= activation_slope(ACTIVATION - 1, load(preactivation.at[unit]));
            store(dh.at[unit], value);
        }
    }
}
