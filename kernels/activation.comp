// y = activation(x), or with GATED = 1 y = activation(x[:, :width]) * x[:, width:] (Shazeer 2020).
//
// x [rows, width], or [rows, 2 width] if GATED, strided (see rows.glsl), with FLAT = 1 without gaps and not GATED; y [rows,
// width]. KIND: see activation.glsl.
//
// numpy, for relu: np.maximum(x, 0)
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "rows.glsl"
#include "vectors.glsl"
#if T_BITS == 32
#include "accurate.glsl"
#else
#include "approximate.glsl"
#endif
#include "activation.glsl"

// Vectors of a thread that are on their way at a time.
const uint EACH = 4;

void main() {
    const uint total = rows * width;
    uint thread = gl_WorkGroupID.x * (THREADS * EACH) + gl_LocalInvocationID.x;
    for (uint first = thread * VECTOR; first < total; first += GRID_THREADS * EACH * VECTOR) {
        vec4 values[EACH], gates[EACH];
        [[unroll]] for (uint k = 0; k < EACH; ++k) {
            uint i = min(first + k * THREADS * VECTOR, total - VECTOR);  // one load is as good as another
            uint place = i;
            if (FLAT == 0) {
                uint row = i / width;
                place = row_start(row, inner, outer_stride, inner_stride) + (i - row * width);
            }
            values[k] = load_T(x, place);
            if (GATED == 1) gates[k] = load_T(x, place + width);
        }
        [[unroll]] for (uint k = 0; k < EACH; ++k) {
            uint i = first + k * THREADS * VECTOR;
            vec4 result = activate(KIND, values[k]);
            if (GATED == 1) result *= gates[k];
            if (i < total) store_T(y, i, result);
        }
    }
}
