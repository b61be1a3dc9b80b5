// The gradient of query_key.comp, in place of that of its result: with dn the latter rotated back, and the head's
// normalized = x * scale and d = dn * weight,
//     dx = (d - normalized * mean(d * normalized)) * scale, or with NORM = 0 dn itself;
//     dweight = sum over rows and heads of dn * normalized
//
// qkv, dqkv [rows, QUERIES + 2 KEYS, 2 HALF]; of dqkv queries and keys are read and written, values stay as they are.
// With SUMS = 1 each workgroup sums over its own heads only: parts [workgroups, 2, 2 HALF] holds the gradients of
// query_weight and key_weight; column_sums.comp adds the workgroups up.
//
// numpy: first, second = np.split(dy, 2, axis=-1); dn = np.concatenate([first * c + second * s, second * c - first * s], -1)
//        n = x * scale; d = dn * w; dx = (d - n * (d * n).mean(-1, keepdims=True)) * scale
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "lanes.glsl"
#include "vectors.glsl"
#include "query_key.glsl"

shared vec4 slot_sums[THREADS];

// Writes the sums over the workgroup's slots of one column (VECTOR columns) each.
void store_sum(vec4 value, uint thread, uint column, uint place) {
    barrier();
    slot_sums[thread] = value;
    barrier();
    if (thread < LANES && is_inside(column)) {
        for (uint slot = 1; slot < SLOTS; ++slot) value += slot_sums[slot * LANES + thread];
        store_f32(parts, gl_WorkGroupID.x * (4 * HALF) + place + column, value);
    }
}

void main() {
    uint thread = thread_index();
    uint lane = thread % LANES, slot = thread / LANES;
    const uint total = rows * HEADS;
    vec4 query_first[COUNT], query_second[COUNT], key_first[COUNT], key_second[COUNT];
    read_weights(true, lane, query_first, query_second);
    read_weights(false, lane, key_first, key_second);
    vec4 query_sums[2 * COUNT], key_sums[2 * COUNT];
    [[unroll]] for (uint k = 0; k < 2 * COUNT; ++k) query_sums[k] = key_sums[k] = vec4(0.0);
    for (uint start = gl_WorkGroupID.x * (SLOTS * EACH); start < total; start += gl_NumWorkGroups.x * (SLOTS * EACH)) {
        // All that is read is on its way before the first of it is used.
        vec4 first[HELD], second[HELD], dfirst[HELD], dsecond[HELD], cosines[HELD], sines[HELD];
        [[unroll]] for (uint e = 0; e < EACH; ++e) {
            uint number = min(start + e * SLOTS + slot, total - 1);
            if (NORM == 1) read_head(qkv, place_of(number), e, lane, first, second);
            read_head(dqkv, place_of(number), e, lane, dfirst, dsecond);
            read_angles(number, e, lane, cosines, sines);
        }
        [[unroll]] for (uint e = 0; e < EACH; ++e) {
            uint number = start + e * SLOTS + slot;
            bool is_query = number % HEADS < QUERIES, live = number < total;
            float scale = scale_of(e, first, second), sum = 0.0;
            [[unroll]] for (uint k = 0; k < COUNT; ++k) {
                uint i = e * COUNT + k;
                vec4 dx = dfirst[i], dz = dsecond[i];
                if (ROTARY == 1) {
                    dx = dfirst[i] * cosines[i] + dsecond[i] * sines[i];
                    dz = dsecond[i] * cosines[i] - dfirst[i] * sines[i];
                }
                if (NORM == 1) {
                    first[i] *= scale;
                    second[i] *= scale;
                    vec4 of_first = dx * first[i], of_second = dz * second[i], none = vec4(0.0);
                    query_sums[2 * k] += live && is_query ? of_first : none;
                    query_sums[2 * k + 1] += live && is_query ? of_second : none;
                    key_sums[2 * k] += live && !is_query ? of_first : none;
                    key_sums[2 * k + 1] += live && !is_query ? of_second : none;
                    dx *= is_query ? query_first[k] : key_first[k];
                    dz *= is_query ? query_second[k] : key_second[k];
                    sum += dot(dx, first[i]) + dot(dz, second[i]);
                }
                dfirst[i] = dx;
                dsecond[i] = dz;
            }
            float mean = NORM == 1 ? row_sum(sum) * (1.0 / float(2 * HALF)) : 0.0;
            [[unroll]] for (uint k = 0; k < COUNT; ++k) {
                uint i = e * COUNT + k, column = (k * LANES + lane) * VECTOR;
                if (!live || !is_inside(column)) continue;
                uint to = place_of(number) + column;
                store_T(dqkv, to, NORM == 1 ? (dfirst[i] - first[i] * mean) * scale : dfirst[i]);
                store_T(dqkv, to + HALF, NORM == 1 ? (dsecond[i] - second[i] * mean) * scale : dsecond[i]);
            }
        }
    }
    if (SUMS == 0) return;
    [[unroll]] for (uint k = 0; k < COUNT; ++k) {
        uint column = (k * LANES + lane) * VECTOR;
        store_sum(query_sums[2 * k], thread, column, 0);
        store_sum(query_sums[2 * k + 1], thread, column, HALF);
        store_sum(key_sums[2 * k], thread, column, 2 * HALF);
        store_sum(key_sums[2 * k + 1], thread, column, 3 * HALF);
    }
}
