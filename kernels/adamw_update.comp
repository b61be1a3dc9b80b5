// One AdamW step in place (Loshchilov and Hutter 2019), or, where `accept` is false, none: then no bit changes.
//     g = gradient_scale gradient;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//     p = p (1 - lr weight_decay) - lr (m / correction1) / (sqrt(v / correction2) + epsilon)
//
// parameter, gradient, first (m), second (v) [count]; learning_rate, gradient_scale, accept, correction1, correction2 [1].
// kept1 and kept2 are 1 - beta1 and 1 - beta2, rounded once.
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
    float inverse1 = 1.0 / correction1.at[0], inverse2 = 1.0 / correction2.at[0];
    for (uint place = gl_GlobalInvocationID.x; place < place_count(count); place += GRID_THREADS) {
        bool whole;
        uint i = place_start(place, count, whole);
        vec4 g = load_f32(gradient, i, whole) * gradient_factor;
        vec4 m = beta1 * load_f32(first, i, whole) + kept1 * g;
        vec4 v = beta2 * load_f32(second, i, whole) + kept2 * g * g;
        vec4 step = m * inverse1 / (sqrt(v * inverse2) + epsilon);
        store_f32(first, i, m, whole);
        store_f32(second, i, v, whole);
        store_f32(parameter, i, decayed(load_f32(parameter, i, whole), step, rate, weight_decay), whole);
    }
}
