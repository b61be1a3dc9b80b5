// One Lion step in place (Chen et al. 2023, algorithm 2), or, where `accept` is false, none: then no bit changes.
//     g = gradient_scale gradient;  p = p (1 - lr weight_decay) - lr sign(beta1 m + (1 - beta1) g)
//     m = beta2 m + (1 - beta2) g
//
// parameter, gradient, momentum (m) [count]; learning_rate, gradient_scale, accept [1]. kept1 and kept2 are 1 - beta1 and
// 1 - beta2, rounded once.
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
        vec4 g = load_f32(gradient, i, whole) * gradient_factor;
        vec4 m = load_f32(momentum, i, whole);
        vec4 step = sign(beta1 * m + kept1 * g);
        store_f32(momentum, i, beta2 * m + kept2 * g, whole);
        store_f32(parameter, i, decayed(load_f32(parameter, i, whole), step, rate, weight_decay), whole);
    }
}
