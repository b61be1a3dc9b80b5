// y = x * first * second * factor, two scalars that live on the device and one that does not; x is of type R, y of T.
//
// x, y [count]; first, second [1].
//
// numpy: x * (first * second * factor)
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "vectors.glsl"

void main() {
    float product = first.at[0] * second.at[0] * factor;
    for (uint place = gl_GlobalInvocationID.x; place < place_count(count); place += GRID_THREADS) {
        bool whole;
        uint i = place_start(place, count, whole);
        store_T(y, i, load_R(x, i, whole) * product, whole);
    }
}
