// y = activation(x), or with GATED = 1 y = activation(x[:, :width]) * x[:, width:] (Shazeer 2020).
//
// x [rows, width], or [rows, 2 width] if GATED, strided (see rows.glsl); y [rows, width]. KIND: see activation.glsl.
//
// numpy, for relu: np.maximum(x, 0)
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "rows.glsl"
#include "vectors.glsl"
#include "accurate.glsl"
#include "activation.glsl"

void main() {
    for (uint i = gl_GlobalInvocationID.x * VECTOR; i < rows * width; i += GRID_THREADS * VECTOR) {
        uint row = i / width, column = i % width;
        uint place = row_start(row, inner, outer_stride, inner_stride) + column;
        vec4 result = activate(KIND, load_T(x, place));
        if (GATED == 1) {
            result *= load_T(x, place + width);
        }
        store_T(y, i, result);
    }
}
