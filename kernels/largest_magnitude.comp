// parts[workgroup] = the bits of the largest finite magnitude in the workgroup's part of the array; 0 where there is none.
//
// x [count]; parts [workgroups]
// numpy: np.abs(x[np.isfinite(x)]).max(initial=0)
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "vectors.glsl"

void main() {
    uvec4 largest = uvec4(0);
    for (uint place = gl_GlobalInvocationID.x; place < place_count(count); place += GRID_THREADS) {
        bool whole;
        uint i = place_start(place, count, whole);
        uvec4 bits = floatBitsToUint(load_f32(x, i, whole)) & 0x7fffffffu;
        largest = max(largest, mix(uvec4(0), bits, lessThan(bits, uvec4(0x7f800000u))));
    }
    // Positive numbers are in the order of their bits.
    uvec2 of_two = max(largest.xy, largest.zw);
    float of_all = workgroup_max(uintBitsToFloat(max(of_two.x, of_two.y)));
    if (gl_LocalInvocationIndex == 0) parts.at[gl_WorkGroupID.x] = floatBitsToUint(of_all);
}
