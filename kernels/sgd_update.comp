// One step of gradient descent with momentum in place, or, where `accept` is false, none: then no bit changes.
//     m = beta m + gradient_scale gradient;  p = p (1 - lr weight_decay) - lr m
//
// parameter, gradient, momentum (m) [count]; learning_rate, gradient_scale, accept [1].
//
// numpy: as above
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "vectors.glsl"
#include "decayed.glsl"

void main() {
    if (accept.at[0] == 0) {
        return;
    }
    float rate = learning_rate.at[0], gradient_factor = gradient_scale.at[0];
    for (uint place = gl_GlobalInvocationID.x; place < place_count(count); place += GRID_THREADS) {
        bool whole;
        uint i = place_start(place, count, whole);
        vec4 m = beta * load_f32(momentum, i, whole) + load_f32(gradient, i, whole) * gradient_factor;
        store_f32(momentum, i, m, whole);
        store_f32(parameter, i, decayed(load_f32(parameter, i, whole), m, rate, weight_decay), whole);
    }
}
