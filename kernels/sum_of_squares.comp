// parts[workgroup] = the sum of x^2 over the workgroup's part of the array, in a fixed order.
//
// x [count]; parts [workgroups]. With SQUARED = 0 it adds the elements themselves: one workgroup then turns the parts
// into their sum.
//
// numpy: np.vdot(x, x)
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "vectors.glsl"

void main() {
    vec4 sum = vec4(0.0);
    for (uint place = gl_GlobalInvocationID.x; place < place_count(count); place += GRID_THREADS) {
        bool whole;
        uint i = place_start(place, count, whole);
        vec4 value = load_f32(x, i, whole);
        sum += SQUARED == 1 ? value * value : value;
    }
    float total = workgroup_sum(dot(sum, vec4(1.0)));
    if (gl_LocalInvocationIndex == 0) {
        parts.at[gl_WorkGroupID.x] = total;
    }
}
