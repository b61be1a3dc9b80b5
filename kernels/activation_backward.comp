// The gradient of activation.comp: dx = dy * activation'(x), or with GATED = 1, for x = (gate, up),
//     dx = (dy * up * activation'(gate), dy * activation(gate)).
//
// dy [rows, width] and x [rows, width], or [rows, 2 width] if GATED, strided (see rows.glsl); dx like x, without gaps.
// KIND: see activation.glsl.
//
// numpy, for relu: dy * (x > 0)
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

void main() {
    for (uint i = gl_GlobalInvocationID.x * VECTOR; i < rows * width; i += GRID_THREADS * VECTOR) {
        uint row = i / width, column = i % width;
        uint place = row_start(row, x_inner, x_outer_stride, x_inner_stride) + column;
        vec4 gradient = load_T(dy, row_start(row, dy_inner, dy_outer_stride, dy_inner_stride) + column);
        vec4 value = load_T(x, place);
        if (GATED == 1) {
            uint start = row * 2 * width + column;
            store_T(dx, start, gradient * load_T(x, place + width) * activation_slope(KIND, value));
            store_T(dx, start + width, gradient * activate(KIND, value));
        } else {
            store_T(dx, i, gradient * activation_slope(KIND, value));
        }
    }
}
