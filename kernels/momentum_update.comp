// Nesterov's momentum and the step that it gives, in place, or, where `accept` is false, neither: then no bit changes.
//     g = gradient_scale gradient;  m = beta m + g;  step = g + beta m
//
// momentum (m), gradient, step [count]; gradient_scale, accept [1].
//
// numpy: as above
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "vectors.glsl"

void main() {
    if (accept.at[0] == 0) {
        return;
    }
    float gradient_factor = gradient_scale.at[0];
    for (uint place = gl_GlobalInvocationID.x; place < place_count(count); place += GRID_THREADS) {
        bool whole;
        uint i = place_start(place, count, whole);
        vec4 g = load_f32(gradient, i, whole) * gradient_factor;
        vec4 m = beta * load_f32(momentum, i, whole) + g;
        store_f32(momentum, i, m, whole);
        store_f32(step, i, g + beta * m, whole);
    }
}
