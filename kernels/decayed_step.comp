// p = p (1 - lr weight_decay) - lr step in place, or, where `accept` is false, nothing: then no bit changes.
//
// parameter, step [count]; learning_rate, accept [1].
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
    float rate = learning_rate.at[0];
    for (uint place = gl_GlobalInvocationID.x; place < place_count(count); place += GRID_THREADS) {
        bool whole;
        uint i = place_start(place, count, whole);
        vec4 updated = decayed(load_f32(parameter, i, whole), load_f32(step, i, whole), rate, weight_decay);
        store_f32(parameter, i, updated, whole);
    }
}
