// Queries and keys from the result of a projection: each head's RMS norm (norm.comp without mean and bias) if NORM = 1,
// then if ROTARY = 1 the pairs (x[i], x[i + HALF]) rotated by the angle whose cosine and sine are given for its position
// (RoFormer, Su et al. 2021).
//
// qkv [rows, QUERIES + 2 KEYS, 2 HALF]; query_weight, key_weight [2 HALF]; cosine, sine [positions, HALF], or as many for
// each sequence of `positions` rows, rows `table_stride` and sequences `table_batch_stride` apart (0 for all the same);
// y [rows, QUERIES + KEYS, 2 HALF]. See query_key.glsl.
//
// numpy: x, w = qkv[:, :QUERIES], query_weight, and the same for keys
//        n = x / np.sqrt((x ** 2).mean(-1, keepdims=True) + epsilon) * w; first, second = np.split(n, 2, axis=-1)
//        y = np.concatenate([first * c - second * s, second * c + first * s], axis=-1)
#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;
#include "lanes.glsl"
#include "vectors.glsl"
#include "query_key.glsl"

void main() {
    uint lane = thread_index() % LANES, slot = thread_index() / LANES;
    const uint total = rows * HEADS;
    vec4 query_first[COUNT], query_second[COUNT], key_first[COUNT], key_second[COUNT];
    read_weights(true, lane, query_first, query_second);
    read_weights(false, lane, key_first, key_second);
    for (uint start = gl_WorkGroupID.x * (SLOTS * EACH); start < total; start += gl_NumWorkGroups.x * (SLOTS * EACH)) {
        vec4 first[HELD], second[HELD], cosines[HELD], sines[HELD];
        [[unroll]] for (uint e = 0; e < EACH; ++e) {
            uint number = min(start + e * SLOTS + slot, total - 1);
            read_head(qkv, place_of(number), e, lane, first, second);
            read_angles(number, e, lane, cosines, sines);
        }
        [[unroll]] for (uint e = 0; e < EACH; ++e) {
            uint number = start + e * SLOTS + slot;
            bool is_query = number % HEADS < QUERIES;
            float scale = scale_of(e, first, second);
            [[unroll]] for (uint k = 0; k < COUNT; ++k) {
                uint column = (k * LANES + lane) * VECTOR, to = number * (2 * HALF) + column;
                if (number >= total || !is_inside(column)) continue;
                vec4 x = first[e * COUNT + k] * scale * (is_query ? query_first[k] : key_first[k]);
                vec4 z = second[e * COUNT + k] * scale * (is_query ? query_second[k] : key_second[k]);
                vec4 c = cosines[e * COUNT + k], s = sines[e * COUNT + k];
                store_T(y, to, ROTARY == 1 ? x * c - z * s : x);
                store_T(y, to + HALF, ROTARY == 1 ? z * c + x * s : z);
            }
        }
    }
}
