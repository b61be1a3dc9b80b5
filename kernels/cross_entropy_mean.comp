// loss = the sum of the losses / the number of rows that count, or 0 where none does; inverse_count = 1 / that number.
//
// losses, targets [rows], of which rows with a negative target do not count and have loss 0; loss, inverse_count [1], of
// which one may be missing; without a loss there are no losses. One workgroup does it all, in a fixed order.
//
// numpy: count = max(1, np.count_nonzero(targets >= 0)); losses.sum() / count, 1 / count
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "vectors.glsl"

ivec4 load_targets(uint index, bool whole) {
    if (VECTOR == 4 && whole) {
        return i32x4_buffer(targets).at[index / 4];
    }
    return ivec4(targets.at[index], -1, -1, -1);
}

void main() {
    vec4 sums = vec4(0.0);
    vec4 counts = vec4(0.0);
    for (uint place = gl_LocalInvocationIndex; place < place_count(rows); place += THREADS) {
        bool whole;
        uint row = place_start(place, rows, whole);
        if (uint64_t(loss) != 0) sums += load_f32(losses, row, whole);
        counts += vec4(greaterThanEqual(load_targets(row, whole), ivec4(0)));
    }
    vec2 totals = workgroup_sum(vec2(dot(sums, vec4(1.0)), dot(counts, vec4(1.0))));
    if (gl_LocalInvocationIndex == 0) {
        float count = max(1.0, totals.y);
        if (uint64_t(loss) != 0) loss.at[0] = totals.x / count;
        if (uint64_t(inverse_count) != 0) inverse_count.at[0] = 1.0 / count;
    }
}
