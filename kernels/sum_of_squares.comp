// parts[workgroup] = the sum of x^2 over the workgroup's part of the array, in a fixed order.
//
// x [count]; parts [workgroups]. With SQUARED = 0 it adds the elements themselves: the one subgroup that works then turns
// the parts into their sum, as scalars.comp does in a recorded program.
//
// numpy: np.vdot(x, x)
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "vectors.glsl"
#include "subgroup_sum.glsl"

void main() {
    if (SQUARED == 0) {
        if (gl_SubgroupID != 0) return;
        float total = sum_by_subgroup(x, count);
        if (subgroupElect()) parts.at[0] = total;
        return;
    }
    vec4 sum = vec4(0.0);
    for (uint place = gl_GlobalInvocationID.x; place < place_count(count); place += GRID_THREADS) {
        bool whole;
        uint i = place_start(place, count, whole);
        vec4 value = load_f32(x, i, whole);
        sum += value * value;
    }
    float total = workgroup_sum(dot(sum, vec4(1.0)));
    if (gl_LocalInvocationIndex == 0) {
        parts.at[gl_WorkGroupID.x] = total;
    }
}
